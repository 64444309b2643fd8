"""What a model may answer about a batch: its form, once, for the schema that is sent and for reading."""

import json
import re
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from domain.completion import CompletionReply, FinishReason
from domain.diagnosis import Hazard
from domain.errors import ModelReplyInvalid

MAX_REPLY_LENGTH = 1_000_000
MAX_FINDINGS, MAX_EVIDENCE = 10, 12
MAX_LOOKS_PER_TURN, MAX_TERMS = 6, 5
MAX_SENTENCES = 4_000

#: some open models think aloud before they answer
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


def _storable(text: str) -> str:
    # JSON can escape what neither UTF-8 nor Postgres can store
    if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise ValueError("has a NUL or half of a surrogate pair")
    return text.strip()


def _at_most(count: int) -> BeforeValidator:
    """Lists may be longer than they should: what comes first counts."""
    return BeforeValidator(lambda value: value[:count] if isinstance(value, list) else value)


#: cut, and not refused: a long text is no reason to pay for another reply
Text = Annotated[str, AfterValidator(lambda text: _storable(text)[:MAX_SENTENCES])]
Word = Annotated[str, AfterValidator(lambda text: _storable(text)[:200])]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class Note(_Reply):
    """What matters of one or several anomalies, and which they are."""

    anomaly_codes: Annotated[list[Word], _at_most(50)]
    note: Text


class Notes(_Reply):
    """The answer to a survey of one segment."""

    notes: Annotated[list[Note], _at_most(50)]


class Look(_Reply):
    """One look at the lines: `grep` for terms, `context` around a line, `timeline` between two times."""

    tool: Literal["grep", "context", "timeline"]
    #: its name in the prompt, such as F3
    file: Word
    member: Word
    terms: Annotated[list[Word], _at_most(MAX_TERMS)]
    line: int
    since: Word
    until: Word


class Plan(_Reply):
    """The answer to an investigation: what is thought so far, and what to look at; nothing ends it."""

    thought: Text
    look: Annotated[list[Look], _at_most(MAX_LOOKS_PER_TURN)]


class Evidence(_Reply):
    """A line as the model quotes it."""

    file: Word
    member: Word
    line: int
    text: Text


class Claim(_Reply):
    """One cause as the model states it; it is a finding once its evidence has been checked."""

    cause: Word
    title: Word
    evidence: Annotated[list[Evidence], _at_most(MAX_EVIDENCE)]
    explanation: Text
    anomaly_codes: Annotated[list[Word], _at_most(50)]
    vehicles: Annotated[list[Word], _at_most(1_000)]
    hazard: Hazard
    confidence: Annotated[float, Field(ge=0, le=1)]
    recommendations: Annotated[list[Text], _at_most(8)]


class Conclusion(_Reply):
    """The answer to the whole case."""

    findings: Annotated[list[Claim], _at_most(MAX_FINDINGS)]
    verdict: Literal["root_cause", "insufficient_evidence", "unremarkable"]
    summary: Text


Answer = TypeVar("Answer", Notes, Plan, Conclusion)


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema to ask for: without what OpenAI's strict mode does not know."""
    schema: dict[str, Any] = _plain(kind.model_json_schema())
    return {**schema, "title": kind.__name__.lower()}


def _plain(schema: Any) -> Any:
    """The schema without titles of fields and descriptions for readers of the code."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name != "description"}
    if isinstance(kept.get("title"), str):
        del kept["title"]
    return {name: _plain(value) for name, value in kept.items()}


def read_reply(reply: CompletionReply, kind: type[Answer]) -> Answer:
    """The answer; raises `ModelReplyInvalid`, which names the field and quotes nothing of the reply."""
    if reply.finish_reason is FinishReason.FILTERED:
        _fail("reply", "the model's provider withheld it")
    try:
        return kind.model_validate(_object(reply.text))
    except ValidationError as error:
        if reply.finish_reason is FinishReason.LENGTH:
            _fail("reply", "cut off at the limit of its length (max_tokens)")
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        _fail(".".join(map(str, first["loc"])) or "reply", first["msg"])


def _object(text: str) -> Any:
    """The JSON object in the text, which may have a fence or words around it."""
    if len(text) > MAX_REPLY_LENGTH:
        _fail("reply", f"{len(text):,} characters; the limit is {MAX_REPLY_LENGTH:,}")
    text = _THOUGHT.sub("", text)
    begin, end = text.find("{"), text.rfind("}")
    try:
        return json.loads(text[begin : end + 1] if begin >= 0 else text)
    except (ValueError, RecursionError):
        _fail("reply", "no valid JSON")


def _fail(field: str, reason: str) -> NoReturn:
    raise ModelReplyInvalid(f"{field}: {reason}.", field=field)

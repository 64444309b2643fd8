"""A model's reply read strictly: an answer to the rubric, or an error that names the field."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from agents.grading.rendering import Fault
from domain.assessment import CriterionResult
from domain.completion import CompletionReply, FinishReason
from domain.errors import ModelReplyInvalid
from domain.exam import Criterion, Question

MAX_REPLY_LENGTH = 1_000_000
MAX_REASON_LENGTH = 5_000
MAX_QUOTE_LENGTH = 2_000

#: places where an object may begin in a text around it: each one costs a try
_MAX_BRACES = 20
#: some open models think aloud before they answer
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


def _refuse_constant(name: str) -> NoReturn:
    _fail("reply", f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


@dataclass(frozen=True)
class Marking:
    """A reply as read: the criteria's results, and whether the model met an instruction in the answer."""

    criteria: tuple[CriterionResult, ...]
    instruction_in_answer: bool = False


def read_completion(reply: CompletionReply, question: Question) -> Marking:
    """The reply to a grading request; raises `ModelReplyInvalid` for one of no use, whatever made it so."""
    if reply.finish_reason is FinishReason.FILTERED:
        _fail("reply", "the model's provider withheld it")
    try:
        return read_marking(reply.text, question)
    except ModelReplyInvalid as error:
        if reply.finish_reason is not FinishReason.LENGTH:
            raise
        message = "reply: cut off at the limit of its length (max_tokens)."
        raise ModelReplyInvalid(message, field="reply") from error


def fault_of(reply: CompletionReply, error: ModelReplyInvalid) -> Fault:
    """What the model is told about its reply."""
    if reply.finish_reason is FinishReason.STOP:
        return Fault("invalid", reply.text, problem=error.message)
    return Fault("length" if reply.finish_reason is FinishReason.LENGTH else "filtered", reply.text)


def read_reply(text: str, question: Question) -> tuple[CriterionResult, ...]:
    """The criteria's results in the rubric's order; `ModelReplyInvalid` names the field at fault."""
    return read_marking(text, question).criteria


def read_marking(text: str, question: Question) -> Marking:
    """All that a reply says; `ModelReplyInvalid` names the field at fault and quotes nothing of the reply."""
    document = _load(text)
    criteria = _read_criteria(document, question)
    told = document.get("instruction_in_answer", False)
    if not isinstance(told, bool):
        _fail("instruction_in_answer", "expected true or false")
    return Marking(criteria, told)


def _read_criteria(document: Any, question: Question) -> tuple[CriterionResult, ...]:
    entries = document.get("criteria") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        _fail("criteria", "expected a list")
    rubric = {criterion.id: criterion for criterion in question.criteria}
    graded: dict[str, CriterionResult] = {}
    for index, entry in enumerate(entries):
        result = _read_entry(entry, f"criteria[{index}]", rubric)
        if result.criterion_id in graded:
            _fail(f"criteria[{index}].criterion_id", f"{result.criterion_id!r} is there twice")
        graded[result.criterion_id] = result
    missing = [each for each in rubric if each not in graded]
    if missing:
        _fail("criteria", f"no entry for {', '.join(missing)}")
    return tuple(graded[each] for each in rubric)


def _load(text: str) -> Any:
    if len(text) > MAX_REPLY_LENGTH:
        _fail("reply", f"{len(text):,} characters; the limit is {MAX_REPLY_LENGTH:,}")
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if (only := _only_object(text)) is not None:
            return only
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ModelReplyInvalid(f"reply: no valid JSON: {reason}.", field="reply") from error


def _only_object(text: str) -> dict[str, Any] | None:
    """The one JSON object in a text around it, such as a Markdown fence; `None` if it is not the only one.

    Models without structured output write so. Of two objects nobody can tell which one is meant: one of
    them may be the student's.
    """
    found: list[dict[str, Any]] = []
    position, tries = 0, 0
    text = _THOUGHT.sub("", text)
    while (position := text.find("{", position)) >= 0:
        tries += 1
        if tries > _MAX_BRACES:
            return None
        try:
            document, position = _DECODER.raw_decode(text, position)
            found.append(document)
        except (ValueError, RecursionError):
            position += 1
    return found[0] if len(found) == 1 else None


def _read_entry(entry: object, where: str, rubric: Mapping[str, Criterion]) -> CriterionResult:
    if not isinstance(entry, Mapping):
        _fail(where, "expected an object")
    criterion_id = entry.get("criterion_id")
    if not isinstance(criterion_id, str) or criterion_id not in rubric:
        _fail(f"{where}.criterion_id", f"is not in the rubric; it has {', '.join(rubric)}")
    cannot_assess = entry.get("cannot_assess", False)
    if not isinstance(cannot_assess, bool):
        _fail(f"{where}.cannot_assess", "expected true or false")
    most = rubric[criterion_id].points
    points = _number(entry, where, "points", most)
    return CriterionResult(
        criterion_id=criterion_id,
        # what cannot be assessed earns nothing, whatever stands beside it
        points=0.0 if cannot_assess else points,
        max_points=most,
        reason=_text(entry, where, "reason", MAX_REASON_LENGTH),
        quote=_text(entry, where, "quote", MAX_QUOTE_LENGTH),
        confidence=_number(entry, where, "confidence", 1.0),
        cannot_assess=cannot_assess,
    )


def _number(entry: Mapping[str, Any], where: str, name: str, most: float) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _fail(f"{where}.{name}", f"expected a number, got {_short(value)}")
    if not 0 <= value <= most:
        _fail(f"{where}.{name}", f"{_short(value)} is not between 0 and {most:g}")
    return float(value)


def _text(entry: Mapping[str, Any], where: str, name: str, at_most: int) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        _fail(f"{where}.{name}", f"expected text, got {_short(value)}")
    if len(value) > at_most:
        _fail(f"{where}.{name}", f"{len(value):,} characters; the limit is {at_most:,}")
    # JSON can escape what neither UTF-8 nor Postgres can store
    if "\0" in value or any("\ud800" <= each <= "\udfff" for each in value):
        _fail(f"{where}.{name}", "has a NUL or half of a surrogate pair")
    return value.strip()


def _short(value: object) -> str:
    # a text may be the student's, and this goes into logs and prompts
    return (
        "text" if isinstance(value, str) else ascii(value)[:20] if _is_plain(value) else type(value).__name__
    )


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float))


def _fail(field: str, reason: str) -> NoReturn:
    raise ModelReplyInvalid(f"{field}: {reason}.", field=field)

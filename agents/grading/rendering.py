"""Prompts rendered from versioned files: rules in the system message, student text fenced in a user one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from jinja2 import DictLoader, Environment, StrictUndefined

from agents.grading.fence import fence_mark
from agents.grading.state import Context, Entry
from domain.completion import CompletionRequest, Message
from domain.exam import Question

#: the prompt of each specialist: a prompt is never edited, a better one is a file with the next number
TEMPLATES: Mapping[str, str] = {
    "short_answer": "short_answer@1",
    "essay": "essay@1",
    "code": "code@1",
}
ANSWER_TEMPLATE = "answer@1"
REPAIR_TEMPLATE = "repair@1"

#: of a reply that could not be used, this much is shown to the model again
MAX_SHOWN_LENGTH = 8_000
_TOKENS_PER_REPLY = 500
_TOKENS_PER_CRITERION = 300
#: how much more room a reply gets that ran out of it
_MORE_ROOM = 2


@dataclass(frozen=True)
class Fault:
    """Why a reply has to be given again; `reply` is the text at fault, empty where none came."""

    kind: Literal["invalid", "length", "filtered", "quotes"]
    reply: str = ""
    #: what is wrong, in words that quote nothing of the reply
    problem: str = ""
    criteria: tuple[str, ...] = ()


def render_request(
    question: Question, context: Context, specialist: str, call_number: int, faults: tuple[Fault, ...] = ()
) -> CompletionRequest:
    """The call of that number: the same for the same arguments, however often it is tried."""
    step = context.step(question.id)
    key = step.call(call_number)
    told = [fault for fault in faults if fault.kind != "filtered"]
    return CompletionRequest(
        step=step,
        call_number=call_number,
        model=context.model,
        question=question,
        answer=context.answer(question.id),
        missing_quotes={each: "" for fault in faults for each in fault.criteria},
        messages=(
            Message(
                "system", _render(TEMPLATES[specialist], question=question, language=context.exam.language)
            ),
            Message("user", _answer_text(question, context, key)),
            *(message for fault in told for message in _repair_messages(fault)),
        ),
        schema=reply_schema(question),
        template=f"{TEMPLATES[specialist]}/{REPAIR_TEMPLATE}" if told else TEMPLATES[specialist],
        max_tokens=_max_tokens(question, context, faults),
        payer=context.payer,
        fence=context.fence,
        trace_id=context.trace_id,
    )


def quotes_fault(previous: Entry, criteria: tuple[str, ...]) -> Fault:
    """The fault of an earlier result whose quotes do not stand in the answer."""
    names = ("criterion_id", "quote", "reason", "cannot_assess", "points", "confidence")
    graded = [{name: each[name] for name in names} for each in previous["result"]["criteria"]]
    return Fault("quotes", json.dumps({"criteria": graded}, ensure_ascii=False), criteria=criteria)


def reply_schema(question: Question) -> dict[str, Any]:
    """The JSON Schema of a reply; evidence and reason come before the points that rest on them."""
    criterion = {
        "criterion_id": {"type": "string", "enum": [each.id for each in question.criteria]},
        "quote": {"type": "string", "description": "Verbatim from the answer, or empty."},
        "reason": {"type": "string", "description": "For the student."},
        "cannot_assess": {"type": "boolean"},
        "points": {"type": "number", "minimum": 0, "maximum": max(each.points for each in question.criteria)},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    }
    count = len(question.criteria)
    criteria = {"type": "array", "items": _object(criterion), "minItems": count, "maxItems": count}
    properties = {"instruction_in_answer": {"type": "boolean"}, "criteria": criteria}
    return {"title": "marking", "description": "One answer, marked.", **_object(properties)}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    # what OpenAI's strict mode asks for: everything required, nothing else allowed
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _answer_text(question: Question, context: Context, key: str) -> str:
    answer = context.answer(question.id)
    shown = "".join(example.answer for example in question.examples)
    return _render(
        ANSWER_TEMPLATE,
        question=question,
        examples=question.examples,
        # the same for every student: a provider's cache of prompts reaches as far as the examples
        example_mark=fence_mark(context.secret, f"examples/{question.rubric_hash()}", shown),
        answer=answer,
        mark=fence_mark(context.secret, key, answer + shown),
    )


def _repair_messages(fault: Fault) -> tuple[Message, Message]:
    told = _render(REPAIR_TEMPLATE, fault=fault.kind, problem=fault.problem, criteria=fault.criteria)
    # providers refuse an empty message
    return Message("assistant", fault.reply[:MAX_SHOWN_LENGTH] or "(nothing)"), Message("user", told)


def _max_tokens(question: Question, context: Context, faults: tuple[Fault, ...]) -> int:
    least = _TOKENS_PER_REPLY + _TOKENS_PER_CRITERION * len(question.criteria)
    cut = sum(fault.kind == "length" for fault in faults)
    return max(context.max_tokens, least) * int(_MORE_ROOM**cut)


def _render(template: str, **values: Any) -> str:
    return _prompts().get_template(f"{template}.md").render(values).strip()


@cache
def _prompts() -> Environment:
    """The prompt files; values are put in as they are and never read as templates."""
    folder = files("agents.grading") / "prompts"
    texts = {each.name: each.read_text(encoding="utf-8") for each in folder.iterdir()}
    return Environment(
        loader=DictLoader(texts),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # prompts are no HTML: an escaped answer could not be quoted verbatim
        trim_blocks=True,
        lstrip_blocks=True,
    )

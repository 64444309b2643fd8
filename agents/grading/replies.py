"""A model's reply read strictly: an answer to the rubric, or an error that names the field."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from domain.assessment import CriterionResult
from domain.errors import ModelReplyInvalid
from domain.exam import Criterion, Question

MAX_REPLY_LENGTH = 1_000_000
MAX_REASON_LENGTH = 5_000
MAX_QUOTE_LENGTH = 2_000


def read_reply(text: str, question: Question) -> tuple[CriterionResult, ...]:
    """The criteria's results in the rubric's order; `ModelReplyInvalid` names the field at fault."""
    document = _load(text)
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
        return json.loads(text, parse_constant=lambda name: _fail("reply", f"{name} is no JSON number"))
    except (ValueError, RecursionError) as error:
        raise ModelReplyInvalid(f"reply: no valid JSON: {error}.", field="reply") from error


def _read_entry(entry: object, where: str, rubric: Mapping[str, Criterion]) -> CriterionResult:
    if not isinstance(entry, Mapping):
        _fail(where, "expected an object")
    criterion_id = entry.get("criterion_id")
    if not isinstance(criterion_id, str) or criterion_id not in rubric:
        _fail(f"{where}.criterion_id", f"{_short(criterion_id)} is not in the rubric")
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
    return ascii(value)[:60]


def _fail(field: str, reason: str) -> NoReturn:
    raise ModelReplyInvalid(f"{field}: {reason}.", field=field)

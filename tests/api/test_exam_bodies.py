"""An exam's body is refused at the line or field at fault, and cannot exhaust the process."""

import json
import re
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from api.exams import parse_exam
from domain.errors import InvalidExam

EXAM: dict[str, Any] = {
    "title": "Networks",
    "questions": [{"id": "q1", "type": "exact", "prompt": "Port of HTTPS?", "points": 1, "answer": "443"}],
}


@pytest.mark.parametrize("content_type", ["application/json", "application/yaml", "text/yaml"])
def test_an_exam_is_read_from_json_and_from_yaml(content_type: str) -> None:
    exam = parse_exam(json.dumps(EXAM).encode(), content_type)

    assert exam.questions[0].answer == "443"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"title: [a\nb: :", "line 1.*bracket"),
        (b"a: &x [1]\nb: *x", "aliases"),
        (b"[" * 100_000, "nested deeper"),
        (b"a: !!int foo", "tags"),
        (b"a: !!python/object:os.system x", "tags"),
        (b"\xff\xfe", "UTF-8"),
        (b"", "got nothing"),
        (b"title: '\\0'\nquestions: []", "questions: has 0 entries"),
        (b'title: "\\0"', "no text"),
        (b"title: .inf", "kept exactly"),
        (b"title: .nan", "kept exactly"),
    ],
)
def test_a_faulty_yaml_body_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    _check_refusal(body, "application/yaml", reason)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"title": ', "line 1: exam: no value of JSON"),
        (b"[" * 100_000, "line 1.*nothing|nested|JSON"),
        (b'{"title": "\\u0000"}', "title: holds"),
        (b'{"title": "\\ud800"}', "title: holds"),
        (b'{"questions": [{"type": "numeric", "tolerance": 1e999}]}', r"questions\[0\].tolerance"),
        (b'{"points": 1' + b"0" * 400 + b"}", "points"),
        (b'{"points": 1' + b"0" * 5000 + b"}", "points"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_faulty_json_body_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    _check_refusal(body, "application/json", reason)


def _check_refusal(body: bytes, content_type: str, reason: str) -> None:
    with pytest.raises(InvalidExam) as refusal:
        parse_exam(body, content_type)
    told = [f"line {each.line}: {each}" for each in refusal.value.mistakes]
    assert any(re.search(reason, each) for each in told), told
    assert all(each.line for each in refusal.value.mistakes)


def test_another_content_type_is_refused() -> None:
    with pytest.raises(HTTPException) as refusal:
        parse_exam(b"{}", "text/plain")

    assert refusal.value.status_code == 415

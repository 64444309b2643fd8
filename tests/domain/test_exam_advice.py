"""Advice: what a valid exam would be graded better by, and silence where there is nothing to say."""

from typing import Any

import pytest

from domain.exam import read_exam
from domain.exam_advice import advise

ONE = [{"id": "c1", "points": 1, "description": "."}]
TWO = [*ONE, {"id": "c2", "points": 1, "description": "."}]
MARKED = [{"answer": "x", "points": 1}]
ESSAY = {"type": "essay", "reference": ".", "criteria": ONE, "examples": MARKED}
CHOICE = {"type": "multiple_choice", "answer": "A"}


@pytest.mark.parametrize(
    ("question", "path"),
    [
        ({**ESSAY}, None),
        ({**ESSAY, "examples": []}, "examples"),
        ({**ESSAY, "criteria": TWO}, "criteria"),
        ({**ESSAY, "examples": [*MARKED, {"answer": "x", "points": 0.5}]}, "examples[1]"),
        ({**ESSAY, "examples": MARKED * 2}, None),
        ({**CHOICE}, "prompt"),
        ({**CHOICE, "options": {"A": "One", "B": "Two"}}, None),
        ({**CHOICE, "prompt": "?\nA) One\nB) Two"}, None),
        ({**CHOICE, "prompt": "?\nA) One\nB) Two", "answer": "C"}, "answer"),
        ({**CHOICE, "prompt": "?\nA) One\nB) Two", "accept": ["D"]}, "accept"),
        ({"type": "numeric", "answer": "7"}, "unit"),
        ({"type": "numeric", "answer": "7", "unit": "ms"}, None),
        ({"type": "numeric", "answer": "7.5", "unit": "ms"}, "tolerance"),
        ({"type": "numeric", "answer": "7.5", "unit": "ms", "tolerance": "2%"}, None),
        ({"type": "exact", "answer": "x"}, None),
    ],
)
def test_advice_names_what_it_is_about(question: dict[str, Any], path: str | None) -> None:
    exam = read_exam({"title": "T", "questions": [{"id": "q", "prompt": "?", "points": 1, **question}]})
    found = advise(exam)
    assert [each.path for each in found] == ([] if path is None else [f"questions[0].{path}"])
    assert all(each.reason and each.remedy.endswith(".") for each in found)

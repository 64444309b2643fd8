"""The CSV report has one row a student, and no cell that a spreadsheet runs."""

import csv
import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.reports import COLUMNS, FORMULA_STARTS, csv_report


def submission(**given: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    return {
        **row,
        "submission_id": "s1",
        "state": "completed",
        "review_reasons": [],
        "questions": {},
        **given,
    }


def rows_of(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def test_a_student_has_a_row_with_a_column_for_each_question() -> None:
    report = {
        "questions": [{"question_id": "q1"}, {"question_id": "q2"}],
        "submissions": [
            submission(name="李雷.txt", score=-0.5, needs_review=True, questions={"q1": 1.5}),
            submission(submission_id="s2", name='a "b", c', review_reasons=["q1: low", "q2: quote"]),
        ],
    }

    first, second = rows_of(csv_report(report))

    assert (first["submission_id"], first["name"], first["needs_review"]) == ("s1", "李雷.txt", "true")
    assert (first["score"], first["q1"], first["q2"]) == ("-0.5", "1.5", "")
    assert (second["name"], second["review_reasons"]) == ('a "b", c', "q1: low; q2: quote")


@given(st.sampled_from(FORMULA_STARTS), st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
def test_text_that_begins_like_a_formula_gets_an_apostrophe(start: str, rest: str) -> None:
    report = {"questions": [], "submissions": [submission(name=start + rest)]}

    text = csv_report(report)

    assert f"'{start}" in text
    (row,) = csv.reader(io.StringIO(text.partition("\r\n")[2], newline=""))
    assert row[1] == f"'{start}{rest}"


def test_a_question_whose_id_begins_like_a_formula_is_no_formula_either() -> None:
    assert "'-q" in csv_report({"questions": [{"question_id": "-q"}], "submissions": []})

"""The CSV report has one row a student, and no cell that a spreadsheet runs."""

import csv
import io
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.spreadsheets import COLUMNS, FORMULA_STARTS, csv_report

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
#: what spreadsheets skip before they look whether a cell is a formula
UNSEEN = st.text(st.sampled_from("\t\r\n \u00a0\u200b\ufeff\x00\u2060"), max_size=3)
SKIPPED = ("Cc", "Cf", "Zs", "Mn")
FULL_WIDTH = ("＝", "＋", "－", "＠")


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


def test_a_gradebook_finds_the_student_and_the_share_of_the_points() -> None:
    rows = [submission(name="s0042.md", score=1.0, max_score=3.0), submission(name="s0043.md")]

    first, second = rows_of(csv_report({"questions": [], "submissions": rows}))

    assert (first["student"], first["percent"]) == ("s0042", "33.33")
    assert (second["student"], second["percent"]) == ("s0043", "")


def test_criteria_have_their_columns_where_a_submission_has_them() -> None:
    mark = {"points": 0.5, "confidence": 0.9, "quote": "=1+1"}
    rows = [submission(criteria={}), submission(submission_id="s2", criteria={"q1/c1": mark})]

    failed, graded = rows_of(csv_report({"questions": [], "submissions": rows}))

    assert (graded["q1/c1 points"], graded["q1/c1 confidence"]) == ("0.5", "0.9")
    assert graded["q1/c1 quote"] == "'=1+1"
    assert (failed["q1/c1 points"], failed["q1/c1 quote"]) == ("", "")


def test_a_question_named_like_a_column_hides_none() -> None:
    report = {"questions": [{"question_id": "score"}], "submissions": [submission(questions={"score": 1})]}

    (row,) = rows_of(csv_report(report))

    assert (row["score"], row["question score"]) == ("", "1")


@given(UNSEEN, st.sampled_from((*FORMULA_STARTS, *FULL_WIDTH)), TEXTS)
def test_text_that_begins_like_a_formula_gets_an_apostrophe(unseen: str, start: str, rest: str) -> None:
    report = {"questions": [], "submissions": [submission(name=unseen + start + rest)]}

    (row,) = rows_of(csv_report(report))

    assert row["name"].replace("'", "") == (unseen + start + rest).replace("'", "")
    assert not runs(row["name"])


@given(TEXTS, TEXTS)
def test_no_separator_of_any_spreadsheet_begins_a_formula(name: str, quote: str) -> None:
    mark = {"points": 1, "confidence": 1, "quote": quote}
    report = {"questions": [], "submissions": [submission(name=name, criteria={"q1/c1": mark})]}

    for line in csv.reader(io.StringIO(csv_report(report), newline="")):
        for cell in line:
            for separator in ";\t\r\n":
                assert not any(runs(part) for part in cell.split(separator))


def runs(cell: str) -> bool:
    """Whether a spreadsheet could take the cell for a formula."""
    seen = [each for each in cell if not (unicodedata.category(each) in SKIPPED or each.isspace())]
    return unicodedata.normalize("NFKC", "".join(seen[:1])).startswith(FORMULA_STARTS)


@pytest.mark.parametrize("start", ["\t", "\r", "\n"])
def test_a_cell_does_not_begin_with_a_break(start: str) -> None:
    (row,) = rows_of(csv_report({"questions": [], "submissions": [submission(name=f"{start}a")]}))

    assert row["name"] == f"'{start}a"


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("a=b", "x - y", "mail@example.org", "3-way; then ACK", "李雷：三次握手"):
        (row,) = rows_of(csv_report({"questions": [], "submissions": [submission(name=text)]}))
        assert row["name"] == text


def test_a_question_whose_id_begins_like_a_formula_is_no_formula_either() -> None:
    assert "'-q" in csv_report({"questions": [{"question_id": "-q"}], "submissions": []})

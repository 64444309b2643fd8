"""A report as CSV: a row a submission, and no cell that a spreadsheet would run."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: what a spreadsheet takes for the beginning of a formula, as are its full-width forms
FORMULA_STARTS = ("=", "+", "-", "@")
COLUMNS = (
    "submission_id",
    "name",
    "state",
    "score",
    "max_score",
    "needs_review",
    "review_reasons",
    "failure_code",
    "failure_message",
    "student",
    "percent",
)
_BOM = "\ufeff"
_BREAKS = ("\t", "\r", "\n")
# a spreadsheet that separates by semicolons or tabs ends a cell here, whatever quotes stand around it
_CELL = re.compile(r"([;\t\r\n])")


def csv_report(report: Mapping[str, Any]) -> str:
    """UTF-8 with BOM: the columns above, then each question's points, then each criterion's where asked for.

    `student` is the file's name without its ending, which is what a gradebook knows students by.
    """
    questions = [str(each["question_id"]) for each in report.get("questions", ())]
    rows = report.get("submissions", ())
    # every submission has the same criteria; those that failed have none
    criteria = list(max((row.get("criteria") or {} for row in rows), key=len, default={}))
    return csv_table(_headings(questions, criteria), (_values(row, questions, criteria) for row in rows))


def csv_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """UTF-8 with BOM: the columns' names, then the rows."""
    text = io.StringIO()
    text.write(_BOM)
    writer = csv.writer(text)
    writer.writerow(map(_cell, columns))
    writer.writerows(map(_cell, row) for row in rows)
    return text.getvalue()


def _headings(questions: Iterable[str], criteria: Iterable[str]) -> Iterator[str]:
    yield from COLUMNS
    # two columns of one name would hide each other
    yield from (f"question {each}" if each in COLUMNS else each for each in questions)
    for each in criteria:
        yield from (f"{each} points", f"{each} confidence", f"{each} quote")


def _values(row: Mapping[str, Any], questions: Iterable[str], criteria: Iterable[str]) -> Iterator[Any]:
    given = {**row, "student": _without_suffix(row["name"] or ""), "percent": _percent(row)}
    yield from (given.get(each) for each in COLUMNS)
    points = row.get("questions") or {}
    yield from (points.get(each) for each in questions)
    marks = row.get("criteria") or {}
    for each in criteria:
        mark = marks.get(each, {})
        yield from (mark.get("points"), mark.get("confidence"), mark.get("quote"))


def _without_suffix(name: str) -> str:
    """A file's name as a student's: an id may hold slashes, and dots."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and stem and suffix.isalnum() else name


def _percent(row: Mapping[str, Any]) -> float | None:
    score, highest = row.get("score"), row.get("max_score")
    return round(100 * score / highest, 2) if score is not None and highest else None


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    # a number below zero is a number: only text can be a formula
    if isinstance(value, (int, float)):
        return str(value)
    text = "; ".join(str(each) for each in value) if isinstance(value, (list, tuple)) else str(value)
    return _harmless(text)


def _harmless(text: str) -> str:
    """The text with an apostrophe before whatever could begin a formula."""
    parts = _CELL.split(text)
    safe = "".join(f"'{part}" if _begins_formula(part) else part for part in parts)
    return f"'{safe}" if text.startswith(_BREAKS) else safe


def _begins_formula(text: str) -> bool:
    # spaces, controls and invisible characters in front are skipped by some spreadsheets
    seen = (each for each in text if not (each.isspace() or unicodedata.category(each) in ("Cc", "Cf", "Mn")))
    return unicodedata.normalize("NFKC", next(seen, "")).startswith(FORMULA_STARTS)

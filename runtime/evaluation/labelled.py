"""Labelled sets: answers with the marks that a human gave, read from JSONL or CSV."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from domain.decoding import decode
from domain.errors import InvalidInput, UnreadableSubmission
from domain.exam import parse_number
from domain.fields import MAX_TEXT_LENGTH, NO_CHARACTER

MAX_FILE_BYTES = 256 * 1024**2
MAX_ANSWERS = 200_000
MAX_ANSWER_LENGTH = 100_000
#: a column `criterion:ID` holds the human's points for one criterion
CRITERION_COLUMN = "criterion:"

#: what a column may be called without `--map`; the first one that is there counts
FIELDS: Mapping[str, tuple[str, ...]] = {
    "question_id": ("question_id", "qid"),
    "question": ("question", "prompt", "question_text"),
    "reference": ("reference_answers", "reference", "reference_answer", "model_answer", "desired_answer"),
    "answer": ("answer", "student_answer", "response"),
    "answer_id": ("answer_id", "id"),
    "score": ("score", "points", "grade", "mark", "label"),
    "max_points": ("max_points", "maximum", "max_score"),
    "criteria": ("criteria",),
}

_LISTED = 8
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Reading:
    """How a set is to be read: columns by field, what labels are worth, which answers say nothing."""

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)
    skipped_answers: frozenset[str] = frozenset()

    def is_blank(self, answer: str) -> bool:
        """Whether the answer is none: empty, or one of those that stand for it."""
        return not answer or answer.casefold() in {each.strip().casefold() for each in self.skipped_answers}


@dataclass(frozen=True)
class LabelledAnswer:
    """One marked answer; `line` is its place in the file, and texts that the set has not are empty."""

    line: int
    answer_id: str
    question_id: str
    prompt: str
    reference: str
    answer: str
    mark: float
    max_points: float | None
    criteria: Mapping[str, float]


@dataclass(frozen=True)
class LabelledSet:
    """A file's marked answers; `blank` is how many more there were without an answer."""

    name: str
    sha256: str
    answers: tuple[LabelledAnswer, ...]
    blank: int

    def fail(self, answer: LabelledAnswer, reason: str) -> NoReturn:
        """Raise `InvalidInput` for an answer that does not fit."""
        raise InvalidInput(f"{self.name}, line {answer.line}: {reason}.", field="data")


def read_labelled_set(path: Path, reading: Reading) -> LabelledSet:
    """The file's answers; `InvalidInput` names file, line and column of what is wrong, and the way out."""
    content = _content(path)
    rows = _Rows.of(path.name, _text(path.name, content), path.suffix.lower())
    columns = _columns(rows, reading)
    answers: list[LabelledAnswer] = []
    blank = 0
    for line, row in rows.rows:
        cells = _Cells(rows, line, row, columns, reading)
        if reading.is_blank(cells.text("answer", at_most=MAX_ANSWER_LENGTH)):
            blank += 1
        else:
            answers.append(cells.labelled_answer())
    if not answers:
        raise InvalidInput(f"{path.name}: all {blank} answers are blank.", field="data")
    return LabelledSet(path.name, hashlib.sha256(content).hexdigest(), tuple(answers), blank)


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InvalidInput(
            f"{path.name}: {size:,} bytes; the limit is {MAX_FILE_BYTES:,}. Split the set.", field="data"
        )
    return path.read_bytes()


def _text(name: str, content: bytes) -> str:
    if not content.strip():
        raise InvalidInput(f"{name}: the file is empty.", field="data")
    try:
        return decode(content)
    except UnreadableSubmission as error:
        raise InvalidInput(f"{name}: not readable as text. Save it as UTF-8.", field="data") from error


@dataclass(frozen=True)
class _Rows:
    """A file's rows with their lines, and every column that any of them has."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[int, Mapping[str, Any]]]

    @classmethod
    def of(cls, name: str, text: str, suffix: str) -> "_Rows":
        if suffix in (".jsonl", ".ndjson"):
            rows = list(_jsonl_rows(name, text))
        elif suffix in (".csv", ".tsv"):
            rows = list(_csv_rows(name, text))
        else:
            raise InvalidInput(
                f"{name}: the name ends in neither .jsonl (one object a line) nor .csv.", field="data"
            )
        if not rows:
            raise InvalidInput(f"{name}: a header and no answers.", field="data")
        if len(rows) > MAX_ANSWERS:
            raise InvalidInput(
                f"{name}: {len(rows):,} answers; the limit is {MAX_ANSWERS:,}. Split the set.", field="data"
            )
        return cls(name, tuple(dict.fromkeys(column for _, row in rows for column in row)), rows)


def _jsonl_rows(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # not splitlines: a JSON string may hold characters that it takes for the end of a line
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            row = json.loads(written)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{name}, line {line}: no valid JSON: {error}.", field="data") from error
        if not isinstance(row, dict):
            raise InvalidInput(
                f"{name}, line {line}: expected an object with the answer's fields, got {_kind(row)}.",
                field="data",
            )
        yield line, row


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    head = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    csv.field_size_limit(MAX_ANSWER_LENGTH * 10)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            # a quoted cell may go over several lines: the row is named by its first one
            begun, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(name, begun, cells)
                continue
            if len(cells) != len(header):
                raise InvalidInput(
                    f"{name}, line {begun}: {len(cells)} cells under {len(header)} columns. "
                    f"Put cells with {delimiter!r} or quotes in them into double quotes.",
                    field="data",
                )
            yield begun, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InvalidInput(f"{name}, line {line}: no valid CSV: {error}.", field="data") from error


def _header(name: str, line: int, cells: Sequence[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    for column in header:
        if header.count(column) > 1:
            raise InvalidInput(f"{name}, line {line}: column {column!r} is there twice.", field="data")
    return header


def _columns(rows: _Rows, reading: Reading) -> dict[str, str]:
    """The column of every field that the set has."""
    by_name = {_plain(column): column for column in reversed(rows.columns)}
    found = {
        name: by_name[known]
        for name, names in FIELDS.items()
        if (known := next((each for each in names if each in by_name), None))
    }
    for name, column in reading.columns.items():
        if name not in FIELDS:
            raise InvalidInput(f"--map: {name!r} is no field; known: {', '.join(FIELDS)}.", field="map")
        if column not in rows.columns:
            raise InvalidInput(f"{rows.name}: no column {column!r}; {_there(rows)}.", field="map")
        found[name] = column
    if "answer" not in found:
        raise InvalidInput(
            f"{rows.name}: no column 'answer'; {_there(rows)}. Name it: --map answer=COLUMN.", field="map"
        )
    by_criteria = "criteria" in found or any(each.startswith(CRITERION_COLUMN) for each in rows.columns)
    if "score" not in found and not by_criteria:
        raise InvalidInput(
            f"{rows.name}: no column with the human marks; {_there(rows)}. Name it: --map score=COLUMN.",
            field="map",
        )
    return found


def _plain(column: str) -> str:
    return column.strip().casefold().replace(" ", "_")


def _there(rows: _Rows) -> str:
    return f"there are {', '.join(map(repr, rows.columns[:20]))}"


@dataclass(frozen=True)
class _Cells:
    """One row read field by field, with messages that name line and column."""

    rows: _Rows
    line: int
    row: Mapping[str, Any]
    columns: Mapping[str, str]
    reading: Reading

    def labelled_answer(self) -> LabelledAnswer:
        criteria = self._criteria()
        return LabelledAnswer(
            line=self.line,
            answer_id=self.text("answer_id", at_most=500),
            question_id=printable(self.text("question_id", at_most=500)),
            prompt=self.text("question"),
            reference=self.text("reference"),
            answer=self.text("answer", at_most=MAX_ANSWER_LENGTH),
            mark=self._mark(criteria),
            max_points=self._maximum(),
            criteria=criteria,
        )

    def text(self, name: str, *, at_most: int = MAX_TEXT_LENGTH) -> str:
        """The field's text; several texts of a list stand on lines of their own."""
        column = self.columns.get(name)
        value = self.row.get(column) if column is not None else None
        if column is None or value is None:
            return ""
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if isinstance(part, bool) or not isinstance(part, (str, int, float)):
                self._fail(column, f"expected text, got {_kind(part)}")
        text = "\n".join(str(part).strip() for part in parts).strip()
        if len(text) > at_most:
            self._fail(column, f"{len(text):,} characters; the limit is {at_most:,}")
        if NO_CHARACTER.search(text):
            self._fail(column, "holds a NUL or half a character, which is no text")
        return text

    def _mark(self, criteria: Mapping[str, float]) -> float:
        column = self.columns.get("score")
        value = self.row.get(column) if column is not None else None
        if column is None or _is_empty(value):
            if criteria:
                return round(sum(criteria.values()), 6)
            self._fail(column or "score", "no mark; mark the answer, or leave its line out")
        return self._points(column, value)

    def _maximum(self) -> float | None:
        column = self.columns.get("max_points")
        value = self.row.get(column) if column is not None else None
        if column is None or _is_empty(value):
            return None
        maximum = self._number(column, value)
        if maximum <= 0:
            self._fail(column, f"{maximum:g} is no maximum; it must be more than 0")
        return maximum

    def _criteria(self) -> dict[str, float]:
        marked = {
            column.removeprefix(CRITERION_COLUMN).strip(): self._points(column, value)
            for column, value in self.row.items()
            if column.startswith(CRITERION_COLUMN) and not _is_empty(value)
        }
        column = self.columns.get("criteria")
        value = self.row.get(column) if column is not None else None
        if column is None or _is_empty(value):
            return marked
        if not isinstance(value, dict):
            self._fail(column, f"expected an object of points by criterion, got {_kind(value)}")
        return marked | {str(key): self._points(f"{column}.{key}", each) for key, each in value.items()}

    def _points(self, column: str, value: object) -> float:
        label = _label(value)
        known = {_label(name): worth for name, worth in self.reading.labels.items()}
        points = known[label] if label in known else self._number(column, value)
        if points < 0:
            self._fail(column, f"{points:g} is a mark below 0")
        return points

    def _number(self, column: str, value: object) -> float:
        number: float | None = None
        if isinstance(value, str):
            number = parse_number(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number = float(value) if abs(value) < 1e100 else None
        if number is None or not math.isfinite(number):
            self._fail(column, f"{_shown(value)} is no number. {self._way_out(column)}", stop="")
        return number

    def _way_out(self, column: str) -> str:
        """How to say what labels are worth, with those that stand in the column."""
        labels = dict.fromkeys(_label(row.get(column)) for _, row in self.rows.rows)
        words = [each for each in labels if each and parse_number(each) is None]
        shown = ",".join(f"{each}=…" for each in words[:_LISTED])
        return f"If it is a label, say what it is worth: --labels {shown}" if words else "Expected a mark."

    def _fail(self, column: str, reason: str, *, stop: str = ".") -> NoReturn:
        raise InvalidInput(
            f"{self.rows.name}, line {self.line}, column {column!r}: {reason}{stop}", field="data"
        )


def printable(text: str) -> str:
    """The text with a sign for what would not be seen, or would steer a terminal."""
    return "".join(each if each.isprintable() else "\ufffd" for each in " ".join(text.split()))


def _label(value: object) -> str:
    """A label as it is compared: `true` is true, spaces and letter case say nothing."""
    return "" if value is None else str(value).strip().casefold()


def _shown(value: object) -> str:
    return f"{value!r}"[:80] if isinstance(value, str) else _kind(value)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]

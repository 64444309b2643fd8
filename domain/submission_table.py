"""Tables of submissions: a CSV with a row a student and a column a question."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from domain.decoding import decode
from domain.errors import InvalidInput, UnreadableSubmission
from domain.exam import NO_CHARACTER
from domain.labels import Labels

MAX_COLUMNS = 1_000
#: what Python's csv takes by default; a longer cell is a quotation mark that nobody closes
MAX_CELL_LENGTH = csv.field_size_limit()
#: columns that name a student, the surest first
STUDENT_COLUMNS = (
    "student", "student_id", "student id", "studentid", "学号", "學號", "学生", "matrikelnummer", "id number",
    "user id", "userid", "username", "user name", "email address", "email", "e-mail", "id", "姓名",
    "student name", "full name", "name",
)  # fmt: skip

#: what Moodle begins the last row of its exports with: the class's averages, and no student
_FOOTERS = ("overall average", "gesamtdurchschnitt", "总平均分")
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """One line of the table; `number` counts as spreadsheets do: the titles are row 1."""

    number: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class StudentRow:
    """One student's answers, by question id."""

    number: int
    student: str
    answers: dict[str, str]

    @property
    def name(self) -> str:
        """The name of the submission that the row becomes."""
        return f"{self.student}.json"

    @property
    def content(self) -> bytes:
        """The submission; the same row always makes the same bytes."""
        return json.dumps({"answers": self.answers}, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Table:
    """The titles and rows of a CSV file; rows of nothing are left out."""

    titles: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, content: bytes) -> Self:
        """The table in those bytes; raises `UnreadableSubmission`, which names the row at fault."""
        text = decode(content)
        lines = list(_lines(text, _delimiter(text)))
        rows = tuple(
            Row(number, tuple(cells))
            for number, cells in enumerate(lines, start=1)
            if any(map(str.strip, cells))
        )
        if not rows:
            raise UnreadableSubmission("The table has no row.", field="body")
        titles = tuple(title.strip() for title in rows[0].cells)
        if len(titles) > MAX_COLUMNS:
            raise UnreadableSubmission(
                f"The table has {len(titles):,} columns; at most {MAX_COLUMNS:,} are possible.", field="body"
            )
        return cls(titles, rows[1:])

    def column(self, title: str, parameter: str) -> int:
        """The place of the column of that title; `InvalidInput` lists the columns that there are."""
        places = [
            place for place, each in enumerate(self.titles) if each.casefold() == title.strip().casefold()
        ]
        if len(places) == 1:
            return places[0]
        there = "no column" if not places else f"{len(places)} columns"
        raise InvalidInput(
            f"{parameter}: the table has {there} {title.strip()!r}; its columns are {self._listed()}.",
            field=parameter,
        )

    def student_column(self, title: str | None = None) -> int:
        """The place of the column that names the student: the stated one, or one of a usual title.

        A usual one that is empty in every row is passed over where another is filled.
        """
        if title is not None:
            return self.column(title, "student")
        plain = [each.casefold() for each in self.titles]
        usual = [plain.index(known) for known in STUDENT_COLUMNS if plain.count(known) == 1]
        if usual:
            return next(filter(self._is_filled, usual), usual[0])
        raise InvalidInput(
            "student: no column is known to name the student; state it as student=COLUMN. "
            f"The columns are {self._listed()}.",
            field="student",
        )

    def _is_filled(self, place: int) -> bool:
        # a footer's "Overall average" names nobody
        return any(_cell(row, place) and not _is_footer(row, place) for row in self.rows)

    def answer_columns(
        self, prompts: Mapping[str, str], stated: Mapping[str, str] | None = None
    ) -> dict[str, int]:
        """The place of each question's column: the stated one, or the one whose title is the question."""
        stated = stated or {}
        for question_id in stated:
            if question_id not in prompts:
                raise InvalidInput(
                    f"map: the exam has no question {question_id!r}; its questions are {', '.join(prompts)}.",
                    field="map",
                )
        found = self._titled(prompts)
        columns = {
            each: self.column(stated[each], "map") if each in stated else found[each]
            for each in prompts
            if each in stated or each in found
        }
        if not columns:
            raise InvalidInput(
                "map: no column is titled as a question of the exam; state which is which, as in "
                f"map={next(iter(prompts))}=COLUMN. The columns are {self._listed()}.",
                field="map",
            )
        return columns

    def _titled(self, prompts: Mapping[str, str]) -> dict[str, int]:
        labels = Labels(list(prompts))
        by_prompt = {_plain(prompt): index for index, prompt in enumerate(prompts.values())}
        best: dict[str, tuple[int, int]] = {}
        for place, title in enumerate(self.titles):
            rank = labels.rank(title)
            if (index := labels.find(title)) is None:
                rank, index = 4, by_prompt.get(_plain(title))
            if index is not None and title:
                question_id = labels.ids[index]
                best[question_id] = min(best.get(question_id, (rank, place)), (rank, place))
        return {question_id: place for question_id, (_, place) in best.items()}

    def students(self, column: int) -> Iterator[tuple[Row, str]]:
        """Each row with its student, without a footer of averages.

        `InvalidInput` names both rows of a student who is there twice.
        """
        seen: dict[str, int] = {}
        for row in self.rows:
            if _is_footer(row, column):
                continue
            student = _cell(row, column)
            if student and student in seen:
                raise InvalidInput(
                    f"Rows {seen[student]} and {row.number} are of the same student; keep one of them, "
                    "or state a column that tells the two apart as student=COLUMN.",
                    field="student",
                )
            seen[student] = row.number
            yield row, student

    def answers(self, row: Row, columns: Mapping[str, int]) -> dict[str, str]:
        """The row's answers by question id, an empty one where the student wrote nothing."""
        if len(row.cells) > len(self.titles) and any(map(str.strip, row.cells[len(self.titles) :])):
            raise UnreadableSubmission(
                f"The row has {len(row.cells)} cells for {len(self.titles)} columns. Put quotation marks "
                "around answers that hold a delimiter.",
                field="body",
            )
        answers = {each: _cell(row, place) for each, place in columns.items()}
        if any(map(NO_CHARACTER.search, answers.values())):
            raise UnreadableSubmission("The row holds half a character, which is no text.", field="body")
        return answers

    def parts(self, size: int) -> Iterator["Table"]:
        """The table in stretches of so many rows."""
        for start in range(0, len(self.rows), size):
            yield Table(self.titles, self.rows[start : start + size])

    def write(self) -> bytes:
        """The table as CSV in UTF-8, from which `read` reads the same cells; rows are numbered anew."""
        text = io.StringIO()
        csv.writer(text).writerows([self.titles, *(row.cells for row in self.rows)])
        return text.getvalue().encode()

    def _listed(self) -> str:
        shown = [repr(title) for title in self.titles[:_SHOWN]]
        more = len(self.titles) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


#: columns that a message lists
_SHOWN = 50


def _cell(row: Row, place: int) -> str:
    return row.cells[place].strip() if place < len(row.cells) else ""


def _is_footer(row: Row, column: int) -> bool:
    """Whether the row holds averages: it says so first, and no other cell of it names a student."""
    first = next(filter(None, map(str.strip, row.cells)), "")
    return first.casefold() in _FOOTERS and _cell(row, column) in ("", first)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()


def _delimiter(text: str) -> str:
    """What parts the titles into most columns; of two that do, the comma before the semicolon and the tab."""
    widths = [
        len(next(csv.reader(io.StringIO(text[:_TITLES_LENGTH]), delimiter=each), [])) for each in _DELIMITERS
    ]
    return _DELIMITERS[widths.index(max(widths))]


#: titles are sought in so much of the text
_TITLES_LENGTH = 100_000


def _lines(text: str, delimiter: str) -> Iterator[Sequence[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1
    try:
        for cells in reader:
            number += 1
            yield cells
    except csv.Error as error:
        raise UnreadableSubmission(
            f"Row {number} is no CSV: {error}. Save the table as CSV in UTF-8 once more.", field="body"
        ) from error

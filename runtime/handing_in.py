"""Handing in the files of a batch: checked here first, each under its name, tables row by row."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from domain.batch import MAX_FILES
from domain.errors import AssayError, InvalidInput, LimitExceeded
from domain.submission_table import Table
from runtime.client import ApiClient

if TYPE_CHECKING:
    from api.tables import HandIn

_UPLOADS_AT_ONCE = 8
#: a request of so many rows ends well before its time-out, and the bar moves
_ROWS_AT_ONCE = 250
_TABLES = (".csv", ".tsv")
_PARAMETER = re.compile(r"\b(student|map)(?:=|(?=:))")


@dataclass(frozen=True)
class TableColumns:
    """How tables are read: the student's column and `q1=COLUMN` pairs, by default as their titles say."""

    student: str | None = None
    pairs: Sequence[str] = ()


@dataclass(frozen=True)
class ClassTable:
    """A table that has been read as the API will read it: the rows to hand in, and those it will refuse."""

    path: Path
    table: Table
    hand_in: "HandIn"
    pairs: Sequence[str]

    @property
    def refused(self) -> list[str]:
        """The rows that cannot be handed in, a line each."""
        return [_refused(self.path, each.row, each.model_dump()) for each in self.hand_in.answer.refused]

    @property
    def mapping(self) -> dict[str, Any]:
        """Which columns are read as what, for programs."""
        answer = self.hand_in.answer
        return {
            "file": str(self.path),
            "rows": len(self.hand_in.rows),
            "student_column": answer.student_column,
            "columns": answer.columns,
            "questions_without_column": answer.questions_without_column,
        }

    def parameters(self) -> dict[str, str | list[str]]:
        """As the API takes them; the student's column is stated: in a part of the table it may be empty."""
        return {"student": self.hand_in.answer.student_column, "map": list(self.pairs)}


@dataclass(frozen=True)
class Submissions:
    """What is handed in: files, a submission each, and tables with a row each."""

    files: Sequence[Path]
    tables: Sequence[ClassTable]

    @property
    def sizes(self) -> list[dict[str, Any]]:
        """Each submission's name and bytes, as estimates are asked for."""
        files: list[dict[str, Any]] = [
            {"name": path.name, "size_bytes": path.stat().st_size} for path in self.files
        ]
        rows = [row for table in self.tables for row in table.hand_in.rows]
        return files + [
            {"name": row.name, "size_bytes": len("".join(row.answers.values()).encode())} for row in rows
        ]


@dataclass(frozen=True)
class _Step:
    """One request; answers the rows that were refused, in words."""

    size: int
    send: Callable[[], list[str]]


def is_table(path: Path) -> bool:
    """Whether the file is a class's table, by its name."""
    return path.suffix.lower() in _TABLES


def read_submissions(
    files: Sequence[Path],
    prompts: Mapping[str, str],
    columns: TableColumns,
    on_unreadable: Callable[[InvalidInput], None] | None = None,
) -> Submissions:
    """The files as they will be handed in; raises `InvalidInput` for what the API would refuse.

    `prompts` are the questions by id, needed for tables only; `on_unreadable` hears of a table that is
    wrong as a whole, which is then left out.
    """
    refuse_bad_names(files)
    tables = []
    for path in filter(is_table, files):
        try:
            tables.append(_read(path, prompts, columns))
        except InvalidInput as error:
            if on_unreadable is None:
                raise
            on_unreadable(error)
    submissions = Submissions([path for path in files if not is_table(path)], tables)
    _refuse_repeated_names(submissions)
    return submissions


def hand_in(client: ApiClient, batch_id: str, submissions: Submissions, console: Console) -> list[str]:
    """Upload the submissions with a progress bar; answers which rows of tables were refused, a line each."""
    steps = list(_steps(client, batch_id, submissions))
    refused: list[str] = []
    with Progress(console=console, transient=True) as bar, ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool:
        task = bar.add_task("uploading", total=sum(step.size for step in steps))
        for step, lines in zip(steps, pool.map(lambda step: step.send(), steps), strict=True):
            refused += lines
            bar.advance(task, step.size)
    return refused


def abandon(client: ApiClient, batch_id: str, console: Console) -> None:
    """Cancel the batch, or say how: nobody else knows of it."""
    try:
        client.post(f"/v1/batches/{batch_id}/cancel")
    except AssayError:
        console.print(
            f"Batch {batch_id} is left over. Cancel it with: assay cancel {batch_id}", soft_wrap=True
        )


def refuse_bad_names(files: Sequence[Path]) -> None:
    """Raise `InvalidInput` for a name that no submission can have, and where two files have one name."""
    from api.uploads import check_name

    seen: dict[str, Path] = {}
    for path in files:
        try:
            check_name(path.name)
        except InvalidInput as error:
            # as Python writes it: what is wrong with the name is invisible, or is no text
            raise InvalidInput(f"{path.name!a}: {error.message} Rename the file.", field="files") from error
        if path.name in seen:
            raise InvalidInput(
                f"{path} and {seen[path.name]} have the same name; a batch knows its files by name.",
                field="files",
            )
        seen[path.name] = path


def _refuse_repeated_names(submissions: Submissions) -> None:
    """Raise `InvalidInput` where a table's row has the name of a file, or of another table's row."""
    seen = {path.name: str(path) for path in submissions.files}
    for table in submissions.tables:
        for row in table.hand_in.rows:
            here = f"{table.path} row {row.number}"
            if row.name in seen:
                both = f"{here} and {seen[row.name]}"
                raise InvalidInput(
                    f"{both} are of the same student, {row.student!r}; keep one of them.", field="files"
                )
            seen[row.name] = here


def _read(path: Path, prompts: Mapping[str, str], columns: TableColumns) -> ClassTable:
    from api.tables import HandIn, stated_columns

    try:
        content = path.read_bytes()
        read = HandIn.read(content, prompts, columns.student, stated_columns(columns.pairs), MAX_FILES)
    except (InvalidInput, LimitExceeded) as error:
        raise InvalidInput(f"{path}: {_as_options(error.message)}", field=error.field) from error
    if not read.rows:
        raise InvalidInput(f"{path}: {_why_no_row(read)}", field="files")
    return ClassTable(path, Table.read(content), read, columns.pairs)


def _why_no_row(read: "HandIn") -> str:
    refused = read.answer.refused
    if not refused:
        return "the table has titles and no row of a student."
    if not any(each.student for each in refused):
        column = read.answer.student_column
        return f"every row was refused: column {column!r} names no student; try --student COLUMN."
    return f"every row was refused; row {refused[0].row}: {refused[0].message}"


def _as_options(message: str) -> str:
    """The message with the API's parameters as the command line's options."""
    return _PARAMETER.sub(lambda found: f"--{found[1]}" + " " * found[0].endswith("="), message)


def _steps(client: ApiClient, batch_id: str, submissions: Submissions) -> Iterator[_Step]:
    for path in submissions.files:
        yield _Step(1, partial(_upload, client, batch_id, path))
    for table in submissions.tables:
        for part in table.table.parts(_ROWS_AT_ONCE):
            yield _Step(len(part.rows), partial(_send_rows, client, batch_id, table, part))


def _upload(client: ApiClient, batch_id: str, path: Path) -> list[str]:
    client.upload(batch_id, path)
    return []


def _send_rows(client: ApiClient, batch_id: str, table: ClassTable, part: Table) -> list[str]:
    answer = client.hand_in_table(batch_id, part.write(), table.parameters())
    # the API counts the rows of what it was sent
    return [_refused(table.path, part.rows[each["row"] - 2].number, each) for each in answer["refused"]]


def _refused(path: Path, number: int, refusal: Mapping[str, Any]) -> str:
    return f"{path} row {number}: {_as_options(refusal['message'])} [{refusal['code']}]"

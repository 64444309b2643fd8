"""Handing in the files of a batch: each under its name, tables row by row."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from domain.errors import InvalidInput
from domain.submission_table import Table
from runtime.client import ApiClient

_UPLOADS_AT_ONCE = 8
#: a request of so many rows ends well before its time-out, and the bar moves
_ROWS_AT_ONCE = 250
_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class TableColumns:
    """How tables are read: the student's column and `q1=COLUMN` pairs, by default as their titles say."""

    student: str | None = None
    pairs: Sequence[str] = ()

    def parameters(self) -> dict[str, str | list[str]]:
        """As the API takes them."""
        stated: dict[str, str | list[str]] = {"map": list(self.pairs)}
        return stated | ({} if self.student is None else {"student": self.student})


@dataclass(frozen=True)
class _Step:
    """One request; answers the rows that were refused, in words."""

    size: int
    send: Callable[[], list[str]]


def hand_in(
    client: ApiClient, batch_id: str, files: Sequence[Path], columns: TableColumns, console: Console
) -> list[str]:
    """Upload the files with a progress bar; answers what was refused of tables, a line each."""
    refuse_repeated_names(files)
    steps = [step for path in files for step in _steps(client, batch_id, path, columns)]
    refused: list[str] = []
    with Progress(console=console, transient=True) as bar, ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool:
        task = bar.add_task("uploading", total=sum(step.size for step in steps))
        for step, lines in zip(steps, pool.map(lambda step: step.send(), steps), strict=True):
            refused += lines
            bar.advance(task, step.size)
    return refused


def refuse_repeated_names(files: Sequence[Path]) -> None:
    """Raise `InvalidInput` where two files have one name; tables give their rows other names."""
    seen: dict[str, Path] = {}
    for path in files:
        if path.name in seen:
            raise InvalidInput(
                f"{path} and {seen[path.name]} have the same name; a batch knows its files by name.",
                field="files",
            )
        seen[path.name] = path


def _steps(client: ApiClient, batch_id: str, path: Path, columns: TableColumns) -> Iterator[_Step]:
    if path.suffix.lower() not in _TABLES:
        yield _Step(1, partial(_upload, client, batch_id, path))
        return
    table = _read(path, columns)
    for part in table.parts(_ROWS_AT_ONCE):
        yield _Step(len(part.rows), partial(_send_rows, client, batch_id, path, part, columns))


def _read(path: Path, columns: TableColumns) -> Table:
    """The table, checked as a whole: the API sees it in parts."""
    try:
        table = Table.read(path.read_bytes())
        for _ in table.students(table.student_column(columns.student)):
            pass
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}", field=error.field) from error
    if not table.rows:
        raise InvalidInput(f"{path}: the table has titles and no row.", field="files")
    return table


def _upload(client: ApiClient, batch_id: str, path: Path) -> list[str]:
    client.upload(batch_id, path)
    return []


def _send_rows(client: ApiClient, batch_id: str, path: Path, part: Table, columns: TableColumns) -> list[str]:
    answer = client.hand_in_table(batch_id, part.write(), columns.parameters())
    # the API counts the rows of what it was sent
    return [
        f"{path} row {part.rows[each['row'] - 2].number}: {each['message']} [{each['code']}]"
        for each in answer["refused"]
    ]

"""Logs as tables: a header, then a record a line; a quoted field may go on over several lines."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from activities.parsing.fields import FieldNames
from activities.parsing.levels import level_at_start, level_named
from activities.parsing.source import Source
from activities.parsing.splitting import first_lines, lines_of
from activities.parsing.times import Times
from domain.logs import LogFormat, LogLine

_DELIMITERS = ",;\t|"
_SUFFIXES = (".csv", ".tsv")
#: lines that a quoted field may go on over; more is a quote that nobody closed
_MAX_JOINED = 100

Numbered = tuple[int, str]


class CsvReader:
    """Tables; the message is the column of that name, or all columns but those of time and level."""

    format = LogFormat.CSV

    def recognises(self, source: Source) -> bool:
        """The first line names columns, and a message among them or the file a table."""
        lines = first_lines(source.head)
        header = None if len(lines) < 2 else _Table.of(lines[0])
        if header is None or len(header.cells(lines[1]) or ()) < 2:
            return False
        name = (source.member or source.name).lower().removesuffix(".gz").removesuffix(".zst")
        return bool(header.names.message and header.names.time) or name.endswith(_SUFFIXES)

    def read(self, source: Source) -> Iterator[LogLine]:
        """The member's records, each by the number of its first line; the header is a line, too."""
        account, times, table = source.account, Times(source.written_at), None
        for number, text, is_whole in _records(lines_of(source), source.limits.line_characters):
            account.lines += 1
            if table is None:
                table = _Table.of(text) or _Table((), ",")
                yield LogLine(number, text, text, None, None, source.member)
            else:
                cells = table.cells(text) if is_whole else None
                yield table.line(number, text, cells, times, source.member)


def _records(lines: Iterator[Numbered], limit: int) -> Iterator[tuple[int, str, bool]]:
    """Number and text of each record, and whether it is one; lines of a quote that stays open are none."""
    held: list[Numbered] = []
    is_open, length = False, 0
    for number, text in lines:
        held.append((number, text))
        length += len(text)
        is_open ^= text.count('"') % 2 == 1
        if not is_open:
            yield held[0][0], "\n".join(text for _, text in held), True
        elif len(held) < _MAX_JOINED and length < limit:
            continue
        else:
            yield from ((number, text, False) for number, text in held)
        held, is_open, length = [], False, 0
    yield from ((number, text, False) for number, text in held)


@dataclass(frozen=True)
class _Table:
    """A table's columns."""

    columns: tuple[str, ...]
    delimiter: str

    @classmethod
    def of(cls, header: str) -> "_Table | None":
        """The table that a first line begins; `None` where its cells are no names."""
        delimiter = max(_DELIMITERS, key=header.count)
        columns = tuple(cell.strip() for cell in _split(header, delimiter) or ())
        named = all(cell and not cell[0].isdigit() and len(cell) <= 64 for cell in columns)
        return cls(columns, delimiter) if named and len(set(columns)) == len(columns) > 1 else None

    @cached_property
    def names(self) -> FieldNames:
        """Which columns hold what."""
        return FieldNames.among(self.columns)

    def cells(self, text: str) -> list[str] | None:
        """The cells of a record; `None` for what is none."""
        return _split(text, self.delimiter)

    def line(self, number: int, text: str, cells: list[str] | None, times: Times, member: str) -> LogLine:
        """The record as a line."""
        if cells is None or len(cells) < 2:
            return LogLine(number, text, text.strip(), None, level_at_start(text), member)
        values = dict(zip(self.columns, cells, strict=False))
        names = self.names
        at = self._moment(values, times)
        level = level_named(values.pop(names.level, None))
        content = values.get(names.message) or " ".join(f"{name}={value}" for name, value in values.items())
        return LogLine(number, text, content.strip(), at, level or level_at_start(content), member)

    def _moment(self, values: dict[str, str], times: Times) -> datetime | None:
        """The record's time, which may be in two columns, day and clock."""
        first = values.pop(self.names.time, "")
        at = times.in_field(first)
        if at is None and self.names.day:
            at = times.in_field(f"{values.pop(self.names.day, '')} {first}")
        return at


def _split(text: str, delimiter: str) -> list[str] | None:
    try:
        return next(csv.reader([*text.splitlines(keepends=True)], delimiter=delimiter), None)
    except csv.Error:
        return None

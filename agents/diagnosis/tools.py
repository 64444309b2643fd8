"""What a model may look up in the lines of a batch: little at a time, and only in that batch's logs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from domain.diagnosis import BatchSummary
from domain.errors import DocumentInvalid, NotFound, UnreadableLog
from domain.logs import MAX_TEXT_LENGTH, LogFile, LogLine, LogLines, Quote

MAX_LINES_PER_LOOK = 12
#: lines on each side of one that is looked at
REACH = 5
MAX_TERM_LENGTH = 200
MIN_TERM_LENGTH = 2


@dataclass(frozen=True)
class Looked:
    """What a look brought: lines, or why there are none."""

    lines: tuple[Quote, ...]
    problem: str = ""


class FileNames:
    """The short names of a batch's logs in prompts, such as F3: an id costs twenty tokens each time."""

    def __init__(self, summary: BatchSummary, logs: Sequence[LogFile]) -> None:
        known = dict.fromkeys((*(each.file_id for each in logs), *(each.file_id for each in summary.logs)))
        self._names = {file_id: f"F{number}" for number, file_id in enumerate(known, 1)}
        self._ids = {name: file_id for file_id, name in self._names.items()}

    def name(self, file_id: str) -> str:
        """The log's short name; its id where it has none."""
        return self._names.get(file_id, file_id)

    def file_id(self, name: str) -> str | None:
        """The log that is meant, by short name or id; `None` for none of this batch."""
        return self._ids.get(name) or (name if name in self._names else None)


@dataclass
class Looking:
    """Looks at the lines of one batch; the same look is read once in a run."""

    lines: LogLines
    logs: Mapping[str, LogFile]
    names: FileNames
    _seen: dict[str, Looked] = field(default_factory=dict)

    async def __call__(self, look: Mapping[str, Any]) -> Looked:
        """What the look finds; one that cannot be done says why."""
        key = json.dumps(look, sort_keys=True)
        if key not in self._seen:
            self._seen[key] = await self._look(look)
        return self._seen[key]

    async def line(self, file_id: str, member: str, number: int) -> Quote | None:
        """That very line; `None` where there is none."""
        log = self.logs.get(file_id)
        if log is None or number < 1:
            return None
        try:
            around = await self.lines.around(log, number, member=member, reach=0)
        except (NotFound, UnreadableLog, DocumentInvalid):
            return None
        found = [each for each in around if each.number == number and each.member == member]
        return _quote(log, found[0]) if found else None

    async def _look(self, look: Mapping[str, Any]) -> Looked:
        file_id = self.names.file_id(look["file"])
        log = self.logs.get(file_id) if file_id else None
        if log is None:
            return Looked((), "no such file in this batch")
        try:
            found = await self._lines_of(log, look)
        except (NotFound, UnreadableLog, DocumentInvalid):
            return Looked((), "this file cannot be read")
        except ValueError as error:
            return Looked((), str(error))
        lines = tuple(_quote(log, each) for each in found[:MAX_LINES_PER_LOOK])
        return Looked(lines, "" if lines else "no line")

    async def _lines_of(self, log: LogFile, look: Mapping[str, Any]) -> list[LogLine]:
        if look["tool"] == "context":
            if look["line"] < 1:
                raise ValueError("line: lines are counted from 1")
            return await self.lines.around(log, look["line"], member=look["member"], reach=REACH)
        if look["tool"] == "timeline":
            since, until = _time(look["since"], "since"), _time(look["until"], "until")
            return await self.lines.between(log, since, until, limit=MAX_LINES_PER_LOOK)
        terms = [each[:MAX_TERM_LENGTH] for each in look["terms"] if len(each) >= MIN_TERM_LENGTH]
        if not terms:
            raise ValueError(f"terms: expected at least one of {MIN_TERM_LENGTH} characters or more")
        first = max(1, look["line"])
        return await self.lines.search(log, terms, first=first, limit=MAX_LINES_PER_LOOK)


def _quote(log: LogFile, line: LogLine) -> Quote:
    at = line.at.isoformat() if line.at else ""
    return Quote(line.number, line.text[:MAX_TEXT_LENGTH], log.file_id, line.member, at)


def _time(text: str, name: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name}: expected a time such as 2026-01-31T12:00:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)

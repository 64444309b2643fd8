"""One log in, what it holds out: lines read, mined for templates and held against the rules of signals."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from activities.parsing.mining import Miner
from activities.parsing.reader import open_log
from activities.parsing.signals import SignalCollector
from activities.parsing.source import Account, Limits
from domain.logs import LEVELS, MAX_TEMPLATES, Level, LogLine, ParsedLog
from domain.timelines import Timeline

#: who parsed, in every document
PARSER = "assay/1"

#: a position is told once in this time; it is looked for after so many lines, and after each chunk
_TELL_SECONDS = 0.2
_TELL_LINES = 512


@dataclass(frozen=True)
class Position:
    """How far a log is parsed: bytes as stored, lines as read."""

    bytes: int = 0
    lines: int = 0


Tell = Callable[[Position], None]


def parse(
    name: str,
    chunks: Iterable[bytes],
    *,
    written_at: datetime | None = None,
    limits: Limits | None = None,
    max_templates: int = MAX_TEMPLATES,
    tell: Tell = lambda _: None,
) -> ParsedLog:
    """What the log holds; a function of the arguments alone, whichever process is asked and however often.

    `tell` hears of the position five times a second, `chunks` and lines permitting. Memory does not grow with
    the log. Raises `UnreadableLog`, and `LimitExceeded` for a bomb.
    """
    account = Account()
    progress = _Progress(tell, account)
    lines = open_log(name, progress.counted(chunks), account=account, limits=limits, written_at=written_at)
    miner, signals, extent = Miner(max_templates), SignalCollector(account), _Extent()
    for line in lines:
        miner.add(line)
        signals.take(line)
        extent.add(line)
        if miner.lines % _TELL_LINES == 0:
            progress.tell()
    return ParsedLog(
        format=account.format,
        size_bytes=progress.bytes,
        expanded_bytes=account.expanded_bytes,
        lines=miner.lines,
        parsed_lines=miner.lines - miner.left_out,
        first_at=extent.first.isoformat() if extent.first else "",
        last_at=extent.last.isoformat() if extent.last else "",
        levels={level: extent.levels[level] for level in LEVELS if level in extent.levels},
        templates=miner.templates(),
        signals=signals.signals(),
        timeline=extent.timeline.moments(),
        incomplete=" ".join(filter(None, (account.incomplete, _cut(account, limits), _left_out(miner)))),
        parser=PARSER,
    )


def _cut(account: Account, limits: Limits | None) -> str:
    if not account.cut_lines:
        return ""
    most = (limits or Limits()).line_characters
    return f"Of {account.cut_lines:,} lines only the first {most:,} characters were read."


def _left_out(miner: Miner) -> str:
    first = miner.first_left_out
    if first is None:
        return ""
    place = f"line {first.line:,}" + (f" of {first.member}" if first.member else "")
    return (
        f"{miner.left_out:,} of {miner.lines:,} lines follow none of the {miner.limit:,} templates that are "
        f"counted at most; the first is {place}."
    )


class _Progress:
    """Counts the bytes of a log and tells now and then how far it is."""

    def __init__(self, tell: Tell, account: Account) -> None:
        self.bytes = 0
        self._tell = tell
        self._account = account
        self._next = 0.0

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, as they pass."""
        for chunk in chunks:
            self.bytes += len(chunk)
            self.tell()
            yield chunk

    def tell(self) -> None:
        """Tell the position, if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TELL_SECONDS
            self._tell(Position(self.bytes, self._account.lines))


class _Extent:
    """From when to when a log is, how many of its lines are of which level, and when they came."""

    def __init__(self) -> None:
        self.first: datetime | None = None
        self.last: datetime | None = None
        self.levels: dict[Level, int] = {}
        self.timeline = Timeline()

    def add(self, line: LogLine) -> None:
        """Count one more line."""
        if line.level is not None:
            self.levels[line.level] = self.levels.get(line.level, 0) + 1
        if line.at is not None:
            if self.first is None or line.at < self.first:
                self.first = line.at
            if self.last is None or line.at > self.last:
                self.last = line.at
            self.timeline.add(line.at, line.level)

"""Logs of any format read as lines, as a stream: `open_log` is the one way in."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from activities.parsing.source import Account, Limits, Reader, Source
from activities.parsing.text import TextReader
from activities.parsing.unpacking import Unpacking
from domain.errors import UnreadableLog
from domain.logs import LogLine

#: the first that recognises a log reads it; any text is recognised by the last
READERS: tuple[Reader, ...] = (TextReader(),)


def open_log(
    name: str,
    chunks: Iterable[bytes],
    *,
    account: Account | None = None,
    limits: Limits | None = None,
    written_at: datetime | None = None,
) -> Iterator[LogLine]:
    """The lines of a log, packed or not, with memory that does not grow with it.

    `name` is data: it helps where content cannot tell a format. Numbers count from 1 within each member of an
    archive; blank lines are numbered and left out. `account` tells what was read, at any moment. `written_at`
    is when the log was handed in, for times without a year; now by default.
    Raises `UnreadableLog` where no lines can be read, `LimitExceeded` for a bomb.
    """
    account = Account() if account is None else account
    source = Source(iter(chunks), name=name, account=account)
    source.limits = limits or source.limits
    source.written_at = written_at or source.written_at
    return _lines(source)


def _lines(source: Source) -> Iterator[LogLine]:
    account = source.account
    for member in Unpacking(source).members():
        try:
            yield from _read(member)
        except UnreadableLog as error:
            if not member.member:
                raise
            account.fell_short(f"{member.member}: {error.message}")
    if not account.members and account.incomplete:
        raise UnreadableLog(f"No lines can be read. {account.incomplete}", field="file")


def _read(source: Source) -> Iterator[LogLine]:
    reader = next((reader for reader in READERS if reader.recognises(source)), None)
    if reader is None:
        raise UnreadableLog("A binary file of no format that is read here.", field="file")
    before = source.account.lines
    source.account.members += 1
    try:
        yield from reader.read(source)
    finally:
        source.account.formats[reader.format] += source.account.lines - before

"""Logs of any format read as lines, as a stream: `open_log` is the one way in."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from activities.parsing.csv_lines import CsvReader
from activities.parsing.dataflash import DataFlashReader
from activities.parsing.dlt import DltReader
from activities.parsing.json_lines import JsonLinesReader
from activities.parsing.source import Account, Limits, LogReader, Source
from activities.parsing.text import TextReader
from activities.parsing.unpacking import Unpacking
from domain.errors import UnreadableLog
from domain.logs import LogLine

#: the first that recognises a log reads it; whatever is text is recognised by the last
READERS: tuple[LogReader, ...] = (
    DltReader(),
    DataFlashReader(),
    JsonLinesReader(),
    CsvReader(),
    TextReader(),
)
#: formats that are known, and that no reader is there for yet, by their first bytes
_OTHERS = {
    b"\xa3\x95\x80": "an ArduPilot flight log in binary: convert it to text by mavlogdump.py",
    b"ULog\x01\x12\x35": "a PX4 ULog",
    b"\x89MCAP0\r\n": "an MCAP recording",
    b"MDF     ": "an MDF measurement",
    b"DLS\x01": "a DLT stream without storage headers: record it by dlt-receive",
    b"SQLite format 3": "a database",
    b"%PDF-": "a PDF",
}
_READ = "text, JSON lines, CSV, ArduPilot (text) and AUTOSAR DLT"


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
    if not account.lines and account.incomplete:
        raise UnreadableLog(f"No lines can be read. {account.incomplete}", field="file")


def _read(source: Source) -> Iterator[LogLine]:
    reader = _reader_of(source)
    before = source.account.lines
    source.account.members += 1
    source.account.reading = reader.format
    try:
        yield from reader.read(source)
    finally:
        source.account.formats[reader.format] += source.account.lines - before


def _reader_of(source: Source) -> LogReader:
    other = next((name for magic, name in _OTHERS.items() if source.head.startswith(magic)), None)
    reader = next((reader for reader in READERS if reader.recognises(source)), None)
    if other is not None or reader is None:
        what = other or "a binary file of a kind that is not known here"
        raise UnreadableLog(f"This is {what}. Logs of {_READ} are read.", field="file")
    return reader

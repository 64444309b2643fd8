"""What a reader of a log is given, and what is told of the reading: source, limits, account."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import Protocol

from domain.logs import LogFormat, LogLine

#: so much of a log tells its format and its encoding
HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """How much a log may be; a bomb is refused, what is merely large is read in part and said to be."""

    #: a longer line is cut there, between two characters
    line_characters: int = 16_384
    #: unpacked, all members together; more of a packed log is refused, a plain one is read so far
    expanded_bytes: int = 8 * 1024**3
    #: unpacked by packed bytes; logs reach 100, deflate's worst is 1,032
    ratio: int = 500
    #: any log may be so large unpacked, whatever its ratio: a short one of equal lines is no bomb
    free_bytes: int = 16 * 1024**2
    #: archives within archives
    depth: int = 5
    #: files in archives, all archives together
    members: int = 10_000
    #: a zip's bytes, which are laid down in a temporary file: its table of contents stands at the end
    spooled_bytes: int = 2 * 1024**3


@dataclass
class Account:
    """What was read so far; right at any moment between two lines, final at the end."""

    expanded_bytes: int = 0
    lines: int = 0
    #: lines that were longer than the limit
    cut_lines: int = 0
    #: bytes that are no text in the log's encoding, read as U+FFFD
    replaced_characters: int = 0
    #: left out: a file system pads with them what it could not write when the power failed
    nul_characters: int = 0
    #: logs within the file; a plain file is one
    members: int = 0
    formats: Counter[LogFormat] = field(default_factory=Counter)
    #: the format of the member that is being read
    reading: LogFormat = LogFormat.TEXT
    #: why some of it was not read, in words for people
    shortfalls: list[str] = field(default_factory=list)

    @property
    def format(self) -> LogFormat:
        """The format of most of its lines."""
        return self.formats.most_common(1)[0][0] if self.formats else LogFormat.TEXT

    @property
    def incomplete(self) -> str:
        """Why some of it was not read; empty where all was."""
        return " ".join(self.shortfalls)

    def fell_short(self, reason: str) -> None:
        """Note once why something is not read; of more than ten reasons the first ten."""
        if reason not in self.shortfalls and len(self.shortfalls) < 10:
            self.shortfalls.append(reason)


@dataclass
class Source:
    """One member of a log: its bytes, and where to account for them."""

    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    #: its first bytes, at most `HEAD_BYTES`; `chunks` has them, too
    head: bytes = b""
    #: the name within an archive, or empty; data, never a path
    member: str = ""
    #: the name that a person knows it by
    name: str = ""
    account: Account = field(default_factory=Account)
    limits: Limits = field(default_factory=Limits)
    #: when the log was handed in: what its times without a year cannot be after
    written_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class LogReader(Protocol):
    """Reads one format; every reader passes tests/conformance/test_log_readers.py."""

    @property
    def format(self) -> LogFormat:
        """Which format."""
        ...

    def recognises(self, source: Source) -> bool:
        """Whether the head, or the name where content cannot tell, is of this format; takes no chunks."""
        ...

    def read(self, source: Source) -> Iterator[LogLine]:
        """The member's lines, numbered from 1, with constant memory; accounts for lines as they come."""
        ...


def with_head(source: Source, chunks: Iterator[bytes]) -> Source:
    """The source with these bytes, and its head filled from them."""
    first, size = [], 0
    for chunk in chunks:
        first.append(chunk)
        size += len(chunk)
        if size >= HEAD_BYTES:
            break
    source.head = b"".join(first)[:HEAD_BYTES]
    source.chunks = chain(first, chunks)
    return source

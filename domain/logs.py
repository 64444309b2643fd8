"""What parsing makes of one log: templates with counts, signals, and what share of it was read (B6)."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from domain.errors import DocumentInvalid
from domain.states import FileState

#: what a document of a parsed log says it is; a reader refuses others
PARSED_LOG_VERSION = 1
#: stands where lines of one template differ
WILDCARD = "<*>"

MAX_TEMPLATES = 5_000
MAX_SIGNALS = 1_000
MAX_EXAMPLES = 3
#: of an example line or of a template, in characters
MAX_TEXT_LENGTH = 2_000


class LogFormat(StrEnum):
    """How a log is written, whatever it is packed in."""

    TEXT = "text"
    JSON_LINES = "json_lines"
    CSV = "csv"
    #: ArduPilot's flight log as text
    DATAFLASH = "dataflash"
    #: AUTOSAR diagnostic log and trace
    DLT = "dlt"


class Level(StrEnum):
    """How grave its writer called a line; no detector of faults by itself."""

    FATAL = "fatal"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"
    TRACE = "trace"


#: gravest first
LEVELS = tuple(Level)


@dataclass(frozen=True)
class LogLine:
    """One line of a log, its number counted from 1 within its member.

    A record of a binary format is a line, too: `text` is how it is written out. `content` is the message
    without time and level, which templates are made of. `member` is the name within an archive, or empty.
    """

    number: int
    text: str
    content: str
    at: datetime | None = None
    level: Level | None = None
    member: str = ""


@dataclass(frozen=True)
class Quote:
    """A line as evidence: which file and member, which number, and its text, at most `MAX_TEXT_LENGTH`."""

    line: int
    text: str
    file_id: str = ""
    member: str = ""
    #: RFC 3339; empty where the line has no time
    at: str = ""


@dataclass(frozen=True)
class TemplateCount:
    """The lines of one log that follow one template; `template_id` is made of the text alone."""

    template_id: str
    text: str
    count: int
    level: Level | None = None
    #: RFC 3339; empty where no line of it has a time
    first_at: str = ""
    last_at: str = ""
    #: the first of its lines, at most `MAX_EXAMPLES`, of all its members
    examples: tuple[Quote, ...] = ()


@dataclass(frozen=True)
class Signal:
    """A measured value that broke a rule, such as a roll of 178° against a limit of 35°.

    `code` is the rule's, stable; `value` and `bound` are in `unit`; the quotes are the worst lines.
    """

    code: str
    title: str
    level: Level
    count: int
    value: float | None = None
    bound: float | None = None
    unit: str = ""
    quotes: tuple[Quote, ...] = ()
    #: what was found beside the value, in words
    detail: str = ""


@dataclass(frozen=True)
class Moment:
    """One stretch of time, as a chart has it: lines by level from `at` on; stretches without lines are none.

    `at` is RFC 3339. `domain.timelines.Timeline` makes them, in stretches as wide as they have to be.
    """

    at: str
    lines: int
    levels: dict[Level, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ParsedLog:
    """What parsing found in one log; the document that a worker of the queue `parsing` writes (B3.3).

    `parsed_lines` of `lines` are counted by the templates: the rest was too much to read, and
    `incomplete` says why, in words for people (X28).
    """

    format: LogFormat
    #: as stored, and unpacked
    size_bytes: int
    expanded_bytes: int
    lines: int
    parsed_lines: int
    first_at: str = ""
    last_at: str = ""
    levels: dict[Level, int] = field(default_factory=dict)
    templates: tuple[TemplateCount, ...] = ()
    signals: tuple[Signal, ...] = ()
    incomplete: str = ""
    #: who parsed it, such as `assay/1`
    parser: str = ""
    #: lines that have a time, in at most `domain.timelines.MAX_MOMENTS`; empty where a worker counts none
    timeline: tuple[Moment, ...] = ()
    version: int = PARSED_LOG_VERSION

    @property
    def coverage(self) -> float:
        """The share of the lines that the templates count."""
        return self.parsed_lines / self.lines if self.lines else 1.0


@dataclass(frozen=True)
class LogFile:
    """One log of a batch, as the gathering and the tools of the agent find it."""

    file_id: str
    name: str
    object_key: str
    size_bytes: int
    #: the document of its `ParsedLog`
    parsed_key: str = ""
    vehicle_id: str = ""
    vin: str = ""


class LogLines(Protocol):
    """The lines of a batch's logs, for whoever looks closer; each answer is bounded."""

    async def search(
        self, log: LogFile, terms: Sequence[str], *, first: int = 1, limit: int = 20
    ) -> list[LogLine]:
        """The first lines from number `first` on that hold one of the terms, whatever their case."""
        ...

    async def around(self, log: LogFile, line: int, *, member: str = "", reach: int = 5) -> list[LogLine]:
        """The line and its neighbours."""
        ...

    async def between(self, log: LogFile, since: datetime, until: datetime, *, limit: int) -> list[LogLine]:
        """The first lines of that stretch of time, both ends included."""
        ...

    def read(self, log: LogFile) -> AsyncIterator[LogLine]:
        """All lines, unpacked and decoded as parsing sees them."""
        ...


def check_parsed_log(parsed: ParsedLog, *, lines: int, parsed_lines: int) -> None:
    """Raise `DocumentInvalid` unless the document is of this version, in its bounds, and has those counts."""
    wrong = next((field for field, right in _rules(parsed, lines, parsed_lines) if not right), None)
    if wrong is not None:
        raise DocumentInvalid(f"ParsedLog: {wrong}: out of bounds, or not what was told.", field=wrong)


def _rules(parsed: ParsedLog, lines: int, parsed_lines: int) -> Iterator[tuple[str, bool]]:
    yield "version", parsed.version == PARSED_LOG_VERSION
    yield "lines", parsed.lines == lines
    yield "parsed_lines", parsed.parsed_lines == parsed_lines and 0 <= parsed_lines <= lines
    yield "expanded_bytes", parsed.expanded_bytes >= 0
    counts = [template.count for template in parsed.templates]
    yield "templates", len(counts) <= MAX_TEMPLATES and all(count > 0 for count in counts)
    # of more templates than may be told the largest are
    yield "templates.count", sum(counts) <= parsed_lines
    yield "signals", len(parsed.signals) <= MAX_SIGNALS
    yield "levels", all(count >= 0 for count in parsed.levels.values())
    yield "first_at", _is_time(parsed.first_at)
    yield "last_at", _is_time(parsed.last_at)


def _is_time(text: str) -> bool:
    try:
        return not text or datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


# --- the way of a log through its batch -------------------------------------------------------------


@dataclass(frozen=True)
class LogStart:
    """A run of a log's workflow begins."""

    file_id: str
    generation: int
    workflow_id: str
    run_id: str
    first_execution_run_id: str


@dataclass(frozen=True)
class QueuedLog:
    """Where a log's bytes are; `state` is final where it had ended before."""

    name: str
    object_key: str
    size_bytes: int
    #: RFC 3339: when it was handed in
    written_at: str
    state: FileState


@dataclass(frozen=True)
class KeptLog:
    """Where the document of a parsed log is kept."""

    parsed_key: str
    parsed_sha256: str


class Logs(Protocol):
    """Logs on their way to being parsed; each repetition is a no-op."""

    async def begin(self, start: LogStart) -> QueuedLog:
        """Mark the log running, unless it has ended; where its bytes are. Raises `NotFound`."""
        ...

    async def record(self, file_id: str, generation: int, kept: KeptLog, parsed: ParsedLog) -> None:
        """The log's figures, its final state and its event, in one transaction.

        Raises `SagaStepRefused` for a file that has ended otherwise.
        """
        ...

    async def parsed(self, batch_id: str) -> list[tuple[LogFile, str]]:
        """The batch's parsed logs in the order of their ordinals, each with its document's SHA-256."""
        ...

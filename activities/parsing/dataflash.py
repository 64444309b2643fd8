"""ArduPilot's flight logs as text: records whose fields the log itself defines (`FMT`)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import yaml

from activities.parsing.levels import level_at_start
from activities.parsing.source import Source
from activities.parsing.splitting import lines_of
from domain.logs import Level, LogFormat, LogLine

_DEFINITION = re.compile(rb"^FMT, ?\d+, ?\d+, ?\w+, ?\w*, ?", re.MULTILINE)
_CODES: dict[str, Any] = yaml.safe_load((files(__package__) / "dataflash.yaml").read_text("utf-8"))
#: by the number as it is written
_ERRORS = {str(number): (error["name"], error["title"]) for number, error in _CODES["errors"].items()}
_EVENTS = {str(number): name for number, name in _CODES["events"].items()}
_LONG_NUMBER = 6
#: kinds of messages, at most: a log of garbage must not define without end
_MAX_DEFINITIONS = 1_000
_GPS_EPOCH = datetime(1980, 1, 6, tzinfo=UTC)
#: seconds by which GPS is ahead of UTC, the newest first
_LEAP_SECONDS = (
    (datetime(2017, 1, 1, tzinfo=UTC), 18),
    (datetime(2015, 7, 1, tzinfo=UTC), 17),
    (datetime(2012, 7, 1, tzinfo=UTC), 16),
    (_GPS_EPOCH, 15),
)
_DEFINITION_FIELDS = 5


@dataclass(frozen=True)
class Record:
    """One record: its kind, such as `ATT`, and its fields by the names that the log defines."""

    kind: str
    fields: dict[str, str]

    def number(self, name: str) -> float | None:
        """The field as a number, NaN among them; `None` where it is absent or none."""
        try:
            return float(self.fields[name])
        except (KeyError, ValueError):
            return None


@dataclass
class Records:
    """Reads the records of one log, line by line."""

    definitions: dict[str, list[str]] = field(default_factory=dict)

    def read(self, line: str) -> Record | None:
        """The line's record; `None` for a definition, and for what has none."""
        kind, *values = [value.strip() for value in line.split(",")]
        if kind == "FMT":
            self._define(values)
            return None
        names = self.definitions.get(kind)
        return None if names is None else Record(kind, dict(zip(names, values, strict=False)))

    def _define(self, values: list[str]) -> None:
        if len(values) >= _DEFINITION_FIELDS - 1 and len(self.definitions) < _MAX_DEFINITIONS:
            self.definitions[values[2]] = values[4:]


def error_named(record: Record) -> tuple[str, str, bool]:
    """Name and title of an ERR record's subsystem, and whether it says that the error is over."""
    number = record.fields.get("Subsys", "")
    name, title = _ERRORS.get(number) or (f"SUBSYSTEM_{_plain(number)}", "unknown subsystem")
    return name, title, record.fields.get("ECode") == "0"


def _plain(number: str) -> str:
    return number if number.isascii() and number.isdecimal() and len(number) < _LONG_NUMBER else "UNKNOWN"


class DataFlashReader:
    """Flight logs; a measurement's message is its kind alone, an event's says what happened."""

    format = LogFormat.DATAFLASH

    def recognises(self, source: Source) -> bool:
        """Definitions of messages stand near the beginning of every flight log."""
        return len(_DEFINITION.findall(source.head)) > 1

    def read(self, source: Source) -> Iterator[LogLine]:
        """The member's records."""
        records, clock, account = Records(), _Clock(), source.account
        for number, text in lines_of(source):
            account.lines += 1
            record = records.read(text)
            if record is None:
                content = "FMT" if text.startswith("FMT") else text.strip()
                yield LogLine(number, text, content, clock.now, None, source.member)
            else:
                at = clock.of(record)
                yield LogLine(number, text, _content(record), at, _level(record), source.member)


def _content(record: Record) -> str:
    fields = record.fields
    if record.kind == "ERR":
        name, title, is_over = error_named(record)
        return f"ERR {name}: {title}, " + ("over" if is_over else f"code {fields.get('ECode')}")
    if record.kind == "EV":
        return f"EV {_EVENTS.get(number := fields.get('Id', ''), number)}"
    if record.kind in ("MSG", "MODE"):
        return f"{record.kind} {fields.get('Message') or fields.get('Mode') or ''}".strip()
    return record.kind


def _level(record: Record) -> Level | None:
    if record.kind == "ERR":
        return Level.INFO if error_named(record)[2] else Level.ERROR
    if record.kind == "MSG":
        return level_at_start(record.fields.get("Message", "")) or Level.INFO
    return Level.INFO if record.kind in ("EV", "MODE") else None


@dataclass
class _Clock:
    """The time of a log's records: what GPS said last, and the board's clock from there on."""

    now: datetime | None = None
    _started: datetime | None = None

    def of(self, record: Record) -> datetime | None:
        """The record's moment; `None` before the first fix."""
        ticks = record.number("TimeUS") if "TimeUS" in record.fields else None
        if record.kind == "GPS" and (fixed := _gps_time(record)) is not None:
            self.now = fixed
            self._started = None if ticks is None else _moved(fixed, -ticks)
        elif ticks is not None and self._started is not None:
            self.now = _moved(self._started, ticks) or self.now
        return self.now


def _gps_time(record: Record) -> datetime | None:
    week = record.number("Week") or record.number("GWk")
    milliseconds = record.number("GMS") if "GMS" in record.fields else record.number("TimeMS")
    if not week or milliseconds is None:
        return None
    at = _moved(_GPS_EPOCH, (week * 7 * 86_400_000 + milliseconds) * 1000)
    return (
        None if at is None else at - timedelta(seconds=next(n for since, n in _LEAP_SECONDS if at >= since))
    )


def _moved(moment: datetime, microseconds: float) -> datetime | None:
    try:
        return moment + timedelta(microseconds=microseconds)
    except (OverflowError, ValueError):  # a number of garbage, or NaN
        return None

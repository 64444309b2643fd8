"""Times as logs write them, as moments in UTC.

A time without an offset is taken as UTC. One without a year has the year that makes it no later than the
log was handed in, and the next one after its December has become January. One that counts from a start
that nobody knows, such as `[   12.345]`, counts from 1970, as a machine's clock does before it is set.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

_MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_NUMBERS = re.compile(r"\d+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEW_YEAR_MONTHS = 6
#: clocks of machines differ a little from the one of whoever receives their logs
_TOLERANCE = timedelta(days=2)


@dataclass
class Years:
    """Finds the year of times that are written without one, in the order of their lines."""

    written_at: datetime
    _year: int = 0
    _month: int = 0

    def of(self, month: int, day: int) -> int:
        """The year of the next line's date."""
        if not self._year:
            self._year = self._latest(month, day)
        elif self._month - month > _NEW_YEAR_MONTHS:
            self._year += 1
        elif month - self._month > _NEW_YEAR_MONTHS:
            # a line of December that comes late, after one of January
            return self._year - 1
        self._month = month
        return self._year

    def _latest(self, month: int, day: int) -> int:
        end = self.written_at + _TOLERANCE
        return end.year if (month, day) <= (end.month, end.day) else end.year - 1


Read = Callable[[str, Years], datetime]


@dataclass(frozen=True)
class TimeLayout:
    """One way to write a time: a pattern without groups, and what reads a text that it matches.

    `read` raises `ValueError` or `OverflowError` for a text such as the 31st of February.
    """

    name: str
    pattern: str
    read: Read


def _iso(text: str, _: Years) -> datetime:
    """What `fromisoformat` reads, which is much."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _iso_like(text: str, years: Years) -> datetime:
    return _iso(
        text.replace("/", "-").replace(" UTC", "Z").replace("_", " ").replace(" +", "+").replace(" -", "-"),
        years,
    )


def _numbers(text: str, _: Years) -> datetime:
    """Year, month, day, hour, minute, second, fraction, whatever stands between."""
    year, month, day, hour, minute, second, *fraction = _NUMBERS.findall(text)
    return datetime(
        int(year), int(month), int(day), int(hour), int(minute), int(second), _microseconds(*fraction), UTC
    )


def _compact(text: str, years: Years) -> datetime:
    """`081109 203615`, `20171223-22:15:29:606`: the date in one piece, of two or four digits a year."""
    date, time = (f"20{text[:6]}", text[7:]) if not text[6].isdigit() else (text[:8], text[9:])
    if time.count(":") > 2:
        time = time.replace(":", ".").replace(".", ":", 2)
    return _iso(f"{date} {time}", years)


def _two_digit_year(text: str, years: Years) -> datetime:
    return _numbers(f"20{text}", years)


def _month_and_day(text: str, years: Years) -> datetime:
    return _iso(f"{years.of(int(text[:2]), int(text[3:5]))}-{text}", years)


def _glog(text: str, years: Years) -> datetime:
    return _month_and_day(f"{text[:2]}-{text[2:]}", years)


def _syslog(text: str, years: Years) -> datetime:
    month, day = _MONTHS[text[:3]], int(text[4:6])
    return datetime(
        years.of(month, day), month, day, int(text[7:9]), int(text[10:12]), int(text[13:15]),
        _microseconds(text[16:]), UTC,
    )  # fmt: skip


def _dated(text: str, years: Years) -> datetime:
    """`Sun Dec 04 04:47:44 2005`, as of C and Apache."""
    _, month, day, time, year = text.split()
    return _numbers(f"{year}-{_MONTHS[month]}-{day} {time}", years)


def _access(text: str, years: Years) -> datetime:
    """`10/Oct/2000:13:55:36 -0700`, of web servers."""
    date, _, offset = text.partition(" ")
    day, month, rest = date.split("/")
    year, _, time = rest.partition(":")
    return _iso(f"{year}-{_MONTHS[month]:02}-{day} {time}{offset}", years)


def _since_epoch(text: str, _: Years) -> datetime:
    """Seconds, milliseconds, microseconds or nanoseconds, by the number of digits."""
    whole, fraction = _split(text)
    microseconds = int(whole[:10]) * 1_000_000 + _microseconds(whole[10:] or fraction)
    return _EPOCH + timedelta(microseconds=microseconds)


def _since_start(text: str, _: Years) -> datetime:
    whole, fraction = _split(text.strip("[] "))
    return _EPOCH + timedelta(seconds=int(whole), microseconds=_microseconds(fraction))


def _split(number: str) -> tuple[str, str]:
    whole, _, fraction = number.partition(".")
    return whole, fraction


def _microseconds(fraction: str = "", *_: str) -> int:
    return int(fraction[:6].ljust(6, "0")) if fraction else 0


_DATE = r"\d{4}-\d\d-\d\d"
_TIME = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?+"
_MONTH = f"(?:{'|'.join(_MONTH_NAMES)})"
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"

#: the more exact before the less: the first that matches is taken
TIME_LAYOUTS = (
    TimeLayout("iso", rf"{_DATE}[T ]{_TIME}(?:Z|[+-]\d\d:?\d\d)?(?!\d| UTC\b| [+-]\d\d:?\d\d\b)", _iso),
    TimeLayout(
        "iso_like", rf"\d{{4}}[-/]\d\d[-/]\d\d[T _]{_TIME}(?:Z| ?UTC| ?[+-]\d\d:?\d\d)?(?!\d)", _iso_like
    ),
    TimeLayout("bgl", rf"{_DATE}-\d\d\.\d\d\.\d\d\.\d{{1,6}}(?!\d)", _numbers),
    TimeLayout("dotted", rf"\d{{4}}\.\d\d\.\d\d[ -]{_TIME}(?!\d)", _numbers),
    TimeLayout(
        "chinese", r"\d{4}年\d{1,2}月\d{1,2}日\s?\d{1,2}[时:]\d\d[分:]\d\d(?:秒|\.\d{1,6})?", _numbers
    ),
    TimeLayout("access", rf"\d\d/{_MONTH}/\d{{4}}:\d\d:\d\d:\d\d [+-]\d{{4}}", _access),
    TimeLayout("dated", rf"{_DAY} {_MONTH} [ \d]\d {_TIME} \d{{4}}(?!\d)", _dated),
    TimeLayout("syslog", rf"{_MONTH} [ \d]\d {_TIME}(?!\d)", _syslog),
    TimeLayout("android", rf"\d\d-\d\d {_TIME}(?!\d)", _month_and_day),
    TimeLayout("glog", rf"(?<=[IWEF])\d{{4}} {_TIME}(?!\d)", _glog),
    TimeLayout("short", rf"\d\d/\d\d/\d\d {_TIME}(?!\d)", _two_digit_year),
    TimeLayout("compact", r"\d{6} \d{6}(?!\d)|\d{8}[-T _]\d\d:?\d\d:?\d\d(?:[.,:]\d{1,6})?(?!\d)", _compact),
    TimeLayout("epoch", r"1\d{9}(?:\d{3}|\d{6}|\d{9}|\.\d{1,9})?(?![\d.])", _since_epoch),
    TimeLayout("uptime", r"\[ {0,10}\d{1,8}\.\d{3,9}\]", _since_start),
)


@dataclass
class Times:
    """Reads the times of one log, line by line; remembers which layout it has."""

    written_at: datetime
    years: Years = field(init=False)
    _last: tuple[str, datetime | None] = ("", None)

    def __post_init__(self) -> None:
        self.years = Years(self.written_at)
        self._layouts = [(re.compile(layout.pattern), layout) for layout in TIME_LAYOUTS]

    def read(self, layout: TimeLayout, text: str) -> datetime | None:
        """The moment of a text that the layout matched; `None` for one such as the 31st of February."""
        if self._last[0] == text:
            return self._last[1]
        try:
            at = layout.read(text, self.years)
        except (ValueError, OverflowError):
            at = None
        self._last = (text, at)
        return at

    def in_field(self, value: object) -> datetime | None:
        """The moment that a field of its own holds, as text or as a number since the epoch."""
        text = str(value).strip() if isinstance(value, str | int | float) else ""
        for position, (pattern, layout) in enumerate(self._layouts):
            if pattern.fullmatch(text):
                self._layouts.insert(0, self._layouts.pop(position))
                return self.read(layout, text)
        return None

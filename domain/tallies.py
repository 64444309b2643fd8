"""Counting over the logs of a batch, exactly and in bounded memory, whatever order they come in."""

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from domain.anomalies import GRAVE, Spread
from domain.diagnosis import TOP_LOGS, TOP_PLACES, FileSummary
from domain.logs import LEVELS, MAX_EXAMPLES, Level, LogFile, ParsedLog, Quote, Signal, TemplateCount
from domain.timelines import Timeline

#: templates of one side that are followed; of more the grave ones stay, then a choice by their digests,
#: which is the same in any order of the logs
MAX_FOLLOWED = 10_000
#: vehicles that the lines of one template are counted by; of more a choice by their digests
MAX_PLACES_COUNTED = 128
#: of a quote in a summary, in characters; the line itself may be longer
MAX_QUOTE_LENGTH = 400

_RANKS = {level: rank for rank, level in enumerate(LEVELS)}
Key = TypeVar("Key")


@dataclass(slots=True)
class Place:
    """A vehicle, or a log that names none; templates are counted by it."""

    index: int
    key: str
    vehicle_id: str = ""
    vin: str = ""
    files: int = 0
    lines: int = 0
    parsed_lines: int = 0
    levels: dict[Level, int] = field(default_factory=dict)
    digest: bytes = b""

    def take(self, log: LogFile, parsed: ParsedLog) -> None:
        self.vin = max(self.vin, log.vin)
        self.files += 1
        self.lines += parsed.lines
        self.parsed_lines += parsed.parsed_lines
        add_counts(self.levels, parsed.levels)


class Census:
    """The batch's vehicles and logs in figures."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.by_index: list[Place] = []
        self.timeline = Timeline()
        self.levels: dict[Level, int] = {}
        self.expanded_bytes = 0
        self.incomplete_logs = 0
        self.span = Span()
        # the least interesting first, to be pushed out
        self._logs: list[tuple[tuple[int, ...], str, FileSummary]] = []

    def take(self, log: LogFile, parsed: ParsedLog) -> Place:
        place = self._place(log)
        place.take(log, parsed)
        add_counts(self.levels, parsed.levels)
        self.expanded_bytes += parsed.expanded_bytes
        self.incomplete_logs += bool(parsed.incomplete)
        self.span.take(parsed.first_at, parsed.last_at)
        self.timeline.add_moments(parsed.timeline)
        self._keep(log, parsed)
        return place

    def vehicles(self) -> list[list[Place]]:
        """The places, each a vehicle of its own, and those together that name none."""
        named = [[place] for place in self.by_index if place.vehicle_id]
        unnamed = [place for place in self.by_index if not place.vehicle_id]
        return [*named, unnamed] if unnamed else named

    def logs(self) -> tuple[FileSummary, ...]:
        """Those with the most grave lines first."""
        return tuple(entry[-1] for entry in sorted(self._logs, key=lambda entry: entry[:2], reverse=True))

    def _place(self, log: LogFile) -> Place:
        key = log.vehicle_id or log.vin or f"\0{log.file_id}"
        place = self.places.get(key)
        if place is None:
            digest = hashlib.sha256(key.encode()).digest()[:8]
            vehicle = log.vehicle_id or log.vin
            place = Place(len(self.by_index), key, vehicle, log.vin, digest=digest)
            self.places[key] = place
            self.by_index.append(place)
        return place

    def _keep(self, log: LogFile, parsed: ParsedLog) -> None:
        interest = (*(parsed.levels.get(level, 0) for level in LEVELS[:3]), parsed.lines)
        entry = (interest, log.file_id, _file_summary(log, parsed))
        if len(self._logs) < TOP_LOGS:
            heapq.heappush(self._logs, entry)
        elif entry[:2] > self._logs[0][:2]:
            heapq.heapreplace(self._logs, entry)


@dataclass(slots=True)
class Span:
    """The first and the last of moments."""

    first: datetime | None = None
    last: datetime | None = None

    def take(self, first_at: str, last_at: str) -> None:
        if first_at:
            first = _moment(first_at)
            self.first = first if self.first is None else min(self.first, first)
        if last_at:
            last = _moment(last_at)
            self.last = last if self.last is None else max(self.last, last)

    def join(self, other: "Span") -> None:
        firsts = [each for each in (self.first, other.first) if each is not None]
        lasts = [each for each in (self.last, other.last) if each is not None]
        self.first, self.last = min(firsts, default=None), max(lasts, default=None)

    def texts(self) -> tuple[str, str]:
        return (self.first.isoformat() if self.first else "", self.last.isoformat() if self.last else "")


@dataclass(slots=True)
class Tally:
    """One template, or one signal, over logs; sets of logs and places are bits of a number."""

    text: str
    template_id: str = ""
    level: Level | None = None
    count: int = 0
    squares: int = 0
    occurrences: int = 0
    peak_rate: float = 0.0
    peak_count: int = 0
    file_bits: int = 0
    place_bits: int = 0
    span: Span = field(default_factory=Span)
    #: lines by place, of at most `MAX_PLACES_COUNTED`
    by_place: dict[int, int] = field(default_factory=dict)
    #: the greatest digest among them, once they are as many
    farthest: bytes = b""
    #: the logs with the most lines, least first, at most `TOP_PLACES`
    top_files: list[tuple[int, str]] = field(default_factory=list)
    #: in the order they are shown, at most `MAX_EXAMPLES`: the first of several logs before several of one
    quotes: list[tuple[tuple[float, str, int, str], Quote]] = field(default_factory=list)
    #: the signal at its worst
    worst: Signal | None = None

    def take(self, count: int, level: Level | None, log_lines: int, file_index: int, file_id: str) -> None:
        self.count += count
        if level is not self.level:
            self.level = _graver(self.level, level)
        self.squares += count * count
        self.occurrences += count.bit_length()
        rate = 1000 * count / max(1, count, log_lines)
        self.peak_rate, self.peak_count = max((self.peak_rate, self.peak_count), (rate, count))
        self.file_bits |= 1 << file_index
        self._take_file((count, file_id))

    def take_place(self, place: Place, count: int, places: Sequence[Place]) -> None:
        self.place_bits |= 1 << place.index
        if place.index in self.by_place:
            self.by_place[place.index] += count
        elif len(self.by_place) < MAX_PLACES_COUNTED or place.digest < self.farthest:
            self.by_place[place.index] = count
            self._choose_places(places)

    def take_quotes(self, quotes: Iterable[tuple[float, Quote]], file_id: str) -> None:
        for rank, quote in quotes:
            key = (rank, file_id, quote.line, quote.member)
            if len(self.quotes) < MAX_EXAMPLES or key < self.quotes[-1][0]:
                kept = replace(quote, file_id=file_id, text=quote.text[:MAX_QUOTE_LENGTH])
                self._take_quote((key, kept))

    def take_worst(self, signal: Signal) -> None:
        if self.worst is None or _badness(signal) > _badness(self.worst):
            self.worst = replace(signal, quotes=())

    def join(self, other: "Tally", places: Sequence[Place]) -> None:
        """Take all of another template that says the same.

        Counts, logs and places stay exact. The spread is that of the parts: where one log has both, it is
        taken for a little more even than it is.
        """
        if other.text == self.text:
            self.template_id = min(filter(None, (self.template_id, other.template_id)), default="")
        self.level = _graver(self.level, other.level)
        self.count += other.count
        self.squares += other.squares
        self.occurrences += other.occurrences
        peak = (other.peak_rate, other.peak_count)
        self.peak_rate, self.peak_count = max((self.peak_rate, self.peak_count), peak)
        self.file_bits |= other.file_bits
        self.place_bits |= other.place_bits
        self.span.join(other.span)
        for index, count in other.by_place.items():
            self.by_place[index] = self.by_place.get(index, 0) + count
        self._choose_places(places)
        self._join_files(other.top_files)
        for quote in other.quotes:
            self._take_quote(quote)

    @property
    def files(self) -> int:
        return self.file_bits.bit_count()

    @property
    def places(self) -> int:
        return self.place_bits.bit_count()

    def place_indexes(self) -> Iterator[int]:
        return (index for index, bit in enumerate(reversed(f"{self.place_bits:b}")) if bit == "1")

    @property
    def spread(self) -> Spread:
        return Spread(self.count, self.squares, self.files, self.occurrences, self.peak_rate, self.peak_count)

    def _take_file(self, entry: tuple[int, str]) -> None:
        if len(self.top_files) < TOP_PLACES:
            heapq.heappush(self.top_files, entry)
        elif entry > self.top_files[0]:
            heapq.heapreplace(self.top_files, entry)

    def _join_files(self, others: Iterable[tuple[int, str]]) -> None:
        counts = {file_id: count for count, file_id in self.top_files}
        for count, file_id in others:
            counts[file_id] = counts.get(file_id, 0) + count
        self.top_files = []
        for file_id, count in counts.items():
            self._take_file((count, file_id))

    def _take_quote(self, entry: tuple[tuple[float, str, int, str], Quote]) -> None:
        self.quotes.append(entry)
        self.quotes.sort(key=lambda each: each[0])
        del self.quotes[MAX_EXAMPLES:]

    def _choose_places(self, places: Sequence[Place]) -> None:
        if len(self.by_place) >= MAX_PLACES_COUNTED:
            nearest = sorted(self.by_place, key=lambda index: places[index].digest)[:MAX_PLACES_COUNTED]
            self.by_place = {index: self.by_place[index] for index in nearest}
            self.farthest = places[nearest[-1]].digest


class Side:
    """Templates and signals of the batch, or of its baseline."""

    def __init__(self) -> None:
        self.files = 0
        self.lines = 0
        self.parsed_lines = 0
        self.signals: dict[str, Tally] = {}
        self.places: list[Place] = []
        # a level of its own in the key: what is kept never depends on what came before
        self._tallies: dict[tuple[Level | None, str], Tally] = {}
        # the last in the order first, to be pushed out
        self._order: list[_Last] = []

    def take(self, log: LogFile, parsed: ParsedLog, place: Place | None) -> None:
        """Count one log; of a baseline neither vehicles nor quotes are asked for."""
        if place is not None and place.index == len(self.places):
            self.places.append(place)
        for template in parsed.templates:
            tally = self._tally(template)
            if tally is not None:
                self._count(tally, template, log, parsed, place)
        for signal in parsed.signals:
            self._count_signal(signal, log, parsed, place)
        self.files += 1
        self.lines += parsed.lines
        self.parsed_lines += parsed.parsed_lines

    def canonical(self, texts: dict[str, str]) -> dict[str, Tally]:
        """The tallies by their canonical texts."""
        merged: dict[str, Tally] = {}
        # in an order of its own: where a list is cut between two joins, the order matters
        for tally in sorted(self._tallies.values(), key=lambda each: (each.text, _rank(each.level))):
            text = texts[tally.text]
            merged.setdefault(text, Tally(text)).join(tally, self.places)
        return merged

    def texts(self) -> set[str]:
        return {tally.text for tally in self._tallies.values()}

    def _tally(self, template: TemplateCount) -> Tally | None:
        key = (template.level, template.text)
        tally = self._tallies.get(key)
        if tally is None and (len(self._tallies) < MAX_FOLLOWED or _Last.of(key) > self._order[0]):
            tally = self._tallies[key] = Tally(template.text)
            heapq.heappush(self._order, _Last.of(key))
            if len(self._tallies) > MAX_FOLLOWED:
                del self._tallies[heapq.heappop(self._order).key]
        return tally

    def _count(
        self, tally: Tally, template: TemplateCount, log: LogFile, parsed: ParsedLog, place: Place | None
    ) -> None:
        tally.take(template.count, template.level, parsed.parsed_lines, self.files, log.file_id)
        # another program may make its ids in another way: one of them is taken in any order
        tally.template_id = min(tally.template_id or template.template_id, template.template_id)
        if place is not None:
            tally.span.take(template.first_at, template.last_at)
            tally.take_place(place, template.count, self.places)
            tally.take_quotes(((rank, each) for rank, each in enumerate(template.examples)), log.file_id)

    def _count_signal(self, signal: Signal, log: LogFile, parsed: ParsedLog, place: Place | None) -> None:
        tally = self.signals.setdefault(signal.code, Tally(signal.code))
        tally.take(signal.count, signal.level, parsed.parsed_lines, self.files, log.file_id)
        tally.take_worst(signal)
        if place is not None:
            for quote in signal.quotes:
                tally.span.take(quote.at, quote.at)
            tally.take_place(place, signal.count, self.places)
            # the worst lines first, of whichever log
            beyond = excess(signal)
            tally.take_quotes(((rank - beyond, each) for rank, each in enumerate(signal.quotes)), log.file_id)


@dataclass(slots=True, frozen=True)
class _Last:
    """A template in the order in which templates are kept, the first to be pushed out the least."""

    key: tuple[Level | None, str]
    order: tuple[bool, bytes]

    @classmethod
    def of(cls, key: tuple[Level | None, str]) -> "_Last":
        level, text = key
        return cls(key, (level not in GRAVE, hashlib.sha256(f"{level} {text}".encode()).digest()))

    def __lt__(self, other: "_Last") -> bool:
        return self.order > other.order


def excess(signal: Signal) -> float:
    """How far a measured value lies beyond its bound, in its unit; 0 where one of them is missing."""
    if signal.value is None or signal.bound is None:
        return 0.0
    distance = abs(signal.value - signal.bound)
    return distance if math.isfinite(distance) else 0.0


def _badness(signal: Signal) -> tuple[float, str, float, float, str]:
    """Orders signals of one code: of two that are as bad, the same one is always shown."""
    value = signal.value if signal.value is not None and math.isfinite(signal.value) else 0.0
    return (excess(signal), signal.title, value, signal.bound or 0.0, signal.unit)


def _rank(level: Level | None) -> int:
    return len(LEVELS) if level is None else _RANKS[level]


def _graver(one: Level | None, other: Level | None) -> Level | None:
    return min(one, other, key=_rank)


def in_order(levels: Mapping[Level, int]) -> dict[Level, int]:
    """The counts, gravest first."""
    return {level: levels[level] for level in LEVELS if level in levels}


def add_counts(counts: dict[Key, int], more: Mapping[Key, int]) -> None:
    """Add each count to that of its key."""
    for key, count in more.items():
        counts[key] = counts.get(key, 0) + count


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _file_summary(log: LogFile, parsed: ParsedLog) -> FileSummary:
    return FileSummary(
        file_id=log.file_id,
        name=log.name,
        vehicle_id=log.vehicle_id or log.vin,
        format=parsed.format,
        lines=parsed.lines,
        coverage=round(parsed.coverage, 6),
        templates=len(parsed.templates),
        levels=in_order(parsed.levels),
        first_at=parsed.first_at,
        last_at=parsed.last_at,
        incomplete=parsed.incomplete[:MAX_QUOTE_LENGTH],
    )

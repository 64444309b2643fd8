"""Parsed logs of drawn fleets, for the tests of gathering."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from random import Random

from domain.logs import Level, LogFile, LogFormat, Moment, ParsedLog, Quote, Signal, TemplateCount

Counts = Mapping[tuple[Level | None, str], int]


def a_log(index: int, vehicle_id: str = "", name: str = "") -> LogFile:
    """A log of that vehicle."""
    return LogFile(f"file-{index:05}", name or f"log-{index}.txt", f"key-{index}", 1000, "", vehicle_id)


def parsed_log(counts: Counts, signals: Sequence[Signal] = (), incomplete: str = "") -> ParsedLog:
    """What parsing would find where these templates occur so often."""
    lines = sum(counts.values())
    levels: dict[Level, int] = {}
    for (level, _), count in counts.items():
        if level:
            levels[level] = levels.get(level, 0) + count
    templates = [
        TemplateCount(_id(text), text, count, level, *_TIMES, examples=(_quote(text),))
        for (level, text), count in counts.items()
        if count
    ]
    return ParsedLog(
        LogFormat.TEXT,
        1000,
        1000,
        lines,
        lines,
        *_TIMES,
        levels=levels,
        templates=tuple(templates),
        signals=tuple(signals),
        incomplete=incomplete,
        timeline=(Moment(_TIMES[0], lines, levels),),
    )


def poisson(random: Random, mean: float) -> int:
    """A count that is so many on average."""
    if mean > 50:
        return max(0, round(random.gauss(mean, math.sqrt(mean))))
    threshold, count, product = math.exp(-mean), 0, random.random()
    while product > threshold:
        count += 1
        product *= random.random()
    return count


_TIMES = ("2026-01-12T08:00:00+00:00", "2026-01-12T09:00:00+00:00")


def _id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _quote(text: str) -> Quote:
    return Quote(int(_id(text), 16) % 1000 + 1, f"08:00:00 {text}")

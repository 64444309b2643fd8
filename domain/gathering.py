"""Gathering: the parsed logs of a batch become one summary, compared with a baseline (B7.1).

Logs come one at a time and in any order, the summary is the same; memory is bounded by the constants below,
however many logs there are.
"""

import hashlib
import heapq
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache

from domain.anomalies import (
    GRAVE,
    UNCHANGED,
    Exposure,
    Spread,
    Standing,
    compared,
    judged_alone,
    outliers,
    scale_of,
    score_of,
)
from domain.diagnosis import (
    MAX_SUMMARY_BYTES,
    TOP_ANOMALIES,
    TOP_LOGS,
    TOP_PLACES,
    TOP_TEMPLATES,
    TOP_VEHICLES,
    Anomaly,
    Baseline,
    BatchSummary,
    Change,
    FileSummary,
    MergedTemplate,
    VehicleSummary,
)
from domain.documents import encode
from domain.logs import LEVELS, MAX_EXAMPLES, Level, LogFile, ParsedLog, Quote, Signal, TemplateCount
from domain.template_merging import canonical_texts
from domain.timelines import Timeline

#: templates of one side that are followed; of more the grave ones stay, then a choice by their digests,
#: which is the same in any order of the logs
MAX_FOLLOWED = 10_000
#: vehicles that a template's lines are counted by; of more a choice by their digests
MAX_PLACES_COUNTED = 128
#: of a quote, a template and a title in a summary, in characters; evidence is checked by its beginning
MAX_QUOTE_LENGTH = 400
MAX_TITLE_LENGTH = 200
#: so many members of a set are held one by one, more as a bit each
_MAX_SPARSE = 512
_PREFIX = "T-"


def template_code(text: str) -> str:
    """The anomaly code of a template, made of its text alone: the same in any batch."""
    return _PREFIX + hashlib.sha256(text.encode()).hexdigest()[:10]


class Gathering:
    """Takes the logs of one batch, and those of its baseline, and sums them up."""

    def __init__(self) -> None:
        self._batch = _Side()
        self._baseline = _Side()
        self._census = _Census()

    def add(self, log: LogFile, parsed: ParsedLog) -> None:
        """Take one log of the batch; each once."""
        place = self._census.take(log, parsed)
        self._batch.take(log, parsed, place)

    def add_baseline(self, log: LogFile, parsed: ParsedLog) -> None:
        """Take one log of the baseline; each once, before or after any of the batch."""
        self._baseline.take(log, parsed, _Place(log.file_id))

    def summary(self, batch_id: str, generation: int, baseline: Baseline | None = None) -> BatchSummary:
        """All in one; `baseline` names what `add_baseline` was given, its counts are filled in here.

        Without a baseline, or with one that has no lines, nothing is called new, gone or more frequent.
        """
        return _Summing(self._batch, self._baseline, self._census, baseline).summary(batch_id, generation)


# --- what is counted while logs come in -----------------------------------------------------------


class _Members:
    """A set of small numbers: exact, and a bit a number once they are many."""

    __slots__ = ("_bits", "_few")

    def __init__(self) -> None:
        self._few: set[int] = set()
        self._bits: bytearray | None = None

    def add(self, number: int) -> None:
        if self._bits is None:
            self._few.add(number)
            if len(self._few) > _MAX_SPARSE:
                self._bits = bytearray(max(self._few) // 8 + 1)
                for each in self._few:
                    self._bits[each >> 3] |= 1 << (each & 7)
                self._few.clear()
        else:
            if number >> 3 >= len(self._bits):
                self._bits.extend(bytes((number >> 3) + 1 - len(self._bits)))
            self._bits[number >> 3] |= 1 << (number & 7)

    def update(self, others: "_Members") -> None:
        for number in others:
            self.add(number)

    def __iter__(self) -> "Iterable[int]":  # type: ignore[override]
        raise NotImplementedError

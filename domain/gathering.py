"""Gathering: the parsed logs of a batch become one summary, compared with a baseline (B7.1).

Logs come one at a time and in any order, the summary is the same; memory is bounded by the constants below,
however many logs there are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from domain.anomalies import (
    GRAVE,
    UNCHANGED,
    Exposure,
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
    TOP_PLACES,
    TOP_TEMPLATES,
    TOP_VEHICLES,
    Anomaly,
    Baseline,
    BatchSummary,
    Change,
    MergedTemplate,
    VehicleSummary,
)
from domain.documents import encode
from domain.logs import Level, LogFile, ParsedLog
from domain.tallies import MAX_QUOTE_LENGTH, Census, Place, Side, Tally, add_counts, excess, in_order
from domain.template_merging import canonical_texts

#: of a title, in characters
MAX_TITLE_LENGTH = 200


def template_code(text: str) -> str:
    """The anomaly code of a template, made of its text alone: the same in any batch."""
    return f"T-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


class Gathering:
    """Takes the logs of one batch, and those of its baseline, and sums them up."""

    def __init__(self) -> None:
        self._batch = Side()
        self._baseline = Side()
        self._census = Census()

    def add(self, log: LogFile, parsed: ParsedLog) -> None:
        """Take one log of the batch; each once."""
        self._batch.take(log, parsed, self._census.take(log, parsed))

    def add_baseline(self, log: LogFile, parsed: ParsedLog) -> None:
        """Take one log of the baseline; each once, before or after any of the batch."""
        self._baseline.take(log, parsed, None)

    def summary(self, batch_id: str, generation: int, baseline: Baseline | None = None) -> BatchSummary:
        """All in one; `baseline` names what `add_baseline` was given, its counts are filled in here.

        Without a baseline, or with one that has no lines, nothing is called new, gone or more frequent.
        """
        return _Summing(self._batch, self._baseline, self._census, baseline).summary(batch_id, generation)


@dataclass(frozen=True)
class _Judged:
    """A template or signal beside the baseline's, and how it stands."""

    code: str
    tally: Tally
    baseline: Tally
    standing: Standing

    @property
    def stands_out(self) -> bool:
        return self.standing.change is not Change.UNCHANGED


class _Summing:
    def __init__(self, batch: Side, baseline: Side, census: Census, named: Baseline | None) -> None:
        self._batch = batch
        self._baseline = baseline
        self._census = census
        self._named = named
        self._compares = named is not None and baseline.parsed_lines > 0
        texts = canonical_texts(batch.texts() | baseline.texts())
        self._here = batch.canonical(texts)
        self._there = baseline.canonical(texts)
        self._exposure = self._measure()

    def summary(self, batch_id: str, generation: int) -> BatchSummary:
        judged = [*self._templates(), *self._signals()]
        standing_out = sorted(filter(lambda each: each.stands_out, judged), key=self._place_of)
        kept = standing_out[:TOP_ANOMALIES]
        anomalies = tuple(self._anomaly(each) for each in kept)
        first_at, last_at = self._census.span.texts()
        followed = sum(tally.count for tally in self._here.values())
        summary = BatchSummary(
            batch_id=batch_id,
            generation=generation,
            files=self._batch.files,
            lines=self._batch.lines,
            parsed_lines=self._batch.parsed_lines,
            expanded_bytes=self._census.expanded_bytes,
            baseline=self._named_baseline(),
            template_count=len(self._here),
            levels=in_order(self._census.levels),
            anomalies=anomalies,
            anomaly_count=len(standing_out),
            templates=self._merged(judged, {each.code for each in anomalies}),
            vehicles=self._vehicles(kept),
            logs=self._census.logs(),
            timeline=self._census.timeline.moments(),
            first_at=first_at,
            last_at=last_at,
            signature=signature_of(anomalies),
            vehicle_count=len({place.vehicle_id for place in self._census.by_index if place.vehicle_id}),
            incomplete_logs=self._census.incomplete_logs,
            unlisted_lines=max(0, self._batch.parsed_lines - followed),
        )
        return _fitting(summary)

    def _named_baseline(self) -> Baseline | None:
        if self._named is None:
            return None
        return replace(self._named, files=self._baseline.files, lines=self._baseline.lines)

    def _measure(self) -> Exposure:
        lines, baseline_lines = max(1, self._batch.parsed_lines), max(1, self._baseline.parsed_lines)
        pairs = (
            (self._here[text].count, self._there[text].count)
            for text in self._here.keys() & self._there.keys()
        )
        scale = scale_of(pairs, lines, baseline_lines)
        return Exposure(self._batch.files, lines, self._baseline.files, baseline_lines, scale)

    def _templates(self) -> Iterable[_Judged]:
        for text in sorted(self._here.keys() | self._there.keys()):
            here, there = self._here.get(text, Tally(text)), self._there.get(text, Tally(text))
            yield _Judged(template_code(text), here, there, self._judge_template(here, there))

    def _judge_template(self, here: Tally, there: Tally) -> Standing:
        level = here.level if here.count else there.level
        if self._compares:
            return compared(here.spread, there.spread, self._exposure, level)
        alone = judged_alone(
            here.spread, self._batch.parsed_lines, level, here.places, len(self._census.by_index)
        )
        return alone if alone is not UNCHANGED else self._judge_places(here)

    def _judge_places(self, here: Tally) -> Standing:
        places = self._batch.places
        rates = [
            (places[index].key, count, 1000 * count / max(1, places[index].parsed_lines))
            for index, count in sorted(here.by_place.items())
        ]
        far = outliers(rates, here.places, len(places), here.level)
        if not far:
            return UNCHANGED
        names = ", ".join(each.removeprefix("\0") for each in far[:3])
        return Standing(
            Change.RULE, f"Far more often than elsewhere in {len(far)} of {len(places)}: {names}."
        )

    def _signals(self) -> Iterable[_Judged]:
        for code in sorted(self._batch.signals):
            here, there = self._batch.signals[code], self._baseline.signals.get(code, Tally(code))
            yield _Judged(code, here, there, self._judge_signal(here, there))

    def _judge_signal(self, here: Tally, there: Tally) -> Standing:
        assert here.worst is not None
        if not self._compares:
            return Standing(Change.RULE, f"{here.worst.title}: a rule that needs no comparison.")
        if there.worst is None:
            return Standing(Change.NEW, "No log of the baseline breaks this rule.")
        # a broken limit is grave by itself: that it is broken less often is no anomaly
        standing = compared(here.spread, there.spread, self._exposure, Level.ERROR)
        if standing is UNCHANGED and excess(here.worst) > 2 * excess(there.worst) > 0:
            worst, usual = here.worst.value, there.worst.value
            return Standing(Change.RATE, f"{worst:g} is far beyond the baseline's worst, {usual:g}.")
        return standing

    def _expected(self, each: _Judged) -> float:
        return each.baseline.count * self._exposure.scale if self._compares else 0.0

    def _score(self, each: _Judged) -> float:
        level = each.tally.level if each.tally.count else each.baseline.level
        return score_of(each.standing.change, level, each.tally.count, self._expected(each))

    def _place_of(self, each: _Judged) -> tuple[float, str]:
        return (-self._score(each), each.code)

    def _anomaly(self, each: _Judged) -> Anomaly:
        tally, worst = each.tally, each.tally.worst
        first_at, last_at = tally.span.texts()
        return Anomaly(
            code=each.code,
            change=each.standing.change,
            title=(worst.title if worst else tally.text)[:MAX_TITLE_LENGTH],
            score=self._score(each),
            count=tally.count,
            level=tally.level if tally.count else each.baseline.level,
            baseline_count=each.baseline.count,
            rate=_rate(tally.count, self._batch.parsed_lines),
            baseline_rate=_rate(each.baseline.count, self._baseline.parsed_lines),
            template_id="" if worst else tally.template_id or each.baseline.template_id,
            files=tally.files,
            file_ids=tuple(file_id for _, file_id in sorted(tally.top_files, reverse=True)),
            vehicles=tuple(self._by_vehicle(tally)),
            first_at=first_at,
            last_at=last_at,
            value=worst.value if worst else None,
            bound=worst.bound if worst else None,
            unit=worst.unit if worst else "",
            quotes=tuple(quote for _, quote in tally.quotes),
            vehicle_count=self._vehicles_in(tally),
            reason=each.standing.reason,
        )

    def _by_vehicle(self, tally: Tally) -> dict[str, int]:
        """Lines by vehicle, those with the most first."""
        counted = (
            (self._batch.places[index].vehicle_id, count)
            for index, count in tally.by_place.items()
            if self._batch.places[index].vehicle_id
        )
        return dict(sorted(counted, key=lambda entry: (-entry[1], entry[0]))[:TOP_PLACES])

    def _vehicles_in(self, tally: Tally) -> int:
        return sum(1 for index in tally.place_indexes() if self._census.by_index[index].vehicle_id)

    def _merged(self, judged: Iterable[_Judged], codes: set[str]) -> tuple[MergedTemplate, ...]:
        templates = [each for each in judged if each.tally.worst is None]
        templates.sort(
            key=lambda each: (each.code not in codes, -each.tally.count, -each.baseline.count, each.code)
        )
        shown = sorted(templates[:TOP_TEMPLATES], key=lambda each: (-each.tally.count, each.code))
        return tuple(map(self._template, shown))

    def _template(self, each: _Judged) -> MergedTemplate:
        first_at, last_at = each.tally.span.texts()
        return MergedTemplate(
            template_id=each.tally.template_id or each.baseline.template_id,
            text=each.tally.text[:MAX_QUOTE_LENGTH],
            count=each.tally.count,
            files=each.tally.files,
            level=each.tally.level if each.tally.count else each.baseline.level,
            change=each.standing.change,
            baseline_count=each.baseline.count,
            first_at=first_at,
            last_at=last_at,
            by_vehicle=self._by_vehicle(each.tally),
            quotes=tuple(quote for _, quote in each.tally.quotes[:1]),
        )

    def _vehicles(self, kept: Iterable[_Judged]) -> tuple[VehicleSummary, ...]:
        """Those with the most anomalies first, then those with the most grave lines."""
        codes: dict[int, list[str]] = {}
        for each in kept:
            for index in each.tally.place_indexes():
                codes.setdefault(index, []).append(each.code)
        found = [_vehicle(places, codes) for places in self._census.vehicles()]
        return tuple(sorted(found, key=_vehicle_order)[:TOP_VEHICLES])


def _vehicle(places: Sequence[Place], codes: Mapping[int, Sequence[str]]) -> VehicleSummary:
    """One vehicle, or all logs that name none."""
    levels: dict[Level, int] = {}
    for place in places:
        add_counts(levels, place.levels)
    return VehicleSummary(
        vehicle_id=places[0].vehicle_id,
        vin=places[0].vin,
        files=sum(place.files for place in places),
        lines=sum(place.lines for place in places),
        levels=in_order(levels),
        anomaly_codes=tuple(sorted({code for place in places for code in codes.get(place.index, ())})),
    )


def _vehicle_order(vehicle: VehicleSummary) -> tuple[int, int, int, str]:
    fatal, error = (vehicle.levels.get(level, 0) for level in GRAVE)
    return (-len(vehicle.anomaly_codes), -fatal, -error, vehicle.vehicle_id)


def _rate(count: int, lines: int) -> float:
    return round(1000 * count / lines, 4) if lines else 0.0


def signature_of(anomalies: Iterable[Anomaly]) -> str:
    """What makes two batches the same case: the codes that stand out and how, not how often or where."""
    case = sorted({(each.code, each.change.value) for each in anomalies})
    return hashlib.sha256(json.dumps(case).encode()).hexdigest()


def _fitting(summary: BatchSummary) -> BatchSummary:
    """The summary within `MAX_SUMMARY_BYTES`: of long names and texts fewer are kept, anomalies always."""
    while len(encode(summary)) > MAX_SUMMARY_BYTES and (
        summary.templates or summary.vehicles or summary.logs
    ):
        summary = replace(
            summary,
            templates=summary.templates[: len(summary.templates) // 2],
            vehicles=summary.vehicles[: len(summary.vehicles) // 2],
            logs=summary.logs[: len(summary.logs) // 2],
        )
    return summary

"""What stands out: how a template's or a signal's lines stand to a baseline, or to the rest of their batch.

The unit of all tests is the log, not the line: one log in a loop writes a thousand lines and is one log.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from domain.diagnosis import Change
from domain.logs import Level

GRAVE = (Level.FATAL, Level.ERROR)

#: how unlikely lines that the baseline lacks must be, were they as frequent there, to be called new.
#: A single error that was never seen is worth a look, however little it proves; a new line of information
#: is not: healthy logs have rare lines, too.
NEW_CHANCE: Mapping[Level | None, float] = {Level.FATAL: 1.0, Level.ERROR: 1.0, Level.WARNING: 0.05}
NEW_CHANCE_OTHERWISE = 1e-3
#: the same for lines that only the baseline has; what is missing needs more, as it has no line to look at
GONE_CHANCE = 1e-4

#: fewer lines than this, seen and expected, make no shift of rate
RATE_FLOOR = 20
#: a smaller factor is how one week differs from the next
RATE_FACTOR = 3.0
#: chi-squared of one degree of freedom: 1 in 10,000 by chance, as a batch has hundreds of templates
RATE_G = 15.1
#: of few logs the spread is hardly known: Student's t² at 1 in 10,000 is about 1 + 15/logs times as much
RATE_SCATTER = 15.0
#: variance over mean of a template's lines per log before any was seen, for a mean near 0 and for each line
#: of the mean more, and how many logs that belief is worth: logs are long and short, retries come in bursts
PRIOR_DISPERSION = 4.0
PRIOR_DISPERSION_GROWTH = 0.5
PRIOR_LOGS = 4

#: lines of one log that has a template more densely than any log of the baseline, by what factor, and of
#: how many logs the densest says something: bursts of healthy logs differ five-fold and more
PEAK_FLOOR = 50
PEAK_FACTOR = 10.0
PEAK_LOGS = 3

#: templates that both sides have this often say how much more one side has run than the other
SCALE_FLOOR = 10
SCALE_TEMPLATES = 5

#: without a baseline a grave line is rare up to so many per thousand lines
RARE_RATE = 5.0
#: and concentrated where so few of at least `CONCENTRATED_FROM` vehicles or logs have it
CONCENTRATED_SHARE = 0.25
CONCENTRATED_FROM = 4
#: a vehicle is an outlier with so many lines, and so many times the median vehicle's rate
OUTLIER_FLOOR = 30
OUTLIER_FACTOR = 8.0

CHANGE_WEIGHT: Mapping[Change, float] = {
    Change.NEW: 3.0,
    Change.RULE: 3.0,
    Change.RATE: 2.0,
    # what is missing is a consequence more often than a cause
    Change.GONE: 1.5,
    Change.UNCHANGED: 0.0,
}
LEVEL_WEIGHT: Mapping[Level | None, float] = {Level.FATAL: 4.0, Level.ERROR: 3.0, Level.WARNING: 2.0}


@dataclass(frozen=True)
class Spread:
    """How lines are spread over the logs of one side.

    `squares` is the sum over logs of count², `occurrences` that of 1 + ⌊log₂ count⌋: a log that repeats
    itself counts for little more than one that does not. `peak_rate` is the highest in one log, lines per
    thousand, and `peak_count` its lines.
    """

    count: int = 0
    squares: int = 0
    files: int = 0
    occurrences: int = 0
    peak_rate: float = 0.0
    peak_count: int = 0


@dataclass(frozen=True)
class Exposure:
    """How much was looked at: a batch's logs and lines beside its baseline's.

    `scale` is how many times the baseline's lines the batch would have if nothing had changed.
    """

    files: int
    lines: int
    baseline_files: int
    baseline_lines: int
    scale: float

    @property
    def share(self) -> float:
        """The batch's share of all that was looked at."""
        return self.scale / (1 + self.scale)


@dataclass(frozen=True)
class Standing:
    """How something stands, and why, in a sentence."""

    change: Change
    reason: str = ""


UNCHANGED = Standing(Change.UNCHANGED)


def scale_of(pairs: Iterable[tuple[int, int]], lines: int, baseline_lines: int) -> float:
    """How much more a batch ran than its baseline: the median over their common templates.

    `pairs` are the counts in the batch and in the baseline. By the lines of both alone, a flood of one
    message would make all others look rarer than they are.
    """
    ratios = [count / base for count, base in pairs if min(count, base) >= SCALE_FLOOR]
    if len(ratios) >= SCALE_TEMPLATES:
        return median(ratios)
    return lines / baseline_lines


def compared(here: Spread, there: Spread, exposure: Exposure, level: Level | None) -> Standing:
    """How lines stand to the baseline's; fewer or none of a grave level is good news and no anomaly."""
    if not there.count:
        return _new(here, exposure, level)
    if not here.count:
        return UNCHANGED if level in GRAVE else _gone(there, exposure)
    expected = there.count * exposure.scale
    if here.count < expected and level in GRAVE:
        return UNCHANGED
    if _shifted(here, there, exposure):
        times = "more" if here.count > expected else "fewer"
        return Standing(Change.RATE, f"{here.count} lines where {expected:.0f} were expected: {times}.")
    if exposure.baseline_files >= PEAK_LOGS and _peaks(here, there):
        rates = f"{here.peak_rate:.1f} per thousand lines, no log of the baseline over {there.peak_rate:.1f}"
        return Standing(Change.RATE, f"One log has {rates}.")
    return UNCHANGED


def _new(here: Spread, exposure: Exposure, level: Level | None) -> Standing:
    chance = exposure.share**here.occurrences
    if chance > NEW_CHANCE.get(level, NEW_CHANCE_OTHERWISE):
        return UNCHANGED
    return Standing(Change.NEW, f"Not in the baseline's {exposure.baseline_lines} lines.")


def _gone(there: Spread, exposure: Exposure) -> Standing:
    if (1 - exposure.share) ** there.occurrences > GONE_CHANCE:
        return UNCHANGED
    return Standing(Change.GONE, f"{there.count} lines in the baseline, none here.")


def _shifted(here: Spread, there: Spread, exposure: Exposure) -> bool:
    expected = there.count * exposure.scale
    if max(here.count, expected) < RATE_FLOOR:
        return False
    if abs(math.log(here.count / expected)) < math.log(RATE_FACTOR):
        return False
    spread = dispersion((here, exposure.files), (there, exposure.baseline_files))
    logs = exposure.files + exposure.baseline_files + PRIOR_LOGS
    return likelihood_ratio(here.count, there.count, exposure.share) >= RATE_G * spread * (
        1 + RATE_SCATTER / logs
    )


def _peaks(here: Spread, there: Spread) -> bool:
    return here.peak_count >= PEAK_FLOOR and here.peak_rate >= PEAK_FACTOR * max(there.peak_rate, 1.0)


def likelihood_ratio(count: int, baseline_count: int, share: float) -> float:
    """The G statistic of two counts, against one rate for both; `share` is the first one's exposure."""
    total = count + baseline_count
    parts = ((count, total * share), (baseline_count, total * (1 - share)))
    return 2 * sum(seen * math.log(seen / expected) for seen, expected in parts if seen)


def dispersion(*sides: tuple[Spread, int]) -> float:
    """Variance over mean of the lines per log, within each side, drawn to what is believed; at least 1."""
    # a side's own mean: a shift between the sides is what is tested, and no spread
    within = sum(max(0.0, spread.squares - spread.count**2 / max(1, files)) for spread, files in sides)
    mean = sum(spread.count for spread, _ in sides) / max(1, sum(files for _, files in sides))
    freedom = sum(max(0, files - 1) for _, files in sides)
    believed = PRIOR_DISPERSION + PRIOR_DISPERSION_GROWTH * mean
    return max(1.0, (within / mean + believed * PRIOR_LOGS) / (freedom + PRIOR_LOGS))


def judged_alone(here: Spread, lines: int, level: Level | None, concerned: int, places: int) -> Standing:
    """What a grave template says without a baseline: a level proves nothing, its rarity hints at something.

    `concerned` of `places`, vehicles or logs, have it.
    """
    if level not in GRAVE:
        return UNCHANGED
    if places >= CONCENTRATED_FROM and concerned <= CONCENTRATED_SHARE * places:
        return Standing(Change.RULE, f"{level}: in {concerned} of {places} vehicles or logs only.")
    rate = 1000 * here.count / max(1, lines)
    if rate <= RARE_RATE:
        return Standing(Change.RULE, f"{level}: rare, {rate:.2f} per thousand lines.")
    return UNCHANGED


def outliers(
    rates: Sequence[tuple[str, int, float]], concerned: int, places: int, level: Level | None
) -> list[str]:
    """The vehicles or logs whose rate is far above the median of all `places`, if they are few.

    `rates` are name, lines and rate per thousand of those that have the template, or of a sample of the
    `concerned`. Where fewer than half have it, only those of warnings and worse are outliers: other vehicles
    may lack the part that says it.
    """
    if places < CONCENTRATED_FROM or not rates:
        return []
    usual = _median_of_all([rate for _, _, rate in rates], concerned, places)
    if not usual and level not in (*GRAVE, Level.WARNING):
        return []
    far = [name for name, count, rate in rates if count >= OUTLIER_FLOOR and rate >= OUTLIER_FACTOR * usual]
    return sorted(far) if len(far) <= CONCENTRATED_SHARE * places * len(rates) / concerned else []


def _median_of_all(rates: Sequence[float], concerned: int, places: int) -> float:
    """The median over all places, of which all but the concerned have none."""
    without = places - concerned
    if 2 * without >= places:
        return 0.0
    return sorted(rates)[int(len(rates) * (places / 2 - without) / concerned)]


def score_of(change: Change, level: Level | None, count: int, baseline_count: float) -> float:
    """How far up it belongs: weight of its change × weight of its level × (1 + log₁₀(1 + lines that differ)).

    A hundred times as many lines doubles or triples a score, no more: many lines are not a grave matter.
    """
    weight = CHANGE_WEIGHT[change] * LEVEL_WEIGHT.get(level, 1.0)
    return round(weight * (1 + math.log10(1 + abs(count - baseline_count))), 3)

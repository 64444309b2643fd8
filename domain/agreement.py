"""How far a machine's marks agree with a human's: the usual figures, each with its bootstrap interval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

#: confidence is shown in these bands where nobody says otherwise
CONFIDENCE_BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
#: of two answers every correlation is perfect
MIN_CORRELATED = 3

_TAIL_PERCENT = 2.5
#: cells of a chunk of resamples: a few arrays of this size fit into a core's cache and always into memory
_CHUNK_CELLS = 400_000
#: of marks scaled to 0..1; below it all of them are the same, and what is left is rounding
_NO_VARIANCE = 1e-12
#: marks such as 0.1 + 0.2 lie on a step, too
_ROUNDING = 1e-9
#: levels from nothing to full marks, the coarsest first; and how many marks have to lie on them
_LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 25, 30, 40, 50, 60, 80, 100)
_ON_A_LEVEL = 0.9

_Vector = npt.NDArray[np.float64]
_Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A figure and the 95 % percentile interval of its bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Two gradings of the same answers compared; a figure that is not defined there is `None`.

    `exact` and `adjacent` are shares of answers: at the same level, at most one level apart. The error is
    in points.
    """

    count: int
    pearson: Interval | None
    spearman: Interval | None
    qwk: Interval | None
    exact: Interval
    adjacent: Interval
    mean_absolute_error: Interval


@dataclass(frozen=True)
class ConfidenceBand:
    """The answers whose confidence lies from `low` up to `high`, and how far off they were."""

    low: float
    high: float
    count: int
    mean_confidence: float
    mean_absolute_error: float
    exact: float
    adjacent: float


@dataclass(frozen=True)
class SurerHalf:
    """The agreement of the answers that the machine was surer of, and of the rest."""

    from_confidence: float
    surer: Agreement
    rest: Agreement


def measure_agreement(
    pairs: Sequence[tuple[float, float]],
    *,
    maximum: float,
    step: float,
    resamples: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Agreement:
    """The agreement of (human, machine) marks from 0 to `maximum`, which count as levels `step` points apart.

    Answers are drawn anew for every resample; with `groups`, such as questions, first the groups are drawn
    and then answers within each, so that the intervals speak of other questions as well. The same pairs and
    seed give the same intervals, in whatever order they come. Raises `ValueError` without pairs, and for
    marks out of bounds.
    """
    names = groups if groups is not None else [""] * len(pairs)
    _check(pairs, names, maximum, step)
    marks = np.asarray(pairs, dtype=np.float64)
    owners = np.asarray(names)
    order = np.lexsort((marks[:, 1], marks[:, 0], owners))
    sample = _Sample.of(marks[order], maximum, step)
    value = sample.figures(np.ones((1, len(pairs))))[0]
    sizes = np.unique(owners, return_counts=True)[1]
    drawn = np.concatenate([sample.figures(each) for each in _resampled(sizes, resamples, seed)])
    pearson, spearman, qwk, exact, adjacent, error = (
        _interval(*each) for each in zip(value, drawn.T, strict=True)
    )
    if exact is None or adjacent is None or error is None:
        raise ValueError("Shares and errors are defined wherever there is an answer.")
    return Agreement(len(pairs), pearson, spearman, qwk, exact, adjacent, error)


def fitting_step(marks: Sequence[float], maximum: float) -> float:
    """The coarsest step from 0 to `maximum` that nine of ten marks lie on; a hundredth where none does."""
    shares = np.asarray(marks, dtype=np.float64) / maximum
    for levels in _LEVELS:
        on_a_level = np.abs(shares * levels - np.round(shares * levels)) < 1e-6
        if on_a_level.mean() >= _ON_A_LEVEL:
            return maximum / levels
    return maximum / _LEVELS[-1]


def level_of(mark: float, maximum: float, step: float) -> int:
    """The level that a mark counts as, 0 for nothing; halves count upwards."""
    return int(_levels(np.asarray([mark]), maximum, step)[0])


def reliability_table(
    pairs: Sequence[tuple[float, float]],
    confidences: Sequence[float],
    *,
    maximum: float,
    step: float,
    bins: Sequence[float] = CONFIDENCE_BINS,
) -> list[ConfidenceBand]:
    """What the marks of each band of confidence are worth, the least sure first; no band is empty."""
    sure = np.asarray(confidences, dtype=np.float64)
    marks = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    apart = np.abs(np.diff(_levels(marks, maximum, step))[:, 0])
    off = np.abs(np.diff(marks)[:, 0])
    bands = []
    for low, high in pairwise(bins):
        inside = (sure >= low) & ((sure < high) | ((high == bins[-1]) & (sure == high)))
        if count := int(inside.sum()):
            figures = (sure, off, apart == 0, apart <= 1)
            bands.append(ConfidenceBand(low, high, count, *(float(each[inside].mean()) for each in figures)))
    return bands


def compare_surer_half(
    pairs: Sequence[tuple[float, float]],
    confidences: Sequence[float],
    *,
    maximum: float,
    step: float,
    resamples: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> SurerHalf | None:
    """The surer half against the rest, cut between two confidences as near the middle as equal ones allow.

    `None` where all confidences are the same.
    """
    from_confidence = _middle_cut(confidences)
    if from_confidence is None:
        return None

    def of(surer: bool) -> Agreement:
        chosen = [index for index, each in enumerate(confidences) if (each >= from_confidence) is surer]
        return measure_agreement(
            [pairs[index] for index in chosen],
            maximum=maximum,
            step=step,
            resamples=resamples,
            seed=seed,
            groups=None if groups is None else [groups[index] for index in chosen],
        )

    return SurerHalf(from_confidence, surer=of(True), rest=of(False))


def _middle_cut(confidences: Sequence[float]) -> float | None:
    """The least confidence of the surer half; none lies on both sides of it."""
    values, counts = np.unique(np.asarray(confidences), return_counts=True)
    if len(values) < 2:
        return None
    surer = counts[::-1].cumsum()[::-1][1:]
    return float(values[1 + int(np.argmin(np.abs(surer - len(confidences) / 2)))])


def _check(pairs: Sequence[tuple[float, float]], names: Sequence[str], maximum: float, step: float) -> None:
    if not pairs:
        raise ValueError("No pairs of marks: nothing can be compared.")
    if len(names) != len(pairs):
        raise ValueError(f"{len(names)} groups for {len(pairs)} pairs.")
    if not 0 < step <= maximum:
        raise ValueError(f"step: {step:g} is not between 0 and the maximum of {maximum:g}.")
    for pair in pairs:
        if not all(0 <= mark <= maximum + _ROUNDING for mark in pair):
            raise ValueError(f"{pair}: marks are between 0 and {maximum:g}.")


def _levels(marks: _Vector, maximum: float, step: float) -> _Vector:
    highest = np.floor(maximum / step + 0.5 + _ROUNDING)
    return np.minimum(np.floor(marks / step + 0.5 + _ROUNDING), highest)


@dataclass(frozen=True)
class _Sample:
    """The answers as columns, from which any weighting of them gives its figures at once."""

    #: an answer a row: what a weighted sum of gives every figure but Spearman's
    terms: _Vector
    human: "_Ranking"
    machine: "_Ranking"

    @classmethod
    def of(cls, marks: _Vector, maximum: float, step: float) -> "_Sample":
        # about the mean: sums of squares then lose nothing to cancellation
        x, y = ((marks - marks.mean(axis=0)) / maximum).T
        a, b = _levels(marks, maximum, step).T
        apart = np.abs(a - b)
        off = np.abs(marks[:, 0] - marks[:, 1])
        columns = (x, y, x * x, y * y, x * y, a, b, a * a, b * b, apart**2, apart == 0, apart <= 1, off)
        human, machine = (_Ranking.of(each) for each in marks.T)
        return cls(np.column_stack(columns).astype(np.float64), human, machine)

    def figures(self, weights: _Vector) -> _Vector:
        """Pearson, Spearman, QWK, exact, adjacent and error for each row of weights; NaN if undefined."""
        counts = weights.sum(axis=1)
        mean = (weights @ self.terms) / counts[:, None]
        x, y, xx, yy, xy, a, b, aa, bb, apart, exact, adjacent, off = mean.T
        pearson = _correlation(xy - x * y, xx - x * x, yy - y * y)
        # quadratic weights make what chance would give a matter of means and squares: no table is needed
        by_chance = aa + bb - 2 * a * b
        qwk = 1 - _divided(apart, by_chance)
        if weights.shape[1] < MIN_CORRELATED:
            pearson = np.full_like(pearson, np.nan)
        return np.column_stack([pearson, self._spearman(weights, counts), qwk, exact, adjacent, off])

    def _spearman(self, weights: _Vector, counts: _Vector) -> _Vector:
        if weights.shape[1] < MIN_CORRELATED:
            return np.full(len(weights), np.nan)
        x, y = (ranking.ranks(weights, counts) for ranking in (self.human, self.machine))
        return _correlation(
            np.einsum("ij,ij,ij->i", weights, x, y) / counts,
            np.einsum("ij,ij,ij->i", weights, x, x) / counts,
            np.einsum("ij,ij,ij->i", weights, y, y) / counts,
        )


@dataclass(frozen=True)
class _Ranking:
    """Which answers have equal marks, from the lowest on; ranks then follow from the weights."""

    order: _Whole
    starts: _Whole
    place: _Whole

    @classmethod
    def of(cls, marks: _Vector) -> "_Ranking":
        _, starts, place = np.unique(np.sort(marks), return_index=True, return_inverse=True)
        order = np.argsort(marks, kind="stable")
        back = np.empty_like(place)
        back[order] = place
        return cls(order, starts, back)

    def ranks(self, weights: _Vector, counts: _Vector) -> _Vector:
        """Each answer's rank among the weighted ones, equal marks sharing theirs; about the mean, over n."""
        tied = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        middle = (tied.cumsum(axis=1) - tied / 2) / counts[:, None] - 0.5
        return np.asarray(middle[:, self.place], dtype=np.float64)


def _correlation(covariance: _Vector, variance_x: _Vector, variance_y: _Vector) -> _Vector:
    scale = np.sqrt(np.clip(variance_x, 0, None) * np.clip(variance_y, 0, None))
    flat = (variance_x <= _NO_VARIANCE) | (variance_y <= _NO_VARIANCE)
    return np.clip(_divided(covariance, np.where(flat, 0.0, scale)), -1.0, 1.0)


def _divided(dividend: _Vector, divisor: _Vector) -> _Vector:
    defined = divisor > _NO_VARIANCE
    return np.where(defined, dividend / np.where(defined, divisor, 1.0), np.nan)


def _resampled(sizes: _Whole, resamples: int, seed: int) -> Iterator[_Vector]:
    """How often each answer is drawn, a resample a row, in chunks; the groups lie in a row."""
    random = np.random.default_rng(seed)
    total = int(sizes.sum())
    starts = sizes.cumsum() - sizes
    chunk = max(1, _CHUNK_CELLS // total)
    for begun in range(0, resamples, chunk):
        rows = min(chunk, resamples - begun)
        drawn = random.integers(0, len(sizes), (rows, len(sizes)))
        each = sizes[drawn].ravel()
        answers = np.repeat(starts[drawn].ravel(), each) + random.integers(0, np.repeat(each, each))
        row = np.repeat(np.arange(rows), sizes[drawn].sum(axis=1))
        counted = np.bincount(row * total + answers, minlength=rows * total)
        yield counted.reshape(rows, total).astype(np.float64)


def _interval(value: float, drawn: _Vector) -> Interval | None:
    """The figure with its interval; `None` where it, or every other resample of it, is not defined."""
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or 2 * len(defined) < len(drawn) or not len(defined):
        return None
    low, high = np.percentile(defined, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    return Interval(float(value), float(low), float(high))

"""Agreement's figures against published and independently computed values, and what must always hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.agreement import (
    Agreement,
    Interval,
    compare_surer_half,
    fitting_step,
    level_of,
    measure_agreement,
    reliability_table,
)

#: sixteen marks from 0 to 5 by two graders
HUMAN = [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 5, 4, 2, 1, 0, 3]
MACHINE = [0, 1, 1, 2, 2, 1, 3, 4, 4, 5, 3, 4, 0, 1, 2, 3]


def compared(human: list[float], machine: list[float], maximum: float, step: float = 1.0) -> Agreement:
    return measure_agreement(
        list(zip(human, machine, strict=True)), maximum=maximum, step=step, resamples=100
    )


def value(interval: Interval | None) -> float:
    assert interval is not None
    return interval.value


# --- against known values -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "x"),
    [
        (
            [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68],
            [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5],
        ),
        (
            [6.58, 5.76, 7.71, 8.84, 8.47, 7.04, 5.25, 12.50, 5.56, 7.91, 6.89],
            [8, 8, 8, 8, 8, 8, 8, 19, 8, 8, 8],
        ),
    ],
    ids=["first", "fourth"],
)
def test_pearson_is_that_of_anscombes_quartet(x: list[float], y: list[float]) -> None:
    assert value(compared(x, y, maximum=20).pearson) == pytest.approx(0.816, abs=0.001)


def test_spearman_is_that_of_the_textbook_without_ties() -> None:
    """Intelligence against hours of television: 1 - 6 * 194 / (10 * 99)."""
    intelligence = [86, 97, 99, 100, 101, 103, 106, 110, 112, 113]
    hours = [2, 20, 28, 27, 50, 29, 7, 17, 6, 12]
    found = compared([float(each) for each in intelligence], [float(each) for each in hours], maximum=120)
    assert value(found.spearman) == pytest.approx(-29 / 165)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 1], [1, 2, 2], 0.4),
        ([1, 2, 3, 1, 2, 2, 3], [1, 2, 3, 1, 2, 3, 2], 0.75),
    ],
)
def test_qwk_is_that_of_the_published_examples(
    first: list[float], second: list[float], expected: float
) -> None:
    """The test cases of the reference implementation of the ASAP contests."""
    assert value(compared(first, second, maximum=3).qwk) == pytest.approx(expected)


def test_the_figures_are_those_of_scipy_and_scikit_learn() -> None:
    found = compared(HUMAN, MACHINE, maximum=5)
    assert found.count == 16
    assert value(found.pearson) == pytest.approx(0.7990858564510239)
    assert value(found.spearman) == pytest.approx(0.7930307168166042)
    assert value(found.qwk) == pytest.approx(0.7948717948717949)
    assert (found.exact.value, found.adjacent.value) == (9 / 16, 13 / 16)
    assert found.mean_absolute_error.value == pytest.approx(0.625)


def test_marks_between_levels_are_rounded_for_qwk_alone() -> None:
    human = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0]
    machine = [0.1, 0.2, 0.7, 0.6, 0.9, 1.0, 0.3, 0.45]
    found = compared(human, machine, maximum=1, step=0.25)
    assert value(found.pearson) == pytest.approx(0.8467172531458423)
    assert value(found.spearman) == pytest.approx(0.836501912571304)
    assert value(found.qwk) == pytest.approx(0.7878787878787878)
    assert found.exact.value == 4 / 8
    assert found.mean_absolute_error.value == pytest.approx(1.25 / 8)


def test_the_intervals_are_those_of_scipys_bootstrap() -> None:
    """Of 20,000 paired resamples by `scipy.stats.bootstrap`; both are drawn, hence the slack."""
    found = measure_agreement(
        list(zip(HUMAN, MACHINE, strict=True)), maximum=5, step=1, resamples=20_000, seed=1
    )
    expected = {
        "pearson": (0.5938, 0.9416),
        "spearman": (0.4531, 0.9399),
        "qwk": (0.5567, 0.9295),
    }
    for name, (low, high) in expected.items():
        interval = getattr(found, name)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01), name


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Pearson's r of 100 answers, 200 times, where the truth is 0.6."""
    random = np.random.default_rng(7)
    covered = 0
    for seed in range(200):
        human = random.normal(size=100)
        machine = 0.6 * human + 0.8 * random.normal(size=100)
        pairs = np.column_stack([human, machine]) + 10
        interval = measure_agreement(
            [(float(a), float(b)) for a, b in pairs], maximum=20, step=1, resamples=300, seed=seed
        ).pearson
        assert interval is not None
        covered += interval.low <= 0.6 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


# --- what is not defined --------------------------------------------------------------------------


def test_without_variance_a_correlation_is_not_defined() -> None:
    found = compared([1, 1, 1, 1], [0, 1, 2, 1], maximum=2)
    assert (found.pearson, found.spearman) == (None, None)
    assert found.qwk is not None
    assert found.exact.value == 0.5


def test_where_all_marks_are_the_same_there_is_nothing_beyond_chance() -> None:
    found = compared([2, 2, 2], [2, 2, 2], maximum=2)
    assert (found.pearson, found.spearman, found.qwk) == (None, None, None)
    assert found.exact == Interval(1, 1, 1)


def test_two_answers_have_no_correlation() -> None:
    found = compared([0, 1], [0, 1], maximum=1)
    assert (found.pearson, found.spearman) == (None, None)


@pytest.mark.parametrize(
    ("pairs", "changes", "said"),
    [
        ([], {}, "No pairs"),
        ([(0.0, 3.0)], {}, "between 0 and 2"),
        ([(-1.0, 1.0)], {}, "between 0 and 2"),
        ([(math.nan, 1.0)], {}, "between 0 and 2"),
        ([(1.0, 1.0)], {"step": 0}, "step"),
        ([(1.0, 1.0)], {"step": 3}, "step"),
        ([(1.0, 1.0)], {"groups": ["q1", "q2"]}, "2 groups for 1 pairs"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    pairs: list[tuple[float, float]], changes: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        measure_agreement(pairs, **({"maximum": 2, "step": 1} | changes))


# --- what always holds ----------------------------------------------------------------------------

LEVELS = st.integers(0, 4).map(float)
PAIRS = st.lists(st.tuples(LEVELS, LEVELS), min_size=3, max_size=30)


def quick(pairs: list[tuple[float, float]], **changes: object) -> Agreement:
    return measure_agreement(pairs, **({"maximum": 4, "step": 1, "resamples": 50} | changes))  # type: ignore[arg-type]  # the merged mapping has one type for all


@given(PAIRS)
@settings(deadline=None)
def test_agreement_is_the_same_from_both_sides(pairs: list[tuple[float, float]]) -> None:
    there, back = quick(pairs), quick([(machine, human) for human, machine in pairs])
    for name in ("pearson", "spearman", "qwk", "exact", "adjacent", "mean_absolute_error"):
        one, other = getattr(there, name), getattr(back, name)
        assert (one is None) == (other is None)
        assert one is None or one.value == pytest.approx(other.value, abs=1e-9)


@given(st.lists(LEVELS, min_size=3, max_size=30).filter(lambda marks: len(set(marks)) > 2))
@settings(deadline=None)
def test_the_same_marks_agree_perfectly(marks: list[float]) -> None:
    found = quick([(mark, mark) for mark in marks])
    for interval in (found.exact, found.adjacent):
        assert interval == Interval(1, 1, 1)
    for interval in (found.pearson, found.spearman, found.qwk):
        assert interval is None or interval.value == pytest.approx(1)
    assert found.mean_absolute_error == Interval(0, 0, 0)


@given(PAIRS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_answers_changes_nothing(pairs: list[tuple[float, float]], random: object) -> None:
    groups = [f"q{index % 3}" for index in range(len(pairs))]
    order = list(range(len(pairs)))
    random.shuffle(order)  # type: ignore[attr-defined]  # a random.Random, whose type Hypothesis keeps private
    assert quick(pairs) == quick([pairs[index] for index in order])
    assert quick(pairs, groups=groups) == quick(
        [pairs[index] for index in order], groups=[groups[index] for index in order]
    )


@given(PAIRS)
@settings(deadline=None)
def test_every_figure_and_interval_keeps_its_bounds(pairs: list[tuple[float, float]]) -> None:
    found = quick(pairs)
    for interval, lowest, highest in (
        (found.pearson, -1, 1),
        (found.spearman, -1, 1),
        (found.qwk, -1, 1),
        (found.exact, 0, 1),
        (found.adjacent, 0, 1),
        (found.mean_absolute_error, 0, 4),
    ):
        if interval is not None:
            assert lowest - 1e-9 <= interval.low <= interval.high <= highest + 1e-9
            assert lowest - 1e-9 <= interval.value <= highest + 1e-9
    assert found.exact.value <= found.adjacent.value


@given(PAIRS, st.floats(0.1, 100))
@settings(deadline=None)
def test_another_unit_changes_the_error_alone(pairs: list[tuple[float, float]], unit: float) -> None:
    one = quick(pairs)
    other = quick([(a * unit, b * unit) for a, b in pairs], maximum=4 * unit, step=unit)
    assert other.exact == one.exact
    assert other.adjacent == one.adjacent
    assert other.mean_absolute_error.value == pytest.approx(one.mean_absolute_error.value * unit)
    if one.qwk is not None:
        assert value(other.qwk) == pytest.approx(one.qwk.value, abs=1e-6)


# --- intervals ------------------------------------------------------------------------------------


def test_the_seed_decides_the_intervals_and_not_the_figures() -> None:
    pairs = list(zip(HUMAN, MACHINE, strict=True))
    one, again, other = (quick(pairs, maximum=5, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert value(one.qwk) == value(other.qwk)


def test_questions_that_differ_widen_the_interval_of_all() -> None:
    """One question graded well and one badly: new answers would tell little, new questions much."""
    random = np.random.default_rng(3)
    good = [(float(mark), float(mark)) for mark in random.integers(0, 5, 200)]
    bad = [(float(mark), float(random.integers(0, 5))) for mark in random.integers(0, 5, 200)]
    groups = ["good"] * 200 + ["bad"] * 200
    by_answer = quick([*good, *bad], resamples=500).exact
    by_question = quick([*good, *bad], resamples=500, groups=groups).exact
    assert by_question.value == by_answer.value
    assert by_question.high - by_question.low > 3 * (by_answer.high - by_answer.low)


def test_one_group_is_no_group() -> None:
    pairs = list(zip(HUMAN, MACHINE, strict=True))
    assert quick(pairs, maximum=5) == quick(pairs, maximum=5, groups=["q1"] * len(pairs))


# --- levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "maximum", "step", "level"),
    [
        (0.0, 1, 0.25, 0),
        (0.125, 1, 0.25, 1),
        (0.3, 1, 0.1, 3),
        (1.0, 1, 1, 1),
        (0.5, 1, 1, 1),
        (2.5, 2.5, 1, 3),
    ],
)
def test_a_mark_counts_as_the_nearest_level(mark: float, maximum: float, step: float, level: int) -> None:
    assert level_of(mark, maximum, step) == level


@pytest.mark.parametrize(
    ("marks", "maximum", "step"),
    [
        ([0, 1, 1, 0], 1, 1),
        ([0, 0.5, 1], 1, 0.5),
        ([0, 0.25, 0.5, 1] * 10 + [0.8], 1, 0.25),
        ([0, 1, 2, 3, 4, 5], 5, 1),
        ([0.5, 1, 2.5, 3], 5, 0.5),
        ([1 / 3, 2 / 3, 1], 1, 1 / 3),
        ([0.123, 0.457, 0.811], 1, 0.01),
    ],
)
def test_the_step_is_the_coarsest_that_fits_the_marks(
    marks: list[float], maximum: float, step: float
) -> None:
    assert fitting_step(marks, maximum) == pytest.approx(step)


# --- confidence -----------------------------------------------------------------------------------

#: the machine is right where it is sure
SURE = [(2.0, 2.0), (0.0, 0.0), (1.0, 1.0), (2.0, 1.0)]
UNSURE = [(0.0, 2.0), (2.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
CONFIDENCES = [0.95, 0.9, 0.85, 1.0, 0.1, 0.2, 0.35, 0.3]


def test_the_reliability_table_has_a_row_for_each_band_that_is_not_empty() -> None:
    rows = reliability_table([*SURE, *UNSURE], CONFIDENCES, maximum=2, step=1)
    assert [(row.low, row.high, row.count) for row in rows] == [(0.0, 0.2, 1), (0.2, 0.4, 3), (0.8, 1.0, 4)]
    last = rows[-1]
    assert last.mean_confidence == pytest.approx(0.925)
    assert (last.mean_absolute_error, last.exact, last.adjacent) == (0.25, 0.75, 1.0)
    assert rows[1].mean_absolute_error == pytest.approx(1.0)


def test_bands_can_be_chosen() -> None:
    rows = reliability_table(SURE, CONFIDENCES[:4], maximum=2, step=1, bins=(0, 0.9, 1))
    assert [row.count for row in rows] == [1, 3]


def test_the_surer_half_is_held_against_the_rest() -> None:
    half = compare_surer_half([*SURE, *UNSURE], CONFIDENCES, maximum=2, step=1, resamples=50)
    assert half is not None
    assert half.from_confidence == 0.85
    assert (half.surer.count, half.rest.count) == (4, 4)
    assert (half.surer.mean_absolute_error.value, half.rest.mean_absolute_error.value) == (0.25, 1.25)


def test_equal_confidences_are_never_torn_apart() -> None:
    half = compare_surer_half([*SURE, *UNSURE], [0.9] * 6 + [0.1] * 2, maximum=2, step=1, resamples=50)
    assert half is not None
    assert (half.surer.count, half.rest.count) == (6, 2)


def test_without_differences_in_confidence_there_is_no_surer_half() -> None:
    assert compare_surer_half(SURE, [0.5] * 4, maximum=2, step=1) is None

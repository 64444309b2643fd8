"""Gathering: the order of logs does not matter, and what is healthy stays unremarked."""

from random import Random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from domain.diagnosis import Baseline, BatchSummary
from domain.gathering import Gathering
from domain.logs import Level, LogFile, ParsedLog, Signal
from tests.domain.parsed_logs import Counts, a_log, parsed_log, poisson

TOKENS = st.sampled_from(["open", "close", "door", "slot", "<*>"])
TEXTS = st.lists(TOKENS, min_size=1, max_size=4).map(" ".join)
LEVELS = st.sampled_from([Level.FATAL, Level.ERROR, Level.INFO, None])
SIGNALS = st.builds(
    Signal,
    code=st.sampled_from(["roll", "voltage"]),
    title=st.just("A limit is broken"),
    level=st.just(Level.ERROR),
    count=st.integers(1, 5),
    value=st.floats(-200, 200),
    bound=st.just(35.0),
)
PARSED = st.builds(
    parsed_log,
    st.dictionaries(st.tuples(LEVELS, TEXTS), st.integers(1, 400), max_size=4),
    st.lists(SIGNALS, max_size=2, unique_by=lambda signal: signal.code),
)
VEHICLES = st.sampled_from(["", "v1", "v2", "v3", "v4", "v5"])
LOGS = st.lists(st.tuples(VEHICLES, PARSED), max_size=5)


def logs_of(drawn: list[tuple[str, ParsedLog]]) -> list[tuple[LogFile, ParsedLog]]:
    return [(a_log(index, vehicle), parsed) for index, (vehicle, parsed) in enumerate(drawn)]


def summed(
    logs: list[tuple[LogFile, ParsedLog]], baseline: list[tuple[LogFile, ParsedLog]], named: bool = True
) -> BatchSummary:
    gathering = Gathering()
    for log, parsed in logs:
        gathering.add(log, parsed)
    for log, parsed in baseline:
        gathering.add_baseline(log, parsed)
    return gathering.summary("batch", 1, Baseline("base", "week 1") if named else None)


@settings(max_examples=100)
@given(drawn=LOGS, baseline=LOGS, named=st.booleans(), random=st.randoms(use_true_random=False))
def test_any_order_of_logs_gives_the_same_summary(
    drawn: list[tuple[str, ParsedLog]], baseline: list[tuple[str, ParsedLog]], named: bool, random: Random
) -> None:
    logs, others = logs_of(drawn), logs_of(baseline)
    first = summed(logs, others, named)
    random.shuffle(logs)
    random.shuffle(others)
    assert summed(logs, others, named) == first
    assert sum(each.count for each in first.templates) == first.parsed_lines == first.lines
    if not named:
        assert {each.change for each in first.anomalies} <= {"rule"}


def healthy_log(random: Random, shares: dict[tuple[Level | None, str], float]) -> Counts:
    """A log of some length, whose lines come in bursts: variance is about three times the mean."""
    length = random.uniform(0.3, 3.0)
    return {
        key: poisson(random, share * length * random.gammavariate(2, 0.5)) for key, share in shares.items()
    }


# statistics err with a small chance: the examples are drawn, but the same in every run
@settings(max_examples=100, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    templates=st.integers(3, 40),
    files=st.integers(3, 25),
    base=st.integers(3, 25),
)
def test_a_healthy_batch_beside_a_healthy_baseline_has_no_anomaly(
    seed: int, templates: int, files: int, base: int
) -> None:
    """Common lines of every level, and rare ones without a grave level, from one fleet on both sides."""
    random = Random(seed)  # noqa: S311  # a simulation
    common = [Level.ERROR, Level.WARNING, Level.INFO, Level.INFO, None]
    rare = [Level.INFO, Level.DEBUG, None]
    shares: dict[tuple[Level | None, str], float] = {}
    for index in range(templates):
        # from a line a log to hundreds; every third is rare: a line in 50 logs to one in two
        often = index % 3
        share = 10 ** random.uniform(0.5, 2.3) if often else 10 ** random.uniform(-1.7, -0.3)
        shares[random.choice(common if often else rare), f"unit {index} reports <*>"] = share
    logs = [(a_log(n, f"v{n % 12}"), parsed_log(healthy_log(random, shares))) for n in range(files)]
    others = [(a_log(n), parsed_log(healthy_log(random, shares))) for n in range(base)]
    assume(any(parsed.lines for _, parsed in others))
    found = summed(logs, others)
    assert [(each.title, each.change, each.reason) for each in found.anomalies] == []


@settings(max_examples=100, derandomize=True)
@given(seed=st.integers(0, 2**32), faulty=st.integers(1, 6))
def test_faults_are_found_wherever_they_are_planted(seed: int, faulty: int) -> None:
    """A new error, a loop of a known message in some vehicles, and a step that is not reached any more."""
    random = Random(seed)  # noqa: S311  # a simulation
    shares: dict[tuple[Level | None, str], float] = {
        (Level.INFO, f"unit {index} reports <*>"): 10 ** random.uniform(0.5, 2) for index in range(20)
    }
    shares[Level.WARNING, "retry download <*>"] = 2.0
    shares[Level.INFO, "slot switched to <*>"] = 5.0
    others = [(a_log(n), parsed_log(healthy_log(random, shares))) for n in range(12)]
    logs = []
    for n in range(12):
        counts = dict(healthy_log(random, shares))
        counts[Level.INFO, "slot switched to <*>"] = 0
        if n < faulty:
            counts[Level.FATAL, "verification of <*> failed"] = 1
            counts[Level.WARNING, "retry download <*>"] = 600
        logs.append((a_log(n, f"v{n}"), parsed_log(counts)))
    found = {each.title: each.change for each in summed(logs, others).anomalies}
    assert found == {
        "verification of <*> failed": "new",
        "retry download <*>": "rate",
        "slot switched to <*>": "gone",
    }

"""Gathering many logs into one summary: bounded, exact in its counts, and honest without a baseline."""

from dataclasses import replace

import pytest

from domain import gathering, tallies
from domain.diagnosis import TOP_LOGS, TOP_PLACES, TOP_VEHICLES, Baseline, BatchSummary
from domain.documents import encode
from domain.gathering import Gathering, template_code
from domain.logs import Level, LogFile, ParsedLog, Signal
from tests.domain.parsed_logs import a_log, parsed_log

BASELINE = Baseline("base", "week 1")
Drawn = tuple[LogFile, ParsedLog]


def fleet(count: int) -> list[Drawn]:
    """A log each of as many vehicles, all with the same templates."""
    usual = {(Level.INFO, f"unit {n} reports <*>"): 40 for n in range(10)}
    return [(a_log(n, f"v{n:05}"), parsed_log(usual)) for n in range(count)]


def summed(logs: list[Drawn], baseline: list[Drawn] | None = None) -> BatchSummary:
    made = Gathering()
    for each in logs:
        made.add(*each)
    for each in baseline or []:
        made.add_baseline(*each)
    return made.summary("batch", 1, None if baseline is None else BASELINE)


def with_lines(log: Drawn, counts: dict[tuple[Level | None, str], int]) -> Drawn:
    """The log with these templates more."""
    own = {(each.level, each.text): each.count for each in log[1].templates}
    return log[0], parsed_log({**own, **counts})


def test_a_code_is_of_its_template_alone() -> None:
    odd = {(Level.ERROR, "slot <*> is corrupt"): 1}
    small, large = fleet(3), fleet(12)
    first = summed([with_lines(small[0], odd), *small[1:]], fleet(12))
    second = summed([*large[:-1], with_lines(large[-1], odd)], fleet(5))
    assert [each.code for each in first.anomalies] == [template_code("slot <*> is corrupt")]
    assert first.signature == second.signature != summed(large, fleet(5)).signature


@pytest.mark.parametrize("baseline", [None, []], ids=["none", "empty"])
def test_nothing_is_new_where_there_is_nothing_to_compare_with(baseline: list[Drawn] | None) -> None:
    logs = fleet(12)
    found = summed([with_lines(logs[0], {(Level.FATAL, "slot <*> is corrupt"): 2}), *logs[1:]], baseline)
    assert [(each.title, each.change) for each in found.anomalies] == [("slot <*> is corrupt", "rule")]


def test_a_level_that_every_log_has_often_is_no_anomaly() -> None:
    noisy = [with_lines(each, {(Level.ERROR, "cache <*> missed"): 90}) for each in fleet(12)]
    assert summed(noisy).anomalies == ()


def test_without_a_baseline_a_vehicle_is_held_against_the_others() -> None:
    logs = [with_lines(each, {(Level.INFO, "retry <*>"): 4}) for each in fleet(12)]
    found = summed([with_lines(logs[0], {(Level.INFO, "retry <*>"): 900}), *logs[1:]])
    [anomaly] = found.anomalies
    assert (anomaly.title, anomaly.change, anomaly.vehicles[0]) == ("retry <*>", "rule", "v00000")
    assert "v00000" in anomaly.reason


def test_a_flood_of_one_message_makes_no_other_one_rarer() -> None:
    flooded = [with_lines(each, {(Level.INFO, "retry <*>"): 9_000}) for each in fleet(12)]
    found = summed(flooded, [with_lines(each, {(Level.INFO, "retry <*>"): 9}) for each in fleet(6)])
    assert [(each.title, each.change) for each in found.anomalies] == [("retry <*>", "rate")]


def test_grave_lines_that_are_gone_are_good_news() -> None:
    baseline = [with_lines(each, {(Level.ERROR, "slot <*> is corrupt"): 50}) for each in fleet(12)]
    assert summed(fleet(12), baseline).anomalies == ()


def test_templates_of_several_logs_are_one_where_one_of_them_says_the_other() -> None:
    first, second, third = fleet(3)
    found = summed(
        [
            with_lines(first, {(Level.INFO, "door <*> opened"): 5}),
            with_lines(second, {(Level.INFO, "door left opened"): 2}),
            with_lines(third, {(Level.WARNING, "door right opened"): 1, (Level.INFO, "door left opened"): 1}),
        ]
    )
    [door] = [each for each in found.templates if "door" in each.text]
    assert (door.text, door.count, door.files, door.level) == ("door <*> opened", 9, 3, "warning")
    assert door.by_vehicle == {"v00000": 5, "v00001": 2, "v00002": 2}


def test_a_signal_shows_its_worst_lines_and_needs_no_comparison() -> None:
    def rolled(value: float) -> Signal:
        return Signal("roll", "Roll beyond its limit", Level.ERROR, 2, value, 35.0, "°")

    logs = [(log, replace(parsed, signals=(rolled(40.0 + n),))) for n, (log, parsed) in enumerate(fleet(3))]
    alone, new = summed(logs), summed(logs, fleet(3))
    usual = summed(logs, [(log, replace(parsed, signals=(rolled(43),))) for log, parsed in fleet(3)])
    far = summed(
        [*logs[:2], (logs[2][0], replace(logs[2][1], signals=(rolled(178),)))],
        [(log, parsed) for log, parsed in logs],
    )
    assert [(each.code, each.change, each.value, each.count) for each in alone.anomalies] == [
        ("roll", "rule", 42, 6)
    ]
    assert [each.change for each in new.anomalies] == ["new"]
    assert usual.anomalies == ()
    assert [(each.change, each.value) for each in far.anomalies] == [("rate", 178)]


def test_many_vehicles_are_counted_all_and_named_in_part() -> None:
    logs = [with_lines(each, {(Level.ERROR, "slot <*> is corrupt"): 1}) for each in fleet(400)]
    logs[7] = with_lines(logs[7], {(Level.ERROR, "slot <*> is corrupt"): 30})
    found = summed(logs, fleet(20))
    [anomaly] = found.anomalies
    assert (anomaly.count, anomaly.files, anomaly.vehicle_count) == (429, 400, 400)
    assert (len(anomaly.vehicles), len(anomaly.file_ids)) == (TOP_PLACES, TOP_PLACES)
    assert anomaly.file_ids[0] == "file-00007"
    assert (found.vehicle_count, len(found.vehicles), len(found.logs)) == (400, TOP_VEHICLES, TOP_LOGS)
    assert all(each.anomaly_codes == (anomaly.code,) for each in found.vehicles)
    assert sum(each.lines for each in found.timeline) == found.lines


def test_templates_beyond_the_bound_are_counted_as_lines_and_grave_ones_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tallies, "MAX_FOLLOWED", 20)
    logs = [with_lines(each, {(None, f"only here {n}"): 1}) for n, each in enumerate(fleet(30))]
    logs[3] = with_lines(logs[3], {(Level.FATAL, "slot <*> is corrupt"): 1})
    found, turned = summed(logs), summed(logs[::-1])
    assert found == turned
    assert found.template_count == 20
    assert found.unlisted_lines == found.parsed_lines - sum(each.count for each in found.templates) > 0
    assert "slot <*> is corrupt" in [each.text for each in found.templates]


def test_a_summary_of_long_texts_stays_within_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MAX_SUMMARY_BYTES", 50_000)
    logs = [with_lines(each, {(Level.INFO, f"{n} {'长' * 300}"): 1}) for n, each in enumerate(fleet(40))]
    found = summed(logs)
    assert len(encode(found)) <= 50_000
    assert found.template_count == 50

"""Numeric signals: what breaks a rule, where, and what a healthy log must not break."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from activities.parsing.reader import open_log
from activities.parsing.signal_rules import rules
from activities.parsing.signal_watches import WATCHES
from activities.parsing.signals import SignalCollector
from activities.parsing.source import Account
from domain.logs import MAX_EXAMPLES, Level, Signal

DEFINITIONS = """FMT, 128, 89, FMT, BBnNZ, Type,Length,Name,Format
FMT, 129, 23, PARM, Nf, Name,Value
FMT, 1, 17, ATT, cccc, RollIn,Roll,PitchIn,Pitch
FMT, 4, 25, CTUN, hfhh, ThrIn,BarAlt,CRate,ThrOut
FMT, 9, 19, CURR, hIhhhf, ThrOut,ThrInt,Volt,Curr,Vcc,CurrTot
FMT, 3, 6, MODE, Mh, Mode,ThrCrs
FMT, 13, 4, EV, B, Id
FMT, 19, 5, ERR, BB, Subsys,ECode
FMT, 130, 45, GPS, BIHBI, Status,TimeMS,Week,NSats,T
PARM, ANGLE_MAX, 3500.000
PARM, FS_BATT_VOLTAGE, 14.0
""".splitlines()


def signals(lines: Iterable[str], name: str = "a.log") -> dict[str, Signal]:
    return collected(name, ["\n".join(lines).encode()])


def collected(name: str, chunks: Iterable[bytes]) -> dict[str, Signal]:
    account = Account()
    collector = SignalCollector(account)
    for line in open_log(name, chunks, account=account):
        collector.take(line)
    return {signal.code: signal for signal in collector.signals()}


def flight(*records: str) -> dict[str, Signal]:
    return signals([*DEFINITIONS, *records])


def test_every_rule_says_how_it_is_counted() -> None:
    every = [rule for section in rules().values() for rule in section]
    assert {rule.by for rule in every} == {*WATCHES, "unwritten"}


def test_a_healthy_flight_breaks_no_rule() -> None:
    records = [
        f"ATT, 0, {number % 40}, 0, 3|CTUN, 500, {number % 90}, 60, 720|GPS, 3, 1000, 2410, 9, {number * 200}"
        for number in range(200)
    ]
    rest = (
        "EV, 10|MODE, STABILIZE, 300|CURR, 500, 1, 1480, 900, 5020, 1|"
        + "|".join(records)
        + "|EV, 11|ERR, 5, 0"
    )
    assert flight(*rest.split("|")) == {}


def test_a_lean_beyond_the_log_s_own_limit_is_told_with_its_worst_lines() -> None:
    rolls = [30, 44, 46, -178.3, 60, 50]
    found = flight(*(f"ATT, 0, {roll}, 0, 3" for roll in rolls))["lean_angle"]
    assert (found.count, found.value, found.bound, found.unit) == (4, 178.3, 35.0, "°")
    assert found.level is Level.ERROR
    first = len(DEFINITIONS) + 1
    assert [(quote.line, quote.text) for quote in found.quotes] == [
        (first + 3, "ATT, 0, -178.3, 0, 3"),
        (first + 4, "ATT, 0, 60, 0, 3"),
        (first + 5, "ATT, 0, 50, 0, 3"),
    ]


def test_a_pilot_may_lean_as_far_as_the_mode_lets_him() -> None:
    assert flight("MODE, ACRO, 300", "ATT, 0, 100, 0, 3") == {}
    assert "lean_angle" in flight("MODE, ACRO, 300", "MODE, LOITER, 300", "ATT, 0, 100, 0, 3")


def test_weak_thrust_is_a_mean_over_a_stretch_of_level_flight() -> None:
    climbing = ["CTUN, 500, 1, 0, 740"] * 60
    found = flight("ATT, 0, 2, 0, 3", *climbing, "CTUN, 500, 1, 61, 679")["weak_thrust"]
    assert (found.count, found.value, found.bound, found.unit) == (1, 1.0, 50.0, "cm/s")
    first = len(DEFINITIONS) + 2
    assert found.detail == f"1.00 cm/s on average at a mean ThrOut of 739, lines {first} to {first + 60}"
    assert [quote.line for quote in found.quotes] == [first, first + 60]
    assert flight("ATT, 0, 2, 0, 3", *climbing[:50], "CTUN, 500, 1, 0, 600") == {}
    assert flight("ATT, 0, 25, 0, 3", *climbing) == {}


def test_faults_that_the_machine_noted_are_told_by_name_and_their_end_is_none() -> None:
    found = flight("ERR, 9, 1", "ERR, 9, 0", "ERR, 12, 1", "ERR, 12, 1", "ERR, 77, 1")
    assert {code: (signal.title, signal.count) for code, signal in found.items()} == {
        "error_fence": ("FENCE: fence breached", 1),
        "error_crash": ("CRASH: crash detected", 2),
        "error_subsystem_77": ("SUBSYSTEM_77: unknown subsystem", 1),
    }


@pytest.mark.parametrize(
    ("records", "code", "value"),
    [
        (["CURR, 500, 1, 1383, 900, 5020, 1"], "battery_low", 13.83),
        (["CURR, 500, 1, 1480, 900, 4210, 1"], "board_brown_out", 4.21),
        (["GPS, 3, 1000, 2410, 4, 200"], "few_satellites", 4.0),
        (["GPS, 3, 1000, 2410, 9, 200", "GPS, 3, 1000, 2410, 9, 9200"], "recording_gap", 9.0),
        (["GPS, 3, 1000, 2410, 9, 9200", "GPS, 3, 1000, 2410, 9, 200"], "restart", 9.0),
        (["EV, 10", "CTUN, 500, 44.5, 1, 300"], "ended_in_the_air", 44.5),
        (["ATT, 0, NaN, 0, 3"], "not_a_number", None),
    ],
)
def test_a_flight_breaks_a_rule(records: list[str], code: str, value: float | None) -> None:
    found = flight(*records)
    assert list(found) == [code]
    assert found[code].value == (value if value is None else pytest.approx(value))
    assert found[code].quotes[-1].text == records[-1]


@pytest.mark.parametrize(
    ("lines", "code", "value"),
    [
        (["2026-03-17T16:13:38Z vbat=7.9V slot"], "supply_low", 7.9),
        (["supply voltage is 6.5 V"], "supply_low", 6.5),
        (["kernel: Brown-out detected on rail 3"], "brown_out", None),
        (["检测到欠压"], "brown_out", None),
        (["mcu: reset by watchdog"], "watchdog", None),
        (["ratio=nan"], "not_a_number", None),
        (["[   12.345] up", "[  900.000] up", "[    0.100] boot"], "restart", 899.9),
        (["2026-03-17T16:13:38Z a", "2026-03-17T16:11:38Z b"], "clock_went_back", 120.0),
        (["slot \0\0\0\0"], "unwritten_bytes", None),
    ],
)
def test_text_breaks_a_rule(lines: list[str], code: str, value: float | None) -> None:
    found = signals(lines)
    assert list(found) == [code]
    assert found[code].value == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "line",
    [
        "vbat=12.6V",
        "voltage=3.3",
        "voltage=4200mV",
        "vbat=12",
        "Brownout detector enabled",
        "no under-voltage",
        "watchdog started, timeout 30 s",
        "INFO nano banana info=1",
        "2026-03-17T16:13:38Z a",
        "2026-03-17T16:13:30Z b",
    ],
)
def test_what_only_looks_like_a_fault_breaks_no_rule(line: str) -> None:
    assert signals(["2026-03-17T16:13:38Z a", line]) == {}


def test_a_signal_counts_all_and_quotes_few() -> None:
    found = signals(f"vbat={volts / 10}V" for volts in range(50, 89))["supply_low"]
    assert (found.count, found.value, len(found.quotes)) == (39, 5.0, MAX_EXAMPLES)
    assert [quote.text for quote in found.quotes] == ["vbat=5.0V", "vbat=5.1V", "vbat=5.2V"]


@pytest.mark.skipif(
    "ASSAY_LOG_DATA" not in os.environ, reason="ASSAY_LOG_DATA names no folder of public logs"
)
@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "mechanical_fail",
            {"lean_angle": (178.3, 35.0), "error_fence": None, "error_crash": None, "error_fs_thr": None},
        ),
        ("underpowered", {"weak_thrust": (0.07, 50.0), "error_gps": None, "error_fs_batt": None}),
    ],
)
def test_the_public_flight_logs_tell_what_they_are_known_for(
    name: str, told: dict[str, tuple[float, float] | None]
) -> None:
    content = Path(os.environ["ASSAY_LOG_DATA"], "ardupilot", f"{name}.log").read_bytes()
    found = collected(f"{name}.log", [content])
    lines = content.decode().splitlines()
    for code, measured in told.items():
        if measured is not None:
            assert (round(found[code].value or 0, 2), found[code].bound) == measured
    assert told.keys() <= found.keys()
    for signal in found.values():
        assert all(quote.text == lines[quote.line - 1].rstrip() for quote in signal.quotes)

"""Times as logs write them, read as moments."""

from datetime import UTC, datetime

import pytest

from activities.parsing.text import Heads
from activities.parsing.times import Times, Years
from domain.logs import Level

WRITTEN_AT = datetime(2026, 3, 18, tzinfo=UTC)
SECOND = datetime(2026, 3, 17, 16, 13, 38, tzinfo=UTC)
MOMENT = SECOND.replace(microsecond=811_000)


@pytest.mark.parametrize(
    ("line", "at", "level", "content"),
    [
        ("2026-03-17T16:13:38.811Z [main] ERROR c.x.Slot - no", MOMENT, Level.ERROR, "c.x.Slot - no"),
        ("2026-03-18T00:13:38.811+08:00 WARN: slot", MOMENT, Level.WARNING, "slot"),
        ("2026-03-18 00:13:38,811 +0800 slot", MOMENT, None, "slot"),
        ("[2026/03/17 16:13:38.811] [error] slot", MOMENT, Level.ERROR, "slot"),
        ("2026-03-17 16:13:38.811000 UTC I slot", MOMENT, None, "I slot"),
        ("03-17 16:13:38.811  1702  2395 D Ota: slot", MOMENT, Level.DEBUG, "slot"),
        ("2026-03-17-16.13.38.811000 R00 RAS KERNEL FATAL slot", MOMENT, None, "R00 RAS KERNEL FATAL slot"),
        ("E0317 16:13:38.811000 12345 ota.cc:12] slot", MOMENT, Level.ERROR, "slot"),
        ("1773764018.811 INFO slot", MOMENT, Level.INFO, "slot"),
        ("1773764018811 slot", MOMENT, None, "slot"),
        ("1773764018811000 slot", MOMENT, None, "slot"),
        ("1773764018811000000 slot", MOMENT, None, "slot"),
        ("20260317-16:13:38:811|Ota|slot", MOMENT, None, "Ota|slot"),
        ("260317 161338 148 INFO dfs.Ota$Slot: slot", SECOND, Level.INFO, "slot"),
        ("26/03/17 16:13:38 INFO ota.Slot: slot", SECOND, Level.INFO, "slot"),
        ("Mar 17 16:13:38 ecu otad(slot)[19939]: slot", SECOND, None, "slot"),
        ("<11>Mar 17 16:13:38 ecu otad: slot", SECOND, Level.ERROR, "slot"),
        ("[Tue Mar 17 16:13:38 2026] [warn] slot", SECOND, Level.WARNING, "slot"),
        ('10.0.0.1 - - [17/Mar/2026:18:13:38 +0200] "GET /"', SECOND, None, '10.0.0.1 - - ["GET /"'),
        ("INFO 2026-03-17 16:13:38 slot", SECOND, Level.INFO, "slot"),
        ("2026年3月17日 16:13:38 [错误] 电池电压过低", SECOND, Level.ERROR, "电池电压过低"),
        ("[   12.345678] usb 1-1: slot", datetime(1970, 1, 1, 0, 0, 12, 345_678, UTC), None, "usb 1-1: slot"),
        ("\x1b[31m2026-03-17 16:13:38 ERROR\x1b[0m slot", SECOND, Level.ERROR, "slot"),
        ("2026-02-31 16:13:38 slot", None, None, "slot"),
        ("2026-03-17 16:13:38 retry after ERROR code 5", SECOND, None, "retry after ERROR code 5"),
        ("error: no slot", None, Level.ERROR, "error: no slot"),
        ("    at ota.Slot.flash(Slot.java:12)", None, None, "at ota.Slot.flash(Slot.java:12)"),
    ],
)
def test_a_line_is_told_apart(line: str, at: datetime | None, level: Level | None, content: str) -> None:
    assert Heads(WRITTEN_AT).split(line) == (at, level, content)


def test_the_layout_of_a_log_may_change_within_it() -> None:
    heads = Heads(WRITTEN_AT)
    lines = ["Mar 17 16:13:38 ecu otad: slot", "2026-03-17T16:13:38Z slot", "Mar 17 16:13:38 ecu otad: slot"]
    assert [heads.split(line) for line in lines] == [(SECOND, None, "slot")] * 3


def test_a_time_within_a_message_is_not_the_line_s_own() -> None:
    heads = Heads(WRITTEN_AT)
    heads.split("2026-03-17T16:13:38Z slot")
    assert heads.split("  valid until 2027-01-01T00:00:00Z")[0] is None


@pytest.mark.parametrize(
    ("written_at", "dates", "years"),
    [
        (datetime(2026, 3, 18, tzinfo=UTC), [(3, 17)], [2026]),
        (datetime(2026, 3, 18, tzinfo=UTC), [(3, 25)], [2025]),
        (datetime(2026, 1, 3, tzinfo=UTC), [(12, 31), (1, 1), (12, 31), (1, 2)], [2025, 2026, 2025, 2026]),
        (datetime(2025, 12, 31, 23, tzinfo=UTC), [(1, 1)], [2026]),
        (datetime(2025, 12, 31, 23, tzinfo=UTC), [(11, 1), (10, 31)], [2025, 2025]),
    ],
)  # fmt: skip
def test_a_date_without_a_year_gets_one(
    written_at: datetime, dates: list[tuple[int, int]], years: list[int]
) -> None:
    clock = Years(written_at)
    assert [clock.of(month, day) for month, day in dates] == years


@pytest.mark.parametrize(
    "value", [1_773_764_018, 1_773_764_018.0, "1773764018", "2026-03-17T16:13:38Z", "Mar 17 16:13:38"]
)
def test_a_field_of_its_own_is_read_as_a_moment(value: object) -> None:
    assert Times(WRITTEN_AT).in_field(value) == SECOND


@pytest.mark.parametrize("value", [None, "", "soon", 12, True, ["2026"], 10**30, float("nan")])
def test_what_is_no_moment_is_none(value: object) -> None:
    assert Times(WRITTEN_AT).in_field(value) is None

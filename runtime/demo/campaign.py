"""The demonstration's logs: an update campaign over twelve vehicles that failed for three reasons.

Written by this program, by no vehicle: four vehicles lose the download server, two have a clock of years ago
and refuse the package's certificate, three lose voltage while the new software is made active and roll back;
three are updated. Every vehicle has its update client's text log, its modem's log in JSON lines and its
supply's in CSV. A month before, the same vehicles were all updated: the baseline.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

VEHICLES = tuple(f"V{number:02}" for number in range(1, 13))
#: which vehicles hide which cause; the other ones are updated
DOWNLOAD_FAILS = ("V02", "V05", "V09", "V11")
CLOCK_IS_WRONG = ("V03", "V07")
VOLTAGE_DROPS = ("V04", "V08", "V12")
#: by the cause's id in the embedded model's rules
CAUSES = {
    "ota_download_failed": DOWNLOAD_FAILS,
    "ota_signature_invalid": CLOCK_IS_WRONG,
    "ota_brown_out": VOLTAGE_DROPS,
}

_CAMPAIGN = datetime(2026, 3, 14, 1, 0, tzinfo=UTC)
_MONTH_BEFORE = datetime(2026, 2, 10, 1, 0, tzinfo=UTC)
_CLOCK_OF_YEARS_AGO = datetime(2019, 1, 1, 0, 4, tzinfo=UTC)
_CHUNKS = 64


def healthy_logs() -> dict[str, bytes]:
    """The baseline's files by name: every vehicle was updated."""
    return _logs(_MONTH_BEFORE, "4.1.0", "4.2.0", {})


def failed_logs() -> dict[str, bytes]:
    """The failed campaign's files by name."""
    fates = {vehicle: cause for cause, vehicles in CAUSES.items() for vehicle in vehicles}
    return _logs(_CAMPAIGN, "4.2.0", "4.3.0", fates)


def vehicle_of(name: str) -> str:
    """Whose log a file of the demonstration is."""
    return name.partition("-")[0]


def _logs(since: datetime, old: str, new: str, fates: dict[str, str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number, vehicle in enumerate(VEHICLES):
        chance = random.Random(f"{vehicle} {new}")  # noqa: S311  # a story, no secret
        began = since + timedelta(minutes=7 * number, seconds=chance.randrange(60))
        story = _Story(vehicle, chance, began, old, new)
        _TELLERS[fates.get(vehicle, "")](story)
        files |= {f"{vehicle}-{name}": content for name, content in story.files()}
    return files


@dataclass
class _Story:
    """One vehicle's night: three logs over one clock."""

    vehicle: str
    chance: random.Random
    now: datetime
    old: str
    new: str
    client: list[str] = field(default_factory=list)
    modem: list[str] = field(default_factory=list)
    supply: list[tuple[str, str, str, str]] = field(default_factory=list)
    #: what the vehicle's clock is ahead of the truth by
    ahead: timedelta = timedelta()

    def files(self) -> Iterator[tuple[str, bytes]]:
        """The three logs, by the rest of their names."""
        yield "update.log", "\n".join([*self.client, ""]).encode()
        yield "modem.jsonl", "\n".join([*self.modem, ""]).encode()
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(
            [("time", "level", "message", "millivolts"), *self.supply]
        )
        yield "supply.csv", table.getvalue().encode()

    def wait(self, least: float, most: float) -> None:
        """Let some seconds pass."""
        self.now += timedelta(seconds=self.chance.uniform(least, most))

    def say(self, level: str, part: str, text: str) -> None:
        """A line of the update client."""
        at = (self.now + self.ahead).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.client.append(f"{at} {level:<5} [{part}] {text}")
        self.wait(0.02, 0.4)

    def radio(self, level: str, text: str, **fields: object) -> None:
        """A line of the modem."""
        at = (self.now + self.ahead).isoformat(timespec="milliseconds")
        self.modem.append(json.dumps({"time": at, "level": level, "message": text, **fields}))

    def measure(self, millivolts: int, text: str = "supply voltage sample", level: str = "info") -> None:
        """A row of the supply's log."""
        at = (self.now + self.ahead).isoformat(timespec="milliseconds")
        self.supply.append((at, level, text, str(millivolts)))


# --- what every night has ------------------------------------------------------------------------


def _start(story: _Story) -> None:
    story.say("INFO", "client", f"update client started, software {story.old}, slot A active")
    story.say("INFO", "clock", f"system time {(story.now + story.ahead).date().isoformat()} from the RTC")
    story.radio("info", "attached to network", cell=story.chance.randrange(10_000, 99_999), rssi_dbm=-71)
    for _ in range(story.chance.randrange(8, 14)):
        _idle(story)
    story.say("INFO", "campaign", f"campaign offers software {story.new}, {_CHUNKS} chunks of 1048576 bytes")
    story.say(
        "INFO", "precondition", "parked, ignition off, battery charge sufficient, 3120 MB of storage free"
    )


def _idle(story: _Story) -> None:
    """What happens in every night, and means nothing."""
    story.wait(4, 20)
    story.measure(story.chance.randrange(12_450, 12_700))
    what = story.chance.random()
    if what < 0.5:
        story.say("INFO", "client", f"heartbeat sent, sequence {story.chance.randrange(10**6)}")
    elif what < 0.8:
        story.radio("info", "signal report", rssi_dbm=-story.chance.randrange(60, 95))
    elif what < 0.95:
        story.say("DEBUG", "storage", f"wear level {story.chance.randrange(1, 9)} percent, no bad blocks")
    else:
        story.say("WARN", "can", f"frame 0x{story.chance.randrange(0x100, 0x7FF):03X} came late, ignored")


def _download(story: _Story, chunks: int = _CHUNKS) -> None:
    host = story.chance.choice(("edge-1.updates.example", "edge-2.updates.example"))
    story.say("INFO", "download", f"session opened with {host}")
    for chunk in range(1, chunks + 1):
        story.wait(0.3, 1.5)
        took = story.chance.randrange(180, 900)
        story.say("INFO", "download", f"chunk {chunk} of {_CHUNKS} received in {took} ms")
        if chunk % 8 == 0:
            story.measure(story.chance.randrange(12_400, 12_650))
            story.radio("info", "signal report", rssi_dbm=-story.chance.randrange(60, 95))
        # a good night has this, too
        if story.chance.random() < 0.02:
            story.say("WARN", "download", f"chunk {chunk} came slowly, window reduced to 64 KiB")


def _verify(story: _Story) -> None:
    story.say("INFO", "verify", f"package complete, {_CHUNKS} chunks, digest matches the manifest")
    story.say("INFO", "verify", "signature of the manifest accepted, signer release-key-7")


def _flash(story: _Story) -> None:
    story.say("INFO", "flash", "writing slot B")
    for share in range(10, 101, 10):
        story.wait(6, 12)
        story.measure(story.chance.randrange(12_150, 12_400))
        story.say("INFO", "flash", f"slot B written, {share} percent")


def _settle(story: _Story) -> None:
    for _ in range(story.chance.randrange(5, 10)):
        _idle(story)


# --- how the nights end --------------------------------------------------------------------------


def _updated(story: _Story) -> None:
    _start(story)
    _download(story)
    _verify(story)
    _flash(story)
    story.say("INFO", "slot", "slot B marked active, restarting")
    story.wait(20, 40)
    story.say("INFO", "boot", f"started from slot B, software {story.new}")
    story.say("INFO", "health", "self check passed, slot B confirmed")
    story.say("INFO", "campaign", "result reported: installed")
    _settle(story)


def _download_fails(story: _Story) -> None:
    _start(story)
    reached = story.chance.randrange(21, 45)
    _download(story, reached)
    lost = reached + 1
    story.radio("warning", "packet loss on data bearer", percent=story.chance.randrange(35, 70))
    for attempt in range(1, 6):
        story.wait(28, 33)
        story.say(
            "ERROR",
            "download",
            f"chunk {lost} of {_CHUNKS}: request to edge-3.updates.example timed out after 30 s",
        )
        story.say("WARN", "download", f"retry {attempt} of 5 for chunk {lost} in {2**attempt} s")
        story.wait(2**attempt, 2**attempt + 1)
    story.say("ERROR", "download", f"giving up at chunk {lost} of {_CHUNKS}, retries exhausted")
    story.say("ERROR", "campaign", "result reported: download failed")
    _settle(story)


def _clock_is_wrong(story: _Story) -> None:
    # the clock's battery was changed: it began anew
    story.ahead = _CLOCK_OF_YEARS_AGO - story.now
    _start(story)
    story.say("WARN", "clock", "RTC lost its time, using the build's date until the network tells another")
    _download(story)
    story.say("INFO", "verify", f"package complete, {_CHUNKS} chunks, digest matches the manifest")
    today = (story.now + story.ahead).date().isoformat()
    story.say(
        "ERROR",
        "verify",
        f"certificate of release-key-7 is not yet valid: system time {today}, valid from 2025-06-01",
    )
    story.say("ERROR", "verify", "signature of the manifest rejected, package discarded")
    story.say("ERROR", "campaign", "result reported: verification failed")
    _settle(story)


def _voltage_drops(story: _Story) -> None:
    _start(story)
    _download(story)
    _verify(story)
    _flash(story)
    story.say("INFO", "slot", "slot B marked active, restarting")
    story.wait(2, 4)
    low = story.chance.randrange(8_300, 9_100)
    story.measure(low, "supply voltage below the brown-out threshold of 9500 mV", "error")
    story.wait(1, 2)
    story.say("ERROR", "power", f"brown-out reset while switching to slot B, supply at {low} mV")
    for attempt in range(1, 4):
        story.wait(10, 20)
        story.measure(
            story.chance.randrange(8_900, 9_480),
            "supply voltage below the brown-out threshold of 9500 mV",
            "error",
        )
        story.say("ERROR", "boot", f"boot attempt {attempt} of 3 from slot B failed: image not confirmed")
    story.say("WARN", "slot", f"rolled back to slot A, software {story.old}")
    story.say("ERROR", "campaign", "result reported: rolled back")
    _settle(story)


_TELLERS: dict[str, Callable[[_Story], None]] = {
    "": _updated,
    "ota_download_failed": _download_fails,
    "ota_signature_invalid": _clock_is_wrong,
    "ota_brown_out": _voltage_drops,
}

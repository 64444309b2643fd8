"""A batch under chaos: workers killed and stopped, Valkey flushed, Postgres gone for seconds.

The seed is printed; `CHAOS_SEED=… make chaos` does the same things in the same order again.
"""

import os
import random
import time
from pathlib import Path

import pytest
from rich.console import Console

from domain.states import BATCH_MACHINE
from tests.river.chaos import (
    USD_IN,
    USD_OUT,
    Chaos,
    Reckoning,
    SecondWorker,
    settings_of,
    table_of,
    told,
)
from tests.river.classroom import Classroom, write_script
from tests.river.installation import Up, calls_in, patiently, until, wait_ended


def seed() -> int:
    """The one that is asked for, or any."""
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.parametrize(
    ("files", "latency_seconds", "max_concurrent", "rounds"),
    [
        pytest.param(40, 0.3, 8, 3, marks=[pytest.mark.prove, pytest.mark.timeout(600)], id="short"),
        pytest.param(200, 1.0, 10, 30, marks=[pytest.mark.long, pytest.mark.timeout(1200)], id="long"),
    ],
)
def test_chaos_loses_nothing_repeats_nothing_and_pays_for_nothing_twice(
    tmp_path: Path, files: int, latency_seconds: float, max_concurrent: int, rounds: int
) -> None:
    classroom, log = Classroom.of(tmp_path / "class", files), tmp_path / "calls.jsonl"
    settings = settings_of(write_script(tmp_path / "script.yaml", log, latency_seconds=latency_seconds))
    chosen = seed()
    print(f"CHAOS_SEED={chosen}")  # noqa: T201  shown by -rP, and with a failure
    with (
        Up(tmp_path / "data", **settings) as up,
        up.client() as client,
        SecondWorker(up, **settings) as second,
    ):
        rates = ("--tokens-in", USD_IN, "--tokens-cached", USD_IN, "--tokens-out", USD_OUT)
        told(up, "prices", "set", "scripted", *rates)
        began = time.monotonic()
        batch_id = classroom.hand_in(client, max_concurrent=max_concurrent)

        def is_over() -> bool:
            batch = patiently(lambda: client.get(f"/v1/batches/{batch_id}"))
            return batch["status"] in BATCH_MACHINE.final

        until(lambda: calls_in(log), "the batch is under way", 120)
        chaos = Chaos(up, second, log, chosen)
        chaos.reign(is_over, rounds=rounds)
        ended = wait_ended(client, batch_id)
        why = [
            (each["name"], each["failure_code"], each["failure_message"])
            for each in patiently(lambda: list(client.files(batch_id)))
            if each["state"] != "completed"
        ]
        assert (ended, why) == ("completed", [])
        seconds = time.monotonic() - began
        reckoning = Reckoning.of(up, batch_id, chaos, log)
        table = table_of(chaos, reckoning, title=f"{files} submissions, seed {chosen}", seconds=seconds)
        Console(width=100).print(table)
        classroom.assert_exact(client, batch_id)
        classroom.assert_events_exact(client, batch_id)
        reckoning.assert_sound(files)
        reckoning.assert_told(up, client, batch_id)

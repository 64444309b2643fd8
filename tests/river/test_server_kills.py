"""kill -9 of PostgreSQL, Valkey and Temporal in the middle of a batch; Valkey gone for good."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.client import ApiClient
from tests.river.classroom import Classroom, write_script
from tests.river.installation import (
    ASSAY,
    Up,
    counts_of,
    environment,
    patiently,
    until,
    wait_ended,
    wait_finished,
)

SERVERS = ("postgres", "valkey", "temporal")


@contextmanager
def started(folder: Path) -> Iterator[Up]:
    """An installation whose scripted model answers after a third of a second."""
    script = write_script(folder / "script.yaml", folder / "calls.jsonl", latency_seconds=0.3)
    with Up(
        folder / "data",
        ASSAY_MODELS__SCRIPT=str(script),
        ASSAY_WORKER__HEARTBEAT_TIMEOUT_SECONDS="2",
        ASSAY_WORKER__TASK_TIMEOUT_SECONDS="2",
    ) as up:
        yield up


@pytest.mark.prove
def test_each_server_killed_in_a_batch_comes_back_and_the_marks_are_exact(tmp_path: Path) -> None:
    classroom = Classroom.of(tmp_path / "class", 80)
    with started(tmp_path) as up, up.client() as client:
        addresses = up.addresses
        batch_id = classroom.hand_in(client)
        with subprocess.Popen(
            [ASSAY, "watch", batch_id],
            cwd=tmp_path,
            env=environment(up.folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as watcher:
            for server, finished in zip(SERVERS, (5, 25, 45), strict=True):
                wait_finished(client, batch_id, finished)
                began = time.monotonic()
                up.wait_child(server, other_than=up.kill_child(server))
                print(f"{server} ran again after {time.monotonic() - began:.1f} s")  # noqa: T201  for -rP
            assert wait_ended(client, batch_id) == "completed"
            # whoever watches sees it through
            assert watcher.wait(timeout=90) == 0
            assert watcher.stdout is not None
            assert watcher.stdout.read() == "completed\n"
        classroom.assert_exact(client, batch_id)
        classroom.assert_events_exact(client, batch_id)
        assert up.addresses == addresses
        # a pooled connection to the server that was killed may be met late, once each
        whole = {"status": "ready", "degraded": []}
        until(lambda: client.get("/health/ready") == whole, "whole again", 60)


class Follower(threading.Thread):
    """Reads a batch's events to the end."""

    def __init__(self, client: ApiClient, batch_id: str) -> None:
        super().__init__(daemon=True)
        self._events = client.events(batch_id)
        self.heard: list[tuple[float, str, dict[str, Any]]] = []
        self.start()

    def run(self) -> None:
        for kind, event in self._events:
            self.heard.append((time.monotonic(), kind, event))


def degraded(client: ApiClient) -> bool:
    health = client.get("/health/ready")
    return bool(health["status"] == "ready" and health["degraded"] == ["redis"])


@pytest.mark.prove
def test_with_valkey_gone_for_good_the_batch_completes_and_progress_comes_from_postgres(
    tmp_path: Path,
) -> None:
    classroom = Classroom.of(tmp_path / "class", 80)
    with started(tmp_path) as up, up.client() as client:
        batch_id = classroom.hand_in(client)
        follower = Follower(client, batch_id)
        wait_finished(client, batch_id, 5)
        prevent_return(up)
        dead = up.kill_child("valkey")
        gone_at = time.monotonic()
        until(lambda: degraded(client), "degraded", 60)
        seen = set()
        while (finished := counts_of(client, batch_id)["completed"]) < len(classroom.files):
            seen.add(finished)
            assert time.monotonic() - gone_at < 150
            time.sleep(0.1)
        assert wait_ended(client, batch_id) == "completed"
        follower.join(timeout=90)
        assert not follower.is_alive()

        assert len(seen) > 5, "the API showed no progress on the way"
        assessed = [at for at, kind, _ in follower.heard if kind == "FileAssessed" and at > gone_at]
        pauses = [later - earlier for earlier, later in pairwise(assessed)]
        assert len(assessed) > 40
        print(  # noqa: T201  figures, shown by -rP
            f"without Valkey: {len(assessed)} files told by SSE, longest pause {max(pauses):.1f} s; "
            f"{len(seen)} different counts seen at the API; all done {time.monotonic() - gone_at:.1f} s after"
        )
        assert max(pauses) < 15
        # a batch that begins without it, too
        again = Classroom.of(tmp_path / "again", 10)
        second = again.hand_in(client)
        assert wait_ended(client, second) == "completed"
        for room, batch in ((classroom, batch_id), (again, second)):
            room.assert_exact(client, batch)
            room.assert_events_exact(client, batch)
        assert degraded(client)
        assert "valkey" not in up.pids

        allow_return(up)
        up.wait_child("valkey", other_than=dead)
        until(lambda: not degraded(client), "whole again", 60)


def prevent_return(up: Up) -> None:
    """A folder where the server's configuration should be: every restart fails."""
    configuration = up.folder / "valkey" / "valkey.conf"
    configuration.unlink()
    configuration.mkdir()


def allow_return(up: Up) -> None:
    (up.folder / "valkey" / "valkey.conf").rmdir()


@pytest.mark.prove
def test_without_postgres_the_api_says_so_and_serves_again_when_it_is_back(tmp_path: Path) -> None:
    with started(tmp_path) as up, up.client() as client:
        dead = up.kill_child("postgres")
        began = time.monotonic()
        refusals = 0
        while (health := ready(up)).status_code != httpx.codes.OK:
            assert health.status_code == httpx.codes.SERVICE_UNAVAILABLE
            assert "postgres" in health.json()["degraded"], health.text
            refusals += 1
            assert time.monotonic() - began < 120
            time.sleep(0.05)
        up.wait_child("postgres", other_than=dead)
        assert refusals
        assert patiently(lambda: client.get("/v1/batches"))["total"] == 0
        print(f"the API was whole again after {time.monotonic() - began:.1f} s")  # noqa: T201  for -rP


def ready(up: Up) -> httpx.Response:
    return httpx.get(f"{up.installation.api_url}/health/ready", timeout=60)

"""The embedded stack under kill -9 of its owner: no orphan, and the next start works."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from runtime.embedded import (
    EmbeddedStack,
    ping_postgres,
    ping_temporal,
    ping_valkey,
    running_stack,
    user_namespace,
)

ROOT = Path(__file__).parents[2]
GONE_SECONDS = 40.0
OWNER = """
import asyncio, sys
from pathlib import Path
from runtime.embedded import EmbeddedStack

async def main():
    stack = EmbeddedStack(Path(sys.argv[1]))
    await stack.start()
    print("ready", flush=True)
    await stack.supervise()

asyncio.run(main())
"""


class Owner:
    """A process that owns a stack, to be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.children: set[psutil.Process] = set()

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == b"ready\n":
                return
        raise AssertionError("the owner ended before its stack was ready")

    def wait_for_children(self) -> None:
        """Wait until the first server has been started."""
        deadline = time.monotonic() + GONE_SECONDS
        while not psutil.Process(self.process.pid).children():
            assert time.monotonic() < deadline, "the owner has started no server"
            time.sleep(0.005)

    def kill(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.children = set(psutil.Process(self.process.pid).children(recursive=True))
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def orphans(self) -> list[str]:
        """What still runs: known children, and whatever works in the folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process in self.children or process.cwd().startswith(str(self.folder))
                named = str(self.folder) in " ".join(process.cmdline())
                if (ours or named) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {process.name()}")
        return found

    def assert_no_orphans(self) -> float:
        began = time.monotonic()
        while orphans := self.orphans():
            assert time.monotonic() - began < GONE_SECONDS, orphans
            time.sleep(0.05)
        return time.monotonic() - began


@pytest.fixture
def owners() -> Iterator[list[Owner]]:
    made: list[Owner] = []
    yield made
    for owner in made:
        if owner.process.poll() is None:
            owner.kill()
        owner.assert_no_orphans()


async def assert_starts(folder: Path) -> None:
    async with EmbeddedStack(folder) as stack:
        await ping_postgres(stack.addresses.postgres_url)
        await ping_valkey(stack.addresses.redis_url)
        await ping_temporal(stack.addresses.temporal_address, stack.addresses.temporal_namespace)


def assert_some_had_children(owners: list[Owner]) -> None:
    # Otherwise the moments were all too early, and nothing was proved.
    assert sum(bool(owner.children) for owner in owners) >= 6


def measure_start(folder: Path, owners: list[Owner]) -> float:
    began = time.monotonic()
    owner = Owner(folder)
    owners.append(owner)
    owner.wait_ready()
    seconds = time.monotonic() - began
    owner.kill()
    owner.assert_no_orphans()
    return seconds


@pytest.mark.prove
@pytest.mark.timeout(600)
async def test_killed_at_ten_moments_of_its_first_start_it_leaves_no_orphan_and_starts_again(
    tmp_path: Path, owners: list[Owner]
) -> None:
    seconds = measure_start(tmp_path / "measured", owners)
    choose = random.Random(20260101)  # noqa: S311  moments, not secrets
    for round_number in range(10):
        folder = tmp_path / f"first-{round_number}"
        owner = Owner(folder)
        owners.append(owner)
        await asyncio.sleep(choose.uniform(0.1, 1.1) * seconds)
        owner.kill()
        owner.assert_no_orphans()
        await assert_starts(folder)
    assert_some_had_children(owners)


@pytest.mark.prove
@pytest.mark.timeout(600)
async def test_killed_at_ten_moments_of_later_starts_the_folder_survives(
    tmp_path: Path, owners: list[Owner]
) -> None:
    folder = tmp_path / "data"
    measure_start(folder, owners)
    seconds = measure_start(folder, owners)
    choose = random.Random(20260102)  # noqa: S311  moments, not secrets
    for number in range(10):
        owner = Owner(folder)
        owners.append(owner)
        # One that waits for its predecessor's left-overs has no children for a while: every other
        # moment is drawn from the time when it has.
        if number % 2:
            owner.wait_for_children()
        await asyncio.sleep(choose.uniform(0.1, 1.1) * seconds)
        owner.kill()  # and at once the next one, which waits for the left-overs itself
    await assert_starts(folder)
    assert_some_had_children(owners)


@pytest.mark.prove
async def test_killed_in_the_middle_of_a_transaction_everything_ends_and_only_the_commit_is_kept(
    tmp_path: Path, owners: list[Owner]
) -> None:
    owner = Owner(tmp_path / "data")
    owners.append(owner)
    owner.wait_ready()
    running = running_stack(tmp_path / "data")
    assert running is not None
    connection = await psycopg.AsyncConnection.connect(running.addresses.postgres_url)
    await connection.execute("CREATE TABLE kept (n int)")
    await connection.execute("INSERT INTO kept VALUES (1)")
    await connection.commit()
    await connection.execute("INSERT INTO kept VALUES (2)")

    owner.kill()
    owner.assert_no_orphans()
    assert running_stack(tmp_path / "data") is None
    await connection.close()

    async with (
        EmbeddedStack(tmp_path / "data") as stack,
        await psycopg.AsyncConnection.connect(stack.addresses.postgres_url) as again,
    ):
        assert await (await again.execute("SELECT n FROM kept")).fetchall() == [(1,)]


@pytest.mark.prove
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_tether_holds_in_a_user_namespace_too(tmp_path: Path, when: str) -> None:
    """A parent that is gone already, and one that goes later, both end the command."""
    tether = [*user_namespace(), sys.executable, "-I", "-S", str(ROOT / "runtime" / "tether.py"), "SIGTERM"]
    if when == "before":
        done = subprocess.run([*tether, "1", "--", "/bin/sleep", "60"], capture_output=True, timeout=60)
        assert done.returncode == 1
        assert b"the parent 1 ended before the start" in done.stderr
        return
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([*sys.argv[1:], str(os.getpid()), '--', '/bin/sleep', '60'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, *tether], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + 60
        while child.name() != "sleep":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    gone = psutil.wait_procs([child], timeout=60)[0]
    assert gone == [child] or child.status() == psutil.STATUS_ZOMBIE

"""The child that reads documents: it ends in time, within its memory, and with its parent."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from activities.intake.confinement import Confinement
from domain.errors import UnreadableSubmission

#: a child that never ends by itself, in place of a library that a file keeps busy
HANGING = """
import sys, time
sys.argv = sys.argv[1:]
from activities.intake import confined
confined.READERS["hang"] = lambda content: time.sleep(600)
confined.main(sys.argv)
"""


def readers() -> list[psutil.Process]:
    """The children of this process that read documents."""
    return [
        each
        for each in psutil.Process().children(recursive=True)
        if each.status() != psutil.STATUS_ZOMBIE and "activities.intake.confined" in each.cmdline()
    ]


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Puts an interpreter that hangs in the child's place; it marks its own command line."""
    script = tmp_path / "hang.py"
    script.write_text(
        f"import runpy, sys\nsys.argv.pop(0)\nwhile '-m' in sys.argv: sys.argv.pop(0)\n{HANGING}"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I {script} "$@"\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.usefixtures("hanging")
async def test_a_child_that_does_not_answer_is_killed_and_the_message_says_so() -> None:
    with pytest.raises(UnreadableSubmission, match="longer than 1 s"):
        await Confinement(seconds=1, memory_bytes=1024**3).read("hang", b"")
    assert readers() == []


@pytest.mark.usefixtures("hanging")
async def test_a_cancelled_reading_leaves_no_child_and_holds_up_nobody() -> None:
    reading = asyncio.create_task(Confinement(seconds=60, memory_bytes=1024**3).read("hang", b""))
    while not readers():
        await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert readers() == []


async def test_a_reader_that_wants_too_much_memory_is_a_refusal() -> None:
    # the interpreter and the library start in 64 MiB; a file of 200 MiB does not fit into it
    with pytest.raises(UnreadableSubmission, match="damaged, or larger in memory"):
        await Confinement(seconds=30, memory_bytes=64 * 1024**2).read(
            "pdf", b"%PDF-1.4" + bytes(200 * 1024**2)
        )


async def test_the_child_may_write_nothing_to_a_file(tmp_path: Path) -> None:
    target = tmp_path / "written"
    script = (
        "import os, sys; from activities.intake.confined import confine; "
        "confine(os.getppid(), 5, 1 << 30); "
        f"os.write(os.open({str(target)!r}, os.O_CREAT | os.O_WRONLY), b'x')"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, check=False
    )
    assert b"File too large" in done.stderr
    assert target.read_bytes() == b""


PARENT = """
import asyncio, sys
from activities.intake.confinement import Confinement
sys.executable = sys.argv[1]
print("ready", flush=True)
asyncio.run(Confinement(seconds=60, memory_bytes=1024**3).read("hang", b""))
"""


@pytest.mark.usefixtures("hanging")
async def test_a_parent_that_is_killed_leaves_no_child() -> None:
    python = str(Path(psutil.Process().exe()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = await asyncio.create_subprocess_exec(
        python, "-c", PARENT, sys.executable, stdout=asyncio.subprocess.PIPE, env=environment
    )
    process = psutil.Process(parent.pid)
    children: list[psutil.Process] = []
    while not any("activities.intake.confined" in each.cmdline() for each in children):
        await asyncio.sleep(0.02)
        children = process.children(recursive=True)
    # give the child the time to bind itself to its parent
    await asyncio.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    await parent.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=5)
    assert alive == []
    assert gone

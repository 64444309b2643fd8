"""`assay up` as processes of its own over a folder of its own: started, looked into, killed, ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from domain.errors import Unavailable
from domain.states import BATCH_MACHINE
from runtime.client import ApiClient, ApiUnreachable, RequestRefused
from runtime.embedded import Addresses, running_stack
from runtime.local import Installation, running_installation
from runtime.processes import ProcessIdentity, read_json

ASSAY = Path(sys.executable).with_name("assay")
# All of them end what hangs: on a busy machine whatever ends well may take its time.
START_SECONDS = 150.0
STOP_SECONDS = 90.0
GONE_SECONDS = 40.0
POLL_SECONDS = 0.05

Answer = TypeVar("Answer")


def until(ask: Callable[[], Answer | None], what: str, within_seconds: float) -> Answer:
    """The first answer that is true; fails with `what` after the time."""
    deadline = time.monotonic() + within_seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {within_seconds:g} s: {what}"
        time.sleep(POLL_SECONDS)
    return answer


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The caller's environment without its own settings, and these instead."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")}
    return {**inherited, "ASSAY_FOLDER": str(folder), **settings}


def run_assay(
    folder: Path, *arguments: str | Path, within_seconds: float = 120, **settings: str
) -> "subprocess.CompletedProcess[str]":
    """One `assay` command to its end, started beside the data folder."""
    return subprocess.run(
        [ASSAY, *arguments],
        cwd=folder.parent,
        env=environment(folder, **settings),
        capture_output=True,
        text=True,
        timeout=within_seconds,
        check=False,
    )


def processes_of(folder: Path) -> dict[int, str]:
    """Every process that knows the folder, by its command line, its environment or where it works."""
    known = str(folder).encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                continue
            command = entry.joinpath("cmdline").read_bytes()
            content = [command, entry.joinpath("environ").read_bytes()]
            with suppress(OSError):
                content.append(os.fsencode(entry.joinpath("cwd").readlink()))
            if any(known in each for each in content):
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:120]
    return found


def seconds_until_gone(folder: Path) -> float:
    """How long it takes until no process knows the folder any more; fails if it takes too long."""
    began = time.monotonic()
    while found := processes_of(folder):
        assert time.monotonic() - began < GONE_SECONDS, found
        time.sleep(POLL_SECONDS)
    return time.monotonic() - began


class Up:
    """One `assay up`; at the end of the block it is stopped, and nothing of it may be left."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.output = folder.parent / f"{folder.name}.out"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [ASSAY, "up"],
                cwd=folder.parent,
                env=environment(folder, **settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                assert self.stop() == 0, self.output.read_text()
        finally:
            self.kill()

    def wait_ready(self) -> Installation:
        """Wait until it says where it is."""

        def told() -> Installation | None:
            assert self.process.poll() is None, self.output.read_text()
            return running_installation(self.folder)

        return until(told, f"ready: {self.output}", START_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; answers its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> float:
        """End it without a word; answers how long its children outlived it."""
        self.process.kill()
        self.process.wait()
        return seconds_until_gone(self.folder)

    @property
    def installation(self) -> Installation:
        """Where it is."""
        found = running_installation(self.folder)
        assert found is not None
        return found

    @property
    def addresses(self) -> Addresses:
        """Where its own servers are."""
        found = running_stack(self.folder)
        assert found is not None
        return found.addresses

    @property
    def pids(self) -> dict[str, int]:
        """Its children by name."""
        return {each.name: each.pid for each in self._children()}

    def _children(self) -> list[ProcessIdentity]:
        rows = (read_json(self.folder / "processes.json") or {}).get("processes", [])
        return [each for row in rows if (each := ProcessIdentity(**row)).alive]

    def kill_child(self, name: str) -> int:
        """End a child without a word, once it runs, and wait until it is dead; answers its pid."""
        child = until(
            lambda: next((each for each in self._children() if each.name == name), None),
            f"{name} runs",
            # after deaths in quick succession it is started late
            60,
        )
        child.send(signal.SIGKILL)
        until(lambda: not child.alive, f"{name} is dead", 30)
        return child.pid

    def wait_child(self, name: str, other_than: int, within_seconds: float = 60) -> int:
        """Wait until the child runs again; answers its new pid."""
        return until(
            lambda: next(
                (pid for each, pid in self.pids.items() if each == name and pid != other_than), None
            ),
            f"{name} runs again",
            within_seconds,
        )

    def log_of(self, name: str) -> str:
        """What a child has logged."""
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    @contextmanager
    def client(self) -> Iterator[ApiClient]:
        """A client of its API, with its key."""
        with ApiClient(self.installation.api_url, self.installation.key) as client:
            yield client


def patiently(ask: Callable[[], Answer], within_seconds: float = 120) -> Answer:
    """The answer of an API whose servers may be away for a moment."""
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            return ask()
        except (ApiUnreachable, Unavailable):
            assert time.monotonic() < deadline
        except RequestRefused as error:
            if error.status < 500 or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def counts_of(client: ApiClient, batch_id: str) -> dict[str, int]:
    """How many of the batch's files are in each state."""
    batch = patiently(lambda: client.get(f"/v1/batches/{batch_id}"))
    counts: dict[str, int] = batch["progress"]["counts"]
    return counts


def wait_finished(client: ApiClient, batch_id: str, files: int, within_seconds: float = 150) -> None:
    """Wait until so many files have ended."""
    until(
        lambda: counts_of(client, batch_id).get("completed", 0) >= files,
        f"{files} files of {batch_id}",
        within_seconds,
    )


def wait_ended(client: ApiClient, batch_id: str, within_seconds: float = 200) -> str:
    """Wait until the batch has ended; answers its state."""

    def ended() -> str | None:
        state: str = patiently(lambda: client.get(f"/v1/batches/{batch_id}"))["status"]
        return state if state in BATCH_MACHINE.final else None

    return until(ended, f"the end of {batch_id}", within_seconds)


def calls_in(path: Path) -> list[dict[str, Any]]:
    """The scripted model's calls, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

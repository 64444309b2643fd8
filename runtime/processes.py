"""Child processes that end with us, and a record of them that outlives us."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

TETHER = Path(__file__).with_name("tether.py")
LOG_LIMIT_BYTES = 10_000_000  # looked at when a program starts; one older file is kept
KILL_WAIT_SECONDS = 10.0  # after SIGKILL only the kernel is left to wait for


class ProcessError(RuntimeError):
    """A child process could not be started or would not end."""


def write_private_json(path: Path, content: Mapping[str, Any], *, durable: bool = False) -> None:
    """Replace `path` by `content` in one step, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.new")  # one writer: the holder of the folder's lock
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
        json.dump(content, file, indent=2)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None when there is none that can be read as one."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def start_ticks(pid: int) -> int | None:
    """When the process started, in kernel ticks since boot; None when it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name may hold spaces and parentheses
    # Under a container's first process that reaps nobody, a dead child stays a zombie for ever.
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot: a pid alone is used again by strangers."""

    name: str
    pid: int
    started_ticks: int
    boot_id: str

    @classmethod
    def of(cls, name: str, pid: int) -> ProcessIdentity | None:
        """The identity of a running process, or None when it has ended."""
        started = start_ticks(pid)
        return None if started is None else cls(name, pid, started, _boot_id())

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.boot_id == _boot_id() and start_ticks(self.pid) == self.started_ticks

    def send(self, number: signal.Signals) -> None:
        """Signal this very process, and never a stranger that was given its pid."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Looked at after the handle is open: from here on the handle cannot move to another process.
            if self.alive:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class ProcessRecord:
    """The running children of one data folder, on disk, for whoever starts there after a kill -9."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._running: list[ProcessIdentity] = []

    def add(self, identity: ProcessIdentity) -> None:
        """Note a child that has just started."""
        self._running.append(identity)
        self._save()

    def remove(self, identity: ProcessIdentity) -> None:
        """Forget a child that has ended."""
        self._running = [known for known in self._running if known != identity]
        self._save()

    def leftovers(self) -> list[ProcessIdentity]:
        """The processes on disk that still run and were not started through this object."""
        rows = (read_json(self._path) or {}).get("processes", [])
        try:
            known = [ProcessIdentity(**row) for row in rows]
        except TypeError:
            return []  # written by another version; its processes are tethered anyway
        return [process for process in known if process.alive and process not in self._running]

    async def end_leftovers(self, *, grace_seconds: float) -> None:
        """Wait for the children of a killed predecessor, then kill what still runs."""
        remaining = self.leftovers()
        if remaining:
            structlog.get_logger().warning("waiting for left-over processes", left_over=_names(remaining))
        remaining = await _wait_gone(remaining, grace_seconds)
        for process in remaining:
            process.send(signal.SIGKILL)
        remaining = await _wait_gone(remaining, KILL_WAIT_SECONDS)
        if remaining:
            raise ProcessError(f"left-over processes do not end: {_names(remaining)}; end them by hand")
        self._save()

    def _save(self) -> None:
        if self._running:
            write_private_json(self._path, {"processes": [asdict(process) for process in self._running]})
        else:
            self._path.unlink(missing_ok=True)


async def _wait_gone(processes: list[ProcessIdentity], seconds: float) -> list[ProcessIdentity]:
    deadline = time.monotonic() + seconds
    # ASYNC110: they are not our children, so nothing announces their end.
    while (alive := [one for one in processes if one.alive]) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return alive


def _names(processes: Sequence[ProcessIdentity]) -> str:
    return ", ".join(f"{process.name} (pid {process.pid})" for process in processes)


@dataclass(eq=False)
class ChildProcess:
    """One foreground program that dies with us, is stopped politely first, and logs into a file."""

    name: str
    argv: Sequence[str]
    log_file: Path
    env: Mapping[str, str]
    working_folder: Path
    record: ProcessRecord
    death_signal: signal.Signals = signal.SIGTERM
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    prefix: Sequence[str] = ()  # runs before the tether: `unshare` changes credentials, which unties it
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _identity: ProcessIdentity | None = field(default=None, init=False, repr=False)
    _ended: asyncio.Future[int] | None = field(default=None, init=False, repr=False)

    def start(self) -> None:
        """Start the program; call it on the event loop of the main thread."""
        # The kernel sends the death signal when the *thread* that forked ends, not the process.
        if threading.current_thread() is not threading.main_thread():
            raise ProcessError(f"{self.name} must be started from the main thread, or it dies with this one")
        loop = asyncio.get_running_loop()
        self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _rotate(self.log_file)
        self._process = self._fork()
        self._ended = loop.create_future()
        handle = os.pidfd_open(self._process.pid)
        loop.add_reader(handle, self._on_end, loop, handle)
        self._identity = ProcessIdentity.of(self.name, self._process.pid)
        if self._identity is not None:
            self.record.add(self._identity)

    def _fork(self) -> subprocess.Popen[bytes]:
        try:
            self.log_file.touch(mode=0o600)
            with self.log_file.open("ab") as log:
                return subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(self.env),
                    cwd=self.working_folder,
                    umask=0o077,
                    # A Ctrl-C in the terminal is for us, who stop the servers in their order.
                    start_new_session=True,
                )
        except OSError as error:
            raise ProcessError(f"{self.name} could not be started: {error}") from error

    def _command(self) -> list[str]:
        tether = [sys.executable, "-I", "-S", str(TETHER), self.death_signal.name, str(os.getpid()), "--"]
        return [*self.prefix, *tether, *self.argv]

    def _on_end(self, loop: asyncio.AbstractEventLoop, handle: int) -> None:
        loop.remove_reader(handle)
        os.close(handle)
        assert self._process is not None
        assert self._ended is not None
        code = self._process.wait()
        if self._identity is not None:
            self.record.remove(self._identity)
        if not self._ended.done():
            self._ended.set_result(code)

    @property
    def pid(self) -> int | None:
        """The pid of the program, or None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the program was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    async def wait(self) -> int:
        """The exit code, once the program has ended; negative for a signal."""
        if self._ended is None:
            raise ProcessError(f"{self.name} was never started")
        return await asyncio.shield(self._ended)

    async def stop(self) -> None:
        """End the program: politely, then after the grace with SIGKILL."""
        if self._process is None:
            return
        self._process.send_signal(self.stop_signal)
        try:
            await asyncio.wait_for(self.wait(), self.grace_seconds)
        except TimeoutError:
            log = structlog.get_logger()
            log.warning("killed after its grace", process=self.name, grace_seconds=self.grace_seconds)
            self._process.kill()
            await asyncio.wait_for(self.wait(), KILL_WAIT_SECONDS)

    def last_lines(self, count: int = 8) -> str:
        """The end of the log, for an error message."""
        return last_lines(self.log_file, count)


def last_lines(path: Path, count: int = 8) -> str:
    """The last lines of a log file of any size; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""


def _rotate(log_file: Path) -> None:
    if log_file.exists() and log_file.stat().st_size > LOG_LIMIT_BYTES:
        log_file.replace(log_file.with_suffix(".old.log"))

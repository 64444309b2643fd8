"""Checks that tell whether the embedded stack can work here, and what to do if not."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

from runtime.embedded import (
    Binaries,
    Ports,
    RunningStack,
    StackError,
    ping_postgres,
    ping_temporal,
    ping_valkey,
    port_is_free,
    running_stack,
    user_namespace,
)
from runtime.processes import ProcessRecord, read_json

MINIMUM_PYTHON = (3, 11)
MINIMUM_FREE_BYTES = 2_000_000_000  # 512 MB of WAL, two SQLite files, logs, and room for the first uploads
PING_SECONDS = 5.0
PROGRAM_SECONDS = 10.0
CLOCK_TOLERANCE_SECONDS = 60.0
BUILT_AFTER = 1_735_689_600  # 2025-01-01: a clock before that was never set


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `remedy` is empty where nothing is to be done."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


async def run_checks(folder: Path) -> list[Check]:
    """Look at everything the stack in `folder` needs; change nothing."""
    running = running_stack(folder)
    checks = await asyncio.to_thread(_check_the_machine, folder, running)
    if running is not None:
        checks += await _check_the_servers(running)
    return checks


def _check_the_machine(folder: Path, running: RunningStack | None) -> list[Check]:
    folder = folder.resolve()
    return [
        _check_python(),
        _check_programs(),
        _check_user_namespace(),
        _check_disk(folder),
        _check_folder(folder),
        _check_lock(folder, running),
        _check_ports(folder, running),
        _check_leftovers(folder, running),
        _check_clock(folder),
    ]


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] >= MINIMUM_PYTHON and sys.platform == "linux"
    remedy = "" if ok else "use Python 3.11 or newer on Linux: the servers are tied to us by Linux means"
    return Check("Python", ok, f"{version} on {sys.platform}", remedy)


def _check_programs() -> Check:
    name = "server programs"
    try:
        found = Binaries.locate()
        versions = [_first_line(path, "--version") for path in (found.postgres, found.valkey, found.temporal)]
    except (StackError, OSError, subprocess.SubprocessError) as error:
        return Check(
            name, False, str(error), "install the locked requirements again, for this kind of machine"
        )
    return Check(name, True, "; ".join(versions))


def _first_line(program: Path, argument: str) -> str:
    done = subprocess.run(
        [str(program), argument], capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=True
    )
    return done.stdout.strip().partition("\n")[0]


def _check_user_namespace() -> Check:
    name = "user for PostgreSQL"
    if os.geteuid() != 0:
        return Check(name, True, f"uid {os.geteuid()}")
    try:
        done = subprocess.run(
            [*user_namespace(), "/bin/true"],
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
        refused = done.stderr.strip() if done.returncode else ""
    except (StackError, OSError, subprocess.SubprocessError) as error:
        refused = str(error)
    if not refused:
        return Check(name, True, "root, and a user namespace can be made")
    return Check(name, False, refused, "start as another user than root, or allow user namespaces")


def _check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(_nearest(folder)).free
    ok = free >= MINIMUM_FREE_BYTES
    remedy = "" if ok else f"free {MINIMUM_FREE_BYTES / 1e9:.0f} GB, or choose a data folder on another disk"
    return Check("disk", ok, f"{free / 1e9:.1f} GB free", remedy)


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _check_folder(folder: Path) -> Check:
    name = "data folder"
    nearest = _nearest(folder)
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        return Check(name, False, f"{nearest} is not writable", "choose another data folder")
    if nearest != folder:
        return Check(name, True, f"{folder} does not exist yet and can be made")
    status = folder.stat()
    if status.st_uid != os.geteuid():
        remedy = "start as its owner, or choose another data folder"
        return Check(name, False, f"{folder} belongs to uid {status.st_uid}", remedy)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return Check(name, False, f"{folder} is open to others (mode {mode:04o})", f"chmod 700 {folder}")
    return Check(name, True, f"{folder}, private")


def _check_lock(folder: Path, running: RunningStack | None) -> Check:
    name = "data folder's lock"
    if running is not None:
        return Check(name, True, f"held by the running stack (pid {running.pid})")
    holder = _lock_holder(folder / "lock")
    if holder is None:
        return Check(name, True, "free")
    remedy = "wait some seconds and look again; if it stays so, end that process"
    return Check(name, False, f"held by pid {holder}, which is starting or stopping", remedy)


def _lock_holder(path: Path) -> int | None:
    # Read, not tried: trying takes the lock for a moment, in which a true start would be refused.
    if not path.exists():
        return None
    inode = str(path.stat().st_ino)
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            return int(words[4])
    return None


def _check_ports(folder: Path, running: RunningStack | None) -> Check:
    known = read_json(folder / "ports.json") or {}
    ports = {name: port for name, port in known.items() if name in Ports.__slots__ and isinstance(port, int)}
    if running is not None or not ports:
        return Check("ports", True, ", ".join(f"{name} {port}" for name, port in ports.items()) or "none yet")
    taken = [f"{name} {port}" for name, port in ports.items() if not port_is_free(port)]
    # No failure: the next start takes others.
    return Check("ports", True, f"taken, others will be chosen: {', '.join(taken)}" if taken else "free")


def _check_leftovers(folder: Path, running: RunningStack | None) -> Check:
    name = "left-over processes"
    if running is not None:
        return Check(name, True, "none")
    left = ProcessRecord(folder / "processes.json").leftovers()
    if not left:
        return Check(name, True, "none")
    detail = ", ".join(f"{process.name} (pid {process.pid})" for process in left)
    return Check(name, False, detail, "start the stack: it waits for them, then ends them")


def _check_clock(folder: Path) -> Check:
    now = time.time()
    ahead = max((path.stat().st_mtime - now for path in _dated(folder)), default=0.0)
    remedy = "set the clock: leases, retention and prices go by it"
    if now < BUILT_AFTER:
        return Check("clock", False, "it stands before 2025", remedy)
    if ahead > CLOCK_TOLERANCE_SECONDS:
        return Check("clock", False, f"the data folder was written {ahead:.0f} s in the future", remedy)
    return Check("clock", True, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _dated(folder: Path) -> list[Path]:
    return [path for name in ("lock", "state.json", "ports.json") if (path := folder / name).exists()]


async def _check_the_servers(running: RunningStack) -> list[Check]:
    addresses = running.addresses
    return list(
        await asyncio.gather(
            _check_answer("PostgreSQL answers", ping_postgres(addresses.postgres_url)),
            _check_answer("Valkey answers", ping_valkey(addresses.redis_url)),
            _check_answer(
                "Temporal answers", ping_temporal(addresses.temporal_address, addresses.temporal_namespace)
            ),
        )
    )


async def _check_answer(name: str, ping: Awaitable[None]) -> Check:
    began = time.monotonic()
    try:
        async with asyncio.timeout(PING_SECONDS):
            await ping
    except Exception as error:  # noqa: BLE001  whatever is wrong with a server is this check's result
        detail = str(error) or f"no answer within {PING_SECONDS:.0f} s"
        return Check(
            name, False, detail, "read the server's file in the data folder's logs/, or restart the stack"
        )
    return Check(name, True, f"in {(time.monotonic() - began) * 1000:.0f} ms")

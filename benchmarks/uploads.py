"""Uploads: ours beside a plain streaming route of the same server, and what memory they take.

A gibibyte by turns over each route, then many files at once. Ours checks the batch, hashes, renames and
writes a row; the plain route hands the request's stream to the same library and the same folder, and a third
one to our store without anything else.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.figures import machine
from benchmarks.servers import KEY, server, set_environment
from db.postgres.migrate import migrate
from runtime.client import ApiClient
from runtime.embedded import EmbeddedStack

AIM = 0.9
MIB = 1024**2
#: what RSS may grow by over a large upload (B2.1)
ALLOWED_GROWTH_MIB = 64
#: sent again and again; it stays in memory
SOURCE_BYTES = 64 * MIB
TURNS = 3


@dataclass(frozen=True)
class Server:
    """The server under measurement, and a batch that takes files."""

    url: str
    process: psutil.Process
    batch_id: str
    #: a file of bytes to send
    source: Path

    def address(self, route: str, number: int) -> str:
        """Where a file is uploaded to: over our route, or over one of the benchmark's own."""
        ours = f"v1/batches/{self.batch_id}/files/file"
        return f"{self.url}/{ours}-{number}" if route == "ours" else f"{self.url}/{route}/{number}"


@dataclass
class Memory:
    """The server's resident memory while a block ran, in MiB."""

    before_mib: float
    peak_mib: float

    @property
    def growth_mib(self) -> float:
        """How much more it had at the most."""
        return round(self.peak_mib - self.before_mib, 1)


async def measure(size_mib: int, files: int, file_mib: int) -> dict[str, Any]:
    """A large file over each route by turns, then many at once over ours."""
    facts = machine()
    async with _running() as running:
        rates: dict[str, list[float]] = {"ours": [], "plain": [], "unhashed": []}
        large = []
        # the first file of that size is slower than every other, over any route
        for turn in range(TURNS + 1):
            for name, found in rates.items():
                async with watched(running.process) as memory:
                    rate = size_mib / await _send(running, running.address(name, turn), size_mib)
                if turn:
                    found.append(rate)
                if name == "ours":
                    large.append(memory)
        async with watched(running.process) as many:
            began = time.perf_counter()
            with ThreadPoolExecutor(files) as clients:
                urls = [running.address("ours", 100 + number) for number in range(files)]
                puts = [clients.submit(_put, running.source, url, file_mib * MIB) for url in urls]
                await asyncio.gather(*map(asyncio.wrap_future, puts))
            together = files * file_mib / (time.perf_counter() - began)
        left = _left_behind()
    medians = {name: round(statistics.median(each), 1) for name, each in rates.items()}
    return {
        "size_mib": size_mib,
        "mib_per_second": medians,
        "ratio": round(medians["ours"] / medians["plain"], 2),
        "unhashed_ratio": round(medians["ours"] / medians["unhashed"], 2),
        "aim": AIM,
        "rss_growth_mib": max(each.growth_mib for each in large),
        "rss_growth_allowed_mib": ALLOWED_GROWTH_MIB,
        "at_once": {
            "files": files,
            "file_mib": file_mib,
            "mib_per_second": round(together, 1),
            "rss_growth_mib": many.growth_mib,
        },
        "unfinished_objects": left,
        "rss": [asdict(each) for each in (*large, many)],
        "machine": facts,
    }


async def _send(running: Server, url: str, size_mib: int) -> float:
    """Seconds that the upload took."""
    seconds = await asyncio.to_thread(_put, running.source, url, size_mib * MIB)
    # what is written back to the disk would slow down whoever comes next
    _clear()
    return seconds


def _put(source: Path, url: str, size: int) -> float:
    """PUT so many bytes by `sendfile`: a client that takes no time is no part of what is measured."""
    parts = urlsplit(url)
    head = (
        f"PUT {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {KEY}\r\n"
        f"content-length: {size}\r\nconnection: close\r\n\r\n"
    )
    address = (str(parts.hostname), int(parts.port or 80))
    with source.open("rb") as file, socket.create_connection(address) as connection:
        began = time.perf_counter()
        connection.sendall(head.encode())
        sent = 0
        while sent < size:
            at = sent % SOURCE_BYTES
            sent += os.sendfile(connection.fileno(), file.fileno(), at, min(SOURCE_BYTES - at, size - sent))
        answer = connection.recv(65536)
        seconds = time.perf_counter() - began
    if not answer.startswith(b"HTTP/1.1 2"):
        raise RuntimeError(f"{url}: {answer.decode(errors='replace')}")
    return seconds


def _clear() -> None:
    folder = Path(os.environ["ASSAY_OBJECTS__URL"].removeprefix("file://"))
    for each in folder.rglob("*"):
        if each.is_file():
            each.unlink()


@asynccontextmanager
async def watched(process: psutil.Process) -> AsyncIterator[Memory]:
    """The most memory that the process has during the block, looked at often."""
    memory = Memory(*[process.memory_info().rss / MIB] * 2)

    async def watch() -> None:
        while True:
            memory.peak_mib = max(memory.peak_mib, process.memory_info().rss / MIB)
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    try:
        yield memory
    finally:
        watching.cancel()


def _left_behind() -> int:
    """Objects that no file and no plain upload is."""
    folder = Path(os.environ["ASSAY_OBJECTS__URL"].removeprefix("file://"))
    return sum(1 for each in (folder / "uploads").rglob("*") if each.is_file())


# --- the server --------------------------------------------------------------------------------------


@asynccontextmanager
async def _running() -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="assay-benchmark-", ignore_cleanup_errors=True) as name:
        async with EmbeddedStack(Path(name) / "data") as stack:
            await migrate(stack.addresses.postgres_url)
            set_environment(stack, Path(name) / "objects")
            async with server("benchmarks.upload_server") as told:
                source = Path(name) / "source"
                source.write_bytes(os.urandom(SOURCE_BYTES))
                with ApiClient(told["url"], KEY) as client:
                    opened = await asyncio.to_thread(client.post, "/v1/batches", {"kind": "diagnosis"})
                yield Server(told["url"], psutil.Process(told["pid"]), opened["batch_id"], source)


# --- for people --------------------------------------------------------------------------------------


def _show(found: dict[str, Any]) -> None:
    table = Table(title=f"One file of {found['size_mib']:,} MiB, median of {TURNS} turns")
    for heading in ("route", "MiB/s"):
        table.add_column(heading, justify="right")
    for name, rate in found["mib_per_second"].items():
        table.add_row(name, f"{rate:,.1f}")
    console, many = Console(), found["at_once"]
    console.print(table)
    console.print(
        f"ours over plain: {found['ratio']} (aim: at least {found['aim']}); over ours without checks and "
        f"digest: {found['unhashed_ratio']}"
    )
    console.print(f"memory grew by {found['rss_growth_mib']} MiB (allowed: {ALLOWED_GROWTH_MIB})")
    console.print(
        f"{many['files']} files of {many['file_mib']} MiB at once: {many['mib_per_second']} MiB/s, "
        f"memory grew by {many['rss_growth_mib']} MiB; left half-way: {found['unfinished_objects']}"
    )


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.uploads")
    parser.add_argument("--size-mib", type=int, default=1024, help="of the large file")
    parser.add_argument("--files", type=int, default=100, help="uploaded at once")
    parser.add_argument("--file-mib", type=int, default=20, help="of each of them")
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args()
    found = asyncio.run(measure(asked.size_mib, asked.files, asked.file_mib))
    if asked.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        _show(found)


if __name__ == "__main__":
    main()

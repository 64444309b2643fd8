"""Reports: how many database reads a hundred cold readers make, and how fast a hot report is read.

Two API processes over one Postgres and one Redis. Database reads are Postgres's own count of the scans of the
table that every report reads once. The bare route of the same server answers as many bytes and does nothing.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import aiohttp
import psycopg
from rich.console import Console

from benchmarks.callers import Asked, Timed, timed
from benchmarks.figures import machine
from benchmarks.servers import KEY, server, set_environment
from db.postgres.logs import PostgresSummaries
from db.postgres.migrate import migrate
from db.postgres.pool import Postgres, open_pool
from domain.diagnosis import BatchSummary
from domain.documents import encode
from domain.gathering import Gathering
from domain.logs import Level, LogFile, LogFormat, ParsedLog, Quote, TemplateCount
from runtime.embedded import EmbeddedStack

AIM_RATIO, AIM_HITS = 0.5, 0.9
COLD_READERS = 100
BATCHES = 20
TURNS = 4
#: Postgres tells its own statistics of a session that rests after ten seconds
_FLUSH_SECONDS = 11.0
SCANS_SQL = """
SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'log_summaries'
"""


class Got(Asked):
    """A GET of the path that `url` has."""

    def request(self) -> bytes:
        """One call as it goes over the wire."""
        host, port = self.address
        path = urlsplit(self.url).path
        return (
            f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {self.key}\r\n\r\n".encode()
        )


@dataclass(frozen=True)
class Servers:
    """Two API processes, batches with reports, and Postgres's own figures."""

    urls: Sequence[str]
    batch_ids: Sequence[str]
    size_bytes: int
    session: aiohttp.ClientSession
    postgres: psycopg.AsyncConnection[tuple[int]]

    def report(self, number: int, batch: int) -> str:
        """Where that process has the report of that batch."""
        return f"{self.urls[number]}/v1/batches/{self.batch_ids[batch]}/report"

    async def scans(self) -> int:
        """How often the summaries were read so far."""
        await asyncio.sleep(_FLUSH_SECONDS)
        row = await (await self.postgres.execute(SCANS_SQL)).fetchone()
        assert row is not None
        return row[0]


async def measure(seconds: float, callers: int) -> dict[str, Any]:
    """Cold reads over both processes, then hot ones beside the bare route, then many batches at random."""
    facts = machine()
    async with _servers() as servers:
        before = await servers.scans()
        bodies = await asyncio.gather(*(_read(servers, number % 2, 0) for number in range(COLD_READERS)))
        cold = await servers.scans() - before
        bare, hot = await _by_turns(servers, callers, seconds)
        after_hot = await servers.scans()
        reads = await _at_random(servers)
        misses = await servers.scans() - after_hot
    return {
        "report_bytes": len(bodies[0]),
        "cold_reads": {
            "readers": COLD_READERS,
            "processes": 2,
            "database_reads": cold,
            "alike": len(set(bodies)) == 1,
        },
        "callers": callers,
        "hot": hot.figures(),
        "bare": bare.figures(),
        "ratio": round(hot.calls_per_second / bare.calls_per_second, 2),
        "hit_rate": {"reads": reads, "database_reads": misses, "hits": round(1 - misses / reads, 4)},
        "aim": {"ratio": AIM_RATIO, "hits": AIM_HITS, "cold_database_reads": 1},
        "machine": facts,
    }


async def _by_turns(servers: Servers, callers: int, seconds: float) -> tuple[Timed, Timed]:
    """Whatever else the machine does meanwhile, it does to both."""
    bare, hot = Timed.none(), Timed.none()
    for _ in range(TURNS):
        bare += await timed(Got(f"{servers.urls[0]}/bare", KEY, {}), callers, seconds / TURNS)
        hot += await timed(Got(servers.report(0, 0), KEY, {}), callers, seconds / TURNS)
    return bare, hot


async def _at_random(servers: Servers) -> int:
    """Readers of many batches, of both processes; how many reads."""
    dice, reads = random.Random(7), 2_000  # noqa: S311  # the same reads in every run
    places = [(dice.randrange(2), dice.randrange(BATCHES)) for _ in range(reads)]
    waiting = iter(places)

    async def reader() -> None:
        for number, batch in waiting:
            await _read(servers, number, batch)

    await asyncio.gather(*(reader() for _ in range(16)))
    return reads


async def _read(servers: Servers, number: int, batch: int) -> bytes:
    async with servers.session.get(servers.report(number, batch)) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {await answer.text()}")
        return await answer.read()


# --- the servers and their batches ------------------------------------------------------------------


@asynccontextmanager
async def _servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="assay-benchmark-", ignore_cleanup_errors=True)
        )
        embedded = await stack.enter_async_context(EmbeddedStack(Path(name) / "data"))
        await migrate(embedded.addresses.postgres_url)
        set_environment(embedded, Path(name) / "objects")
        size = len(encode(summary("x")))
        told = [
            await stack.enter_async_context(server("benchmarks.report_server", str(size))) for _ in range(2)
        ]
        headers = {"authorization": f"Bearer {KEY}"}
        # a connection a reader: none waits for another one's
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers, connector=connector))
        urls = [each["url"] for each in told]
        batch_ids = await _seeded(embedded.addresses.postgres_url, session, urls[0])
        postgres = await stack.enter_async_context(
            await psycopg.AsyncConnection.connect(embedded.addresses.postgres_url, autocommit=True)
        )
        yield Servers(urls, batch_ids, size, session, postgres)


async def _seeded(postgres_url: str, session: aiohttp.ClientSession, url: str) -> list[str]:
    """Final batches with summaries, as gathering leaves them."""
    pool = open_pool(postgres_url, min_size=1, max_size=2, acquire_timeout_seconds=5, check_on_acquire=False)
    await pool.open()
    try:
        return [await _seed(PostgresSummaries(Postgres(pool)), session, url) for _ in range(BATCHES)]
    finally:
        await pool.close()


async def _seed(summaries: PostgresSummaries, session: aiohttp.ClientSession, url: str) -> str:
    async with session.post(f"{url}/v1/batches", json={"kind": "diagnosis"}) as answer:
        answer.raise_for_status()
        batch_id = str((await answer.json())["batch_id"])
    for number in range(12):
        async with session.put(f"{url}/v1/batches/{batch_id}/files/{number}.log", data=b"x") as answer:
            answer.raise_for_status()
    async with session.post(f"{url}/v1/batches/{batch_id}/cancel") as answer:
        answer.raise_for_status()
    await summaries.write(summary(batch_id), "none", "none")
    return batch_id


def summary(batch_id: str) -> BatchSummary:
    """Twelve vehicles with 300 templates, as a campaign has them."""
    gathering = Gathering()
    for vehicle in range(12):
        templates = [_template(vehicle, number) for number in range(300)]
        lines = sum(each.count for each in templates)
        log = LogFile(f"file-{vehicle}", f"{vehicle}.log", "key", 1, vehicle_id=f"vehicle-{vehicle}")
        parsed = ParsedLog(LogFormat.TEXT, 1, 1, lines, lines, templates=tuple(templates))
        gathering.add(log, parsed)
    return gathering.summary(batch_id, 1)


def _template(vehicle: int, number: int) -> TemplateCount:
    text = f"unit {number} reports state <*> of <*> after <*> ms"
    level = Level.ERROR if number % 15 == 0 else Level.INFO
    quote = Quote(
        number * 7 + vehicle, f"2026-01-12T08:00:00Z unit {number} reports state 3 of 9 after 12 ms"
    )
    return TemplateCount(f"id-{number}", text, 1 + number % 40, level, examples=(quote,))


# --- what is shown ----------------------------------------------------------------------------------


def main() -> None:
    """Measure and print, as text or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=16.0, help="of hot reads and of bare ones, each")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found = asyncio.run(measure(given.seconds, given.callers))
    console = Console()
    if given.json:
        console.print_json(json.dumps(found))
    else:
        _show(found, console)


def _show(found: dict[str, Any], console: Console) -> None:
    cold, hits = found["cold_reads"], found["hit_rate"]
    console.print(f"Report of {found['report_bytes']:,} bytes, {found['callers']} callers")
    processes, reads = cold["processes"], cold["database_reads"]
    console.print(f"{cold['readers']} cold reads over {processes} processes: {reads} database read(s)")
    for name in ("hot", "bare"):
        rate, p50, p99 = found[name].values()
        console.print(f"{name:5} {rate:>9,.0f}/s  p50 {p50} ms  p99 {p99} ms")
    console.print(f"ratio {found['ratio']} (aim {AIM_RATIO})")
    share = f"{hits['hits']:.2%} without the database (aim {AIM_HITS:.0%})"
    console.print(f"{hits['reads']} reads of {BATCHES} batches: {share}")


if __name__ == "__main__":
    main()

"""Strict holds on one hot account: the single writer beside a transaction with row locks per hold.

Both check every scope and write event, hold, fact and balances, durably, on one PostgreSQL in one run.
Shown are holds per second and the time that a caller waits for its hold, at 1, 16 and 200 callers.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.table import Table

from benchmarks.figures import machine
from db.postgres import ledger as tables
from db.postgres.ledger_port import PostgresLedger
from db.postgres.migrate import migrate
from db.postgres.pool import Pool, Postgres, open_pool
from domain.completion import Payer
from domain.ledger import CallKey, Hold, LedgerCall, Rates, TenantBudget, accounts_of, event_id
from domain.ledger import EventType as Event
from domain.money import Money
from runtime.embedded import EmbeddedStack
from runtime.resources import SystemClock
from runtime.settings import LogSettings
from runtime.telemetry import configure_logs

AIM_RATIO_AT_200 = 20
CALLERS = (1, 16, 200)
#: connections of the naive way; more of them only wait for the same row
NAIVE_CONNECTIONS = 50
LIMIT = Money.from_usd("1000000")
RATES = Rates("benchmark", {"tokens_in": 150_000, "tokens_out": 600_000})

LOCK_SQL = """
SELECT scope, limit_nanodollars, held_nanodollars + spent_nanodollars AS used FROM ledger_accounts
WHERE (tenant_id, scope, subject) IN
      (SELECT * FROM unnest(%(tenants)s::text[], %(scopes)s::text[], %(subjects)s::text[]))
ORDER BY tenant_id, scope, subject FOR UPDATE
"""
HOLD_SQL = """
UPDATE ledger_accounts SET held_nanodollars = held_nanodollars + %(amount)s, version = version + 1
WHERE (tenant_id, scope, subject) IN
      (SELECT * FROM unnest(%(tenants)s::text[], %(scopes)s::text[], %(subjects)s::text[]))
"""
EVENT_SQL = """
INSERT INTO ledger_events (event_id, event_type, call_id, attempt, reference,
    tenant_id, api_key_id, batch_id, profile, file_id, trace_id, provider, model, usage,
    cost_estimated_nanodollars, cost_actual_nanodollars, rates, status, day, hold_day, occurred_at)
VALUES (%(event)s, 'precheck_hold', %(call)s, 1, '',
    %(tenant)s, %(key)s, %(batch)s, %(profile)s, '', 'trace', 'none', 'none', '{}',
    %(amount)s, 0, %(rates)s, 'ok', %(day)s, %(day)s, now())
"""
ROW_SQL = """
INSERT INTO ledger_holds (call_id, attempt, request_hash, tenant_id, api_key_id, batch_id, profile,
    file_id, trace_id, provider, model, state, estimated_nanodollars, likely_nanodollars, open_nanodollars,
    charged_nanodollars, doubt_rule, rates, token, journaled, reply_seconds, day, due_at, updated_at)
VALUES (%(call)s, 1, 'hash', %(tenant)s, %(key)s, %(batch)s, %(profile)s,
    '', 'trace', 'none', 'none', 'dispatched', %(amount)s, %(amount)s, %(amount)s,
    0, 'full', %(rates)s, %(token)s, false, 3600, %(day)s, now() + interval '1 hour', now())
"""
FACT_SQL = """
INSERT INTO ledger_facts (kind, call_id, attempt, tenant_id, api_key_id, batch_id, profile, trace_id,
    data, occurred_at)
VALUES ('dispatched', %(call)s, 1, %(tenant)s, %(key)s, %(batch)s, %(profile)s, 'trace', '{}', now())
"""

OneHold = Callable[[], Awaitable[None]]


class HoldRefused(Exception):
    """A limit was reached: the figures would be of refusals."""


@dataclass(frozen=True)
class Timed:
    """What callers saw."""

    holds: int
    seconds: float
    waits_ms: list[float]

    def figures(self) -> dict[str, float]:
        """For people and programs."""
        parts = statistics.quantiles(self.waits_ms, n=100) if len(self.waits_ms) > 1 else self.waits_ms * 99
        return {
            "holds_per_second": round(self.holds / self.seconds),
            "p50_ms": round(parts[49], 2),
            "p99_ms": round(parts[98], 2),
        }


async def measure(seconds: float, callers: tuple[int, ...] = CALLERS) -> dict[str, Any]:
    """Both ways at each number of callers, in turn, on one server."""
    facts = machine()
    found: list[dict[str, Any]] = []
    async with _installation() as (url, pool):
        for count in callers:
            naive = await _timed(await _naive(pool), count, seconds)
            async with AsyncExitStack() as stack:
                single = await _timed(await _single(stack, url, pool), count, seconds)
            ratio = (single.holds / single.seconds) / (naive.holds / naive.seconds)
            found.append(
                {
                    "callers": count,
                    "row_locks": naive.figures(),
                    "single_writer": single.figures(),
                    "ratio": round(ratio, 1),
                }
            )
    at_200 = next((each["ratio"] for each in found if each["callers"] == CALLERS[-1]), None)
    return {
        "holds": found,
        "aim": {"ratio_at_200_callers": AIM_RATIO_AT_200, "reached": at_200},
        "machine": facts,
    }


@asynccontextmanager
async def _installation() -> AsyncIterator[tuple[str, Pool]]:
    with tempfile.TemporaryDirectory(prefix="assay-holds-", ignore_cleanup_errors=True) as folder:
        async with EmbeddedStack(Path(folder) / "data") as stack:
            url = stack.addresses.postgres_url
            await migrate(url)
            pool = open_pool(
                url,
                min_size=NAIVE_CONNECTIONS,
                max_size=NAIVE_CONNECTIONS,
                acquire_timeout_seconds=60,
                check_on_acquire=False,
            )
            await pool.open()
            try:
                yield url, pool
            finally:
                await pool.close()


def _payer() -> Payer:
    return Payer(f"tenant-{uuid4().hex[:8]}", str(uuid4()), str(uuid4()), "profile")


def _call(payer: Payer) -> LedgerCall:
    key = CallKey(payer.tenant_id, f"{uuid4()}/g1/q1/c1/first", 1, 1)
    return LedgerCall(
        key, "hash", payer, Money(1000), provider="none", model="none", trace_id="trace", rates=RATES,
        hold_seconds=3600, reply_seconds=3600,
    )  # fmt: skip


async def _limits(pool: Pool, payer: Payer) -> None:
    """Every scope has a limit, far away."""
    books = tables.PostgresLedgerBooks(Postgres(pool), SystemClock())
    await books.set_tenant(payer.tenant_id, TenantBudget("UTC", LIMIT, LIMIT))
    for account in accounts_of(payer, datetime.now(UTC).date())[:-1]:
        await books.set_limit(account, LIMIT)


async def _single(stack: AsyncExitStack, url: str, pool: Pool) -> OneHold:
    ledger = PostgresLedger.over(Postgres(pool), url, SystemClock())
    payer = _payer()
    await _limits(pool, payer)
    ledger.start()
    stack.push_async_callback(ledger.close)

    async def hold() -> None:
        if not isinstance(await ledger.begin(_call(payer), dispatch=True), Hold):
            raise HoldRefused

    return hold


async def _naive(pool: Pool) -> OneHold:
    payer = _payer()
    await _limits(pool, payer)
    day = datetime.now(UTC).date()
    accounts = accounts_of(payer, day)
    columns = tables.columns_of(accounts)
    async with pool.connection() as connection:
        await connection.execute(tables.OPEN_ACCOUNTS_SQL, {**columns, "batches": tables.batch_ids(accounts)})

    async def hold() -> None:
        call = _call(payer)
        parameters = {
            **columns, "event": event_id(call.key.id, 1, Event.HOLD), "call": call.key.id, "day": day,
            "tenant": payer.tenant_id, "key": payer.api_key_id,
            "batch": payer.batch_id, "profile": payer.profile,
            "amount": int(call.estimated), "rates": call.rates.document, "token": uuid4().hex,
        }  # fmt: skip
        async with pool.connection() as connection, connection.transaction():
            locked = await connection.execute(LOCK_SQL, parameters)
            for row in await locked.fetchall():
                if (
                    row["limit_nanodollars"] is not None
                    and row["used"] + call.estimated > row["limit_nanodollars"]
                ):
                    raise HoldRefused
            for statement in (EVENT_SQL, ROW_SQL, FACT_SQL, HOLD_SQL):
                await connection.execute(statement, parameters)

    return hold


async def _timed(hold: OneHold, callers: int, seconds: float) -> Timed:
    """So many callers, each asking again as soon as it was answered; the first tenth warms up."""
    waits: list[float] = []
    began = time.perf_counter()
    counting, ends = began + seconds / 10, began + seconds * 1.1

    async def ask() -> None:
        while (asked := time.perf_counter()) < ends:
            await hold()
            if asked >= counting:
                waits.append((time.perf_counter() - asked) * 1000)

    await asyncio.gather(*(ask() for _ in range(callers)))
    return Timed(len(waits), time.perf_counter() - counting, waits)


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures for people."""
    table = Table(
        "callers", "row locks/s", "p50 ms", "p99 ms", "single writer/s", "p50 ms", "p99 ms", "ratio", box=None
    )
    for each in figures["holds"]:
        naive, single = each["row_locks"], each["single_writer"]
        cells = [
            f"{way[name]:,}" for way in (naive, single) for name in ("holds_per_second", "p50_ms", "p99_ms")
        ]
        table.add_row(str(each["callers"]), *cells, f"{each['ratio']}")
    console.print(table)
    console.print(
        f"Aim at {CALLERS[-1]} callers: {AIM_RATIO_AT_200} times; reached {figures['aim']['reached']}."
    )


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.holds", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way at each number of callers")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    configure_logs(LogSettings(level="warning"), process="benchmark")
    figures = asyncio.run(measure(options.seconds))
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        show(figures, Console())


if __name__ == "__main__":
    main()

"""Ledgers, calls and payers for tests; every tenant and every call is a fresh one."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from db.postgres.ledger import PostgresLedgerBooks
from db.postgres.ledger_port import PostgresLedger
from db.postgres.ledger_writer import LedgerWriter, connect_writer
from db.postgres.pool import Postgres
from domain.completion import CompletionReply, Payer, Usage
from domain.ledger import CallKey, Hold, LedgerCall, Rates, Settlement
from domain.money import Money
from tests.db.stage import opened_postgres

RATES = Rates("test/1", {"tokens_in": 1_000_000, "tokens_out": 2_000_000})


@dataclass
class HeldClock:
    """A clock that moves when told to.

    It is ahead of the real one: to a worker beside a test its replies would be old and its holds due.
    """

    moment: datetime = datetime(2036, 3, 1, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    def pass_(self, seconds: float) -> None:
        """Let so many seconds pass; below zero it jumps back."""
        self.moment += timedelta(seconds=seconds)


@asynccontextmanager
async def opened_ledger(
    url: str, clock: Any = None, postgres: Postgres | None = None, **options: Any
) -> AsyncIterator[PostgresLedger]:
    """A writing ledger over the database; its commits need not outlive the server."""
    clock = clock or HeldClock()
    if postgres is None:
        async with opened_postgres(url) as own, opened_ledger(url, clock, own, **options) as ledger:
            yield ledger
        return
    # not the writer's address: another one may stand there when this one has gone
    name, numbers = uuid4().hex[:12], itertools.count(1)
    connect = options.pop("connect", lambda: connect_writer(url, durable=False))
    within = options.pop("within_seconds", 60.0)
    writer = LedgerWriter(connect, clock, **options)
    ledger = PostgresLedger(
        writer,
        PostgresLedgerBooks(postgres, clock),
        postgres,
        within_seconds=within,
        tokens=lambda: f"{name}-{next(numbers)}",
    )
    ledger.start()
    try:
        yield ledger
    finally:
        await ledger.close()


def a_payer(**fields: Any) -> Payer:
    """A tenant of its own with a key, a batch and a profile."""
    tenant = f"tenant-{uuid4().hex[:12]}"
    return replace(Payer(tenant, str(uuid4()), str(uuid4()), "class"), **fields)


def a_call(payer: Payer | None = None, estimated: int = 100, **fields: Any) -> LedgerCall:
    """A call of a step of its own."""
    payer = payer or a_payer()
    key = fields.pop("key", None) or CallKey(payer.tenant_id, f"{uuid4()}/g1/q1/c1/first", 1, 1)
    known = {"request_hash": "h", "model": "scripted", "provider": "tests", "rates": RATES, "trace_id": "t"}
    return LedgerCall(key=key, payer=payer, estimated=Money(estimated), **(known | fields))


def a_settlement(actual: int = 40, text: str = "reply") -> Settlement:
    """A reply and what it cost."""
    reply = CompletionReply(text, Usage(20, 10), "scripted-1")
    return Settlement(reply, Money(actual), "tests", RATES)


async def held(ledger: PostgresLedger, call: LedgerCall, *, dispatch: bool = True) -> Hold:
    """A hold of the call."""
    hold = await ledger.begin(call, dispatch=dispatch)
    assert isinstance(hold, Hold), hold
    return hold


async def assert_whole(ledger: PostgresLedger) -> None:
    """Everything in the database is what its events say."""
    _, wrong = await ledger.books.verify()
    assert wrong == [], wrong

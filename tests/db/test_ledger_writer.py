"""The single writer: batches, bounds, poison, callers that leave, and Postgres that goes away."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from db.postgres.ledger_port import PostgresLedger
from db.postgres.ledger_writer import Places, connect_writer
from db.postgres.pool import Postgres
from domain.errors import Defect, LedgerOverloaded, LedgerUnavailable
from domain.ledger import FactKind, Hold, LedgerFact, Mode, Replayed
from tests.db.purse import HeldClock, a_call, a_payer, a_settlement, assert_whole, held, opened_ledger
from tests.db.stage import a_connection, until

LOCK_SQL = "SELECT 1 FROM ledger_accounts WHERE tenant_id = %s FOR UPDATE"


class Line:
    """A line to Postgres that can be taken down, and comes back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.up = True
        self.open: Any = None

    async def connect(self) -> Any:
        if not self.up:
            raise psycopg.OperationalError("the line is down")
        self.open = await connect_writer(self._url, durable=False)
        return self.open

    async def take_down(self, postgres: Postgres) -> None:
        self.up = False
        if self.open is not None:
            await postgres.row("SELECT pg_terminate_backend(%s)", [self.open.info.backend_pid])


@pytest.fixture
async def line(session_database_url: str) -> Line:
    return Line(session_database_url)


@pytest.fixture
async def ledger(session_database_url: str, postgres: Postgres, line: Line) -> AsyncIterator[PostgresLedger]:
    async with opened_ledger(session_database_url, None, postgres, connect=line.connect) as opened:
        yield opened


async def test_callers_at_once_share_transactions_of_at_most_a_hundred(ledger: PostgresLedger) -> None:
    payer = a_payer()
    await held(ledger, a_call(payer))
    before = ledger.writer.figures.flushes
    await asyncio.gather(*(held(ledger, a_call(payer)) for _ in range(350)))
    figures = ledger.writer.figures
    assert figures.largest_batch == 100
    assert 4 <= figures.flushes - before <= 8
    (balance, *_) = await ledger.books.balances(payer.tenant_id)
    assert balance.held == 351 * 100


async def test_a_poison_command_fails_alone(ledger: PostgresLedger) -> None:
    payer = a_payer()
    # text that no database of text takes; only Postgres itself notices
    calls = [a_call(payer, trace_id="\0" if number == 7 else "t") for number in range(20)]
    outcomes = await asyncio.gather(*(ledger.begin(each) for each in calls), return_exceptions=True)
    assert [number for number, each in enumerate(outcomes) if not isinstance(each, Hold)] == [7]
    assert isinstance(outcomes[7], Defect)
    (balance, *_) = await ledger.books.balances(payer.tenant_id)
    assert balance.held == 1900
    await assert_whole(ledger)


async def test_a_full_queue_makes_the_caller_wait_until_its_deadline(
    session_database_url: str, postgres: Postgres
) -> None:
    payer = a_payer()
    async with opened_ledger(
        session_database_url, None, postgres, queue_limit=2, within_seconds=0.3
    ) as ledger:
        await held(ledger, a_call(payer))
        async with await a_connection(session_database_url) as locking:
            await locking.execute(LOCK_SQL, [payer.tenant_id])
            full = [asyncio.create_task(ledger.begin(a_call(payer))) for _ in range(2)]
            await waiting_for_the_account(postgres)
            with pytest.raises(LedgerOverloaded):
                await ledger.begin(a_call(payer))
            # who is already in the queue waits no longer than its own deadline either
            assert {type(each) for each in await asyncio.gather(*full, return_exceptions=True)} == {
                LedgerUnavailable
            }
            await locking.rollback()
        # the holds that nobody heard of are given back
        await until(lambda: nothing_but(ledger, payer, 100))
        await assert_whole(ledger)


async def waiting_for_the_account(postgres: Postgres) -> None:
    await until(
        lambda: postgres.row(
            "SELECT 1 AS one FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'assay-ledger' AND wait_event_type = 'Lock'"
        )
    )


async def nothing_but(ledger: PostgresLedger, payer: Any, amount: int) -> bool:
    return {each.held for each in await ledger.books.balances(payer.tenant_id)} == {amount}


async def test_a_caller_that_leaves_loses_nothing_and_keeps_nothing(
    ledger: PostgresLedger, session_database_url: str, postgres: Postgres
) -> None:
    """X3: no phantom hold stays behind, and a settlement that was sent is written."""
    call = a_call()
    hold = await held(ledger, call)
    async with await a_connection(session_database_url) as locking:
        await locking.execute(LOCK_SQL, [call.payer.tenant_id])
        settling = asyncio.create_task(ledger.settle(hold, a_settlement(40)))
        beginning = asyncio.create_task(ledger.begin(a_call(call.payer)))
        await waiting_for_the_account(postgres)
        for task in (settling, beginning):
            task.cancel()
        await asyncio.wait([settling, beginning])
        await locking.rollback()
    await until(lambda: nothing_but(ledger, call.payer, 0))
    assert isinstance(await ledger.begin(call), Replayed)
    await assert_whole(ledger)


async def test_strict_calls_are_refused_while_postgres_is_away_and_settlements_wait(
    ledger: PostgresLedger, line: Line, postgres: Postgres
) -> None:
    call = a_call()
    hold = await held(ledger, call)
    await line.take_down(postgres)
    with pytest.raises(LedgerUnavailable) as refusal:
        await ledger.begin(a_call(call.payer))
    assert refusal.value.retryable
    assert ledger.writer.figures.unavailable >= 1
    settling = asyncio.create_task(ledger.settle(hold, a_settlement(40)))
    await asyncio.sleep(0.1)
    assert not settling.done()
    line.up = True
    assert (await settling).actual == 40
    assert isinstance(await ledger.begin(call), Replayed)


async def test_best_effort_is_buffered_to_the_bound_and_written_when_postgres_is_back(
    session_database_url: str, postgres: Postgres, line: Line
) -> None:
    payer = a_payer()
    async with opened_ledger(
        session_database_url, None, postgres, connect=line.connect, queue_limit=10
    ) as ledger:
        await held(ledger, a_call(payer))
        await line.take_down(postgres)
        with pytest.raises(LedgerUnavailable):
            await ledger.begin(a_call(payer))
        for _ in range(10):
            await held(ledger, a_call(payer, mode=Mode.BEST_EFFORT))
        with pytest.raises(LedgerUnavailable, match="buffer of 10"):
            await ledger.begin(a_call(payer, mode=Mode.BEST_EFFORT))
        assert ledger.writer.figures.buffered >= 10
        line.up = True
    # closing wrote what was queued
    async with opened_ledger(session_database_url, None, postgres) as other:
        assert await nothing_but(other, payer, 1100)
        await assert_whole(other)


async def test_closing_ends_even_when_postgres_never_comes_back(
    session_database_url: str, postgres: Postgres, line: Line
) -> None:
    async with opened_ledger(
        session_database_url, None, postgres, connect=line.connect, close_seconds=0.3
    ) as ledger:
        call = a_call()
        hold = await held(ledger, call)
        await line.take_down(postgres)
        settling = asyncio.create_task(ledger.settle(hold, a_settlement()))
        await asyncio.sleep(0)
        await ledger.close()
        with pytest.raises(LedgerUnavailable):
            await settling
        with pytest.raises(LedgerUnavailable, match="shutting down"):
            await ledger.record(LedgerFact(FactKind.RETRIED, call.payer))


async def test_two_writers_that_take_accounts_crosswise_do_not_deadlock(
    session_database_url: str, postgres: Postgres
) -> None:
    clock = HeldClock()
    first, second = a_payer(), a_payer()
    async with (
        opened_ledger(session_database_url, clock, postgres) as one,
        opened_ledger(session_database_url, clock, postgres) as other,
    ):
        for _ in range(10):
            await asyncio.gather(
                *(held(one, a_call(payer)) for payer in (first, second)),
                *(held(other, a_call(payer)) for payer in (second, first)),
            )
        assert one.writer.figures.retried == other.writer.figures.retried == 0
        assert await nothing_but(one, first, 2000)


async def test_two_processes_that_begin_the_same_call_get_one_hold(
    session_database_url: str, postgres: Postgres
) -> None:
    clock = HeldClock()
    async with (
        opened_ledger(session_database_url, clock, postgres) as one,
        opened_ledger(session_database_url, clock, postgres) as other,
    ):
        for _ in range(10):
            call = a_call(estimated=1)
            found = await asyncio.gather(*(each.begin(call, dispatch=True) for each in (one, other)))
            assert sum(isinstance(each, Hold) for each in found) == 1
            assert await nothing_but(one, call.payer, 1)


async def test_places_are_bounded_and_handed_on_in_order() -> None:
    places = Places(1)
    assert places.take()
    assert not places.take()
    assert not await places.wait(0.01)
    first, second = (asyncio.create_task(places.wait(5)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    places.give()
    assert await second
    assert not places.take()
    places.give()
    assert places.take()


async def test_a_lock_that_is_never_released_refuses_the_call_in_time(
    session_database_url: str, postgres: Postgres
) -> None:
    held_by_others, free = a_payer(), a_payer()
    async with opened_ledger(session_database_url, None, postgres, within_seconds=0.5) as ledger:
        await held(ledger, a_call(held_by_others))
        async with await a_connection(session_database_url) as locking:
            await locking.execute(LOCK_SQL, [held_by_others.tenant_id])
            with pytest.raises(LedgerUnavailable):
                await ledger.begin(a_call(held_by_others))
            await locking.rollback()
        await until(lambda: _answers(ledger, free))


async def _answers(ledger: PostgresLedger, payer: Any) -> bool:
    try:
        await held(ledger, a_call(payer))
    except LedgerUnavailable:
        return False
    return True

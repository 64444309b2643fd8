"""Property 27: balances are what the events say, and what is held is what open holds hold."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from domain.completion import Payer
from domain.errors import AssayError, LedgerUnavailable
from domain.ledger import Account, Balance, DoubtRule, Hold, LedgerEvent, TenantBudget, accounts_of, fold
from domain.money import Money
from tests.db.purse import HeldClock, a_call, a_payer, a_settlement, assert_whole, opened_ledger
from tests.db.stage import opened_postgres

#: which of three calls, what is done with it, an amount, and how long passes before the next
STEP = st.tuples(
    st.integers(0, 2),
    st.sampled_from(["begin", "send", "dispatch", "settle", "cancel", "doubt", "adjust", "refund", "sweep"]),
    st.integers(0, 300),
    st.sampled_from([0, 0, 0, 61, 121, -3600, 43_200, 86_400]),
)


@pytest.fixture(scope="module")
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(session_database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture(scope="module")
async def ledger(
    session_database_url: str, postgres: Postgres, clock: HeldClock
) -> AsyncIterator[PostgresLedger]:
    async with opened_ledger(session_database_url, clock, postgres) as opened:
        yield opened


async def _do(
    ledger: PostgresLedger, payer: Payer, holds: dict[int, Hold], step: tuple[int, str, int]
) -> None:
    place, action, amount = step
    if action in ("begin", "send"):
        key = a_call(payer).key if place not in holds else holds[place].call.key
        found = await ledger.begin(a_call(payer, amount, key=key), dispatch=action == "send")
        if isinstance(found, Hold):
            holds[place] = found
    elif action == "sweep":
        await ledger.sweep()
    elif (hold := holds.get(place)) is not None:
        await {
            "dispatch": lambda: ledger.dispatch(hold),
            "settle": lambda: ledger.settle(hold, a_settlement(amount)),
            "cancel": lambda: ledger.cancel(hold, "429"),
            "doubt": lambda: ledger.doubt(hold, "reset", DoubtRule.ZERO if amount % 2 else DoubtRule.FULL),
            "adjust": lambda: ledger.adjust(hold, Money(amount)),
            "refund": lambda: ledger.adjust(hold, Money(-amount), reference=str(amount % 3)),
        }[action]()


async def _events(ledger: PostgresLedger, payer: Payer) -> list[LedgerEvent]:
    return await ledger.books.statement(payer.tenant_id, date(2025, 1, 1), date(2039, 1, 1), count=1000)


@settings(max_examples=100)
@given(steps=st.lists(STEP, min_size=1, max_size=14), zone=st.sampled_from(["UTC", "Asia/Shanghai"]))
async def test_every_projection_is_the_fold_over_events(
    ledger: PostgresLedger,
    clock: HeldClock,
    postgres: Postgres,
    steps: list[tuple[int, str, int, int]],
    zone: str,
) -> None:
    """
    **功能: assay, 属性 27: 账本守恒**
    **验证: 需求 L8**

    For every history of events, each balance is the fold over the events, and what an account holds is the
    sum of its open holds; whatever was refused left no trace but facts.
    """
    payer, holds = a_payer(), dict[int, Hold]()
    await ledger.books.set_tenant(payer.tenant_id, TenantBudget(zone, daily_limit=Money(700)))
    for place, action, amount, seconds in steps:
        try:
            await _do(ledger, payer, holds, (place, action, amount))
        except LedgerUnavailable:
            raise
        except AssayError:
            pass  # a refusal is an outcome; what it left behind is what is looked at
        clock.pass_(seconds)
    events = await _events(ledger, payer)
    stored = {
        each.account: Balance(each.held, each.spent, each.requests, each.tokens)
        for each in await ledger.books.balances(payer.tenant_id, count=1000)
    }
    empty = {account: Balance() for account in stored}
    assert stored == empty | fold(events)
    assert {account: each.held for account, each in stored.items()} == dict.fromkeys(stored, 0) | await _open(
        postgres, payer
    )


async def _open(postgres: Postgres, payer: Payer) -> dict[Account, int]:
    held: Counter[Account] = Counter()
    for row in await postgres.rows(
        "SELECT day, open_nanodollars FROM ledger_holds WHERE tenant_id = %s", [payer.tenant_id]
    ):
        for account in accounts_of(payer, row["day"]):
            held[account] += row["open_nanodollars"]
    return dict(held)


async def test_the_whole_database_adds_up(ledger: PostgresLedger) -> None:
    """`assay ledger verify`, over everything that the tests before left."""
    payer = a_payer()
    calls = [a_call(payer, 10 + number) for number in range(50)]
    holds = await asyncio.gather(*(ledger.begin(call, dispatch=True) for call in calls))
    await asyncio.gather(*(ledger.settle(h, a_settlement(3)) for h in holds[::2] if isinstance(h, Hold)))
    await assert_whole(ledger)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ledger_accounts SET spent_nanodollars = spent_nanodollars + 1 WHERE scope = 'batch'",
        "UPDATE ledger_accounts SET held_nanodollars = held_nanodollars - 1 WHERE scope = 'profile'",
        "UPDATE ledger_holds SET open_nanodollars = open_nanodollars + 1 WHERE state = 'dispatched'",
        "DELETE FROM ledger_journal",
        "DELETE FROM ledger_holds WHERE state = 'dispatched'",
    ],
)
async def test_what_does_not_add_up_is_found(database_url: str, damage: str) -> None:
    async with (
        opened_postgres(database_url) as postgres,
        opened_ledger(database_url, None, postgres) as ledger,
    ):
        payer = a_payer()
        for number in range(2):
            found = await ledger.begin(a_call(payer), dispatch=True)
            if number and isinstance(found, Hold):
                await ledger.settle(found, a_settlement(40))
        assert await ledger.books.verify() == (3, [])
        await postgres.run(damage)
        _, wrong = await ledger.books.verify()
        assert wrong

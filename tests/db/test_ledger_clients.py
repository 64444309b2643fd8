"""What the gateway asks of the ledger for outside callers: their calls by id, and balances to copy."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from domain.completion import CompletionReply, Fence, Payer, Usage
from domain.errors import EpochSuperseded, IdempotencyMismatch
from domain.ledger import (
    Account,
    AccountBalance,
    Hold,
    LedgerCall,
    Replayed,
    Scope,
    Settlement,
    TenantBudget,
    Underway,
)
from domain.money import Money
from tests.db.purse import RATES, HeldClock, a_call, a_payer, a_settlement, assert_whole, held, opened_ledger
from tests.db.stage import pending_batch, running_file


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def ledger(
    session_database_url: str, postgres: Postgres, clock: HeldClock
) -> AsyncIterator[PostgresLedger]:
    async with opened_ledger(session_database_url, clock, postgres) as opened:
        yield opened


def a_clients_call(**fields: Any) -> LedgerCall:
    return a_call(refuse_other=True, client_call_id="call-1", **fields)


async def flushes(ledger: PostgresLedger, *asked: Any) -> int:
    """How many transactions of the writer it took."""
    before = ledger.writer.figures.flushes
    await asyncio.gather(*asked)
    return ledger.writer.figures.flushes - before


# --- one key, one request ---


async def test_another_request_under_the_key_of_an_open_or_a_paid_call_is_refused(
    ledger: PostgresLedger, postgres: Postgres
) -> None:
    call = a_clients_call()
    other = replace(call, request_hash="other")
    hold = await held(ledger, call)
    for _ in ("dispatched", "committed"):
        with pytest.raises(IdempotencyMismatch) as refusal:
            await ledger.begin(other, dispatch=True)
        assert refusal.value.field == "Idempotency-Key"
        await ledger.settle(hold, a_settlement())
    assert isinstance(await ledger.begin(call), Replayed)
    kinds = await postgres.rows("SELECT DISTINCT kind FROM ledger_facts WHERE call_id = %s", [call.key.id])
    assert [row["kind"] for row in kinds] == ["dispatched"]


async def test_after_a_call_that_cost_nothing_its_key_may_carry_another_request(
    ledger: PostgresLedger,
) -> None:
    call = a_clients_call()
    await ledger.cancel(await held(ledger, call), "429")
    hold = await held(ledger, replace(call, request_hash="other"))
    await ledger.settle(hold, a_settlement())
    with pytest.raises(IdempotencyMismatch):
        await ledger.begin(call)
    await assert_whole(ledger)


async def test_of_two_requests_at_once_under_one_key_one_is_refused(ledger: PostgresLedger) -> None:
    call = a_clients_call()
    both = (call, replace(call, request_hash="other"))
    found = await asyncio.gather(*(ledger.begin(each) for each in both), return_exceptions=True)
    assert {type(each) for each in found} == {Hold, IdempotencyMismatch}


# --- a chat's reply, and its client's own retry ---


async def test_the_choices_of_a_chat_are_replayed_as_they_came(ledger: PostgresLedger) -> None:
    choices = json.dumps([{"index": 0, "message": {"role": "assistant", "content": "näh\n\t\\N"}}])
    reply = CompletionReply("näh\n\t\\N", Usage(3, 2), "m", choices=choices)
    call = a_clients_call()
    settlement = Settlement(reply, Money(7), "tests", RATES)
    hold = await held(ledger, call)
    entry = await ledger.settle(hold, settlement)
    assert await ledger.settle(hold, settlement) == entry
    again = await ledger.begin(call)
    assert isinstance(again, Replayed)
    assert again.entry.reply == reply


async def test_a_clients_calls_are_found_by_key_and_request_newest_first(
    ledger: PostgresLedger, clock: HeldClock
) -> None:
    payer, began = a_payer(), clock.now()
    for number in (1, 2, 3):
        clock.pass_(60)
        await held(ledger, a_call(payer, client_call_id=f"call-{number}"))
    clock.pass_(60)
    await held(ledger, a_call(payer))
    await held(ledger, a_call(payer, client_call_id="call-4", request_hash="another"))

    async def found(since: datetime, payer: Payer = payer) -> list[str]:
        return await ledger.books.client_calls(payer.api_key_id, "h", since)

    assert await found(began) == ["call-3", "call-2", "call-1"]
    assert await found(began + timedelta(seconds=120)) == ["call-3", "call-2"]
    assert await found(began, a_payer()) == []


async def test_the_id_of_a_clients_call_survives_its_whole_life(
    ledger: PostgresLedger, clock: HeldClock
) -> None:
    call = a_clients_call()
    hold = await held(ledger, call, dispatch=False)
    await ledger.dispatch(hold)
    await ledger.doubt(hold, "reset")
    second = await held(ledger, call)
    await ledger.settle(second, a_settlement())
    assert await ledger.books.client_calls(call.payer.api_key_id, "h", clock.now()) == ["call-1"]


# --- waiting for a call that is under way elsewhere ---


async def test_asking_again_for_a_call_under_way_costs_the_writer_nothing(
    session_database_url: str, ledger: PostgresLedger, postgres: Postgres, clock: HeldClock
) -> None:
    call = a_clients_call(reply_seconds=30)
    hold = await held(ledger, call)
    async with opened_ledger(session_database_url, clock, postgres) as other:
        underway = await other.begin(call, dispatch=True)
        assert underway == Underway(clock.now() + timedelta(seconds=30))
        assert await flushes(other, *(other.begin(call, dispatch=True) for _ in range(5))) == 0
        await ledger.settle(hold, a_settlement(40))
        assert isinstance(await other.begin(call, dispatch=True), Replayed)


async def test_a_call_under_way_is_given_up_at_its_deadline_and_for_its_cancellation(
    session_database_url: str, ledger: PostgresLedger, postgres: Postgres, clock: HeldClock
) -> None:
    late, refused = a_clients_call(reply_seconds=30), a_clients_call(reply_seconds=90)
    hold = [await held(ledger, each) for each in (late, refused)][1]
    async with opened_ledger(session_database_url, clock, postgres) as other:
        for call in (late, refused):
            assert isinstance(await other.begin(call), Underway)
        clock.pass_(31)
        await held(other, late)
        assert isinstance(await other.begin(refused), Underway)
        await ledger.cancel(hold, "503")
        await held(other, refused)


async def test_a_superseded_attempt_does_not_go_on_waiting(
    ledger: PostgresLedger, postgres: Postgres
) -> None:
    file = await running_file(postgres)
    fence, call = Fence(file.thread_id, file.epoch), a_call()
    await held(ledger, call)
    for _ in range(2):
        assert isinstance(await ledger.begin(call, dispatch=True, fence=fence), Underway)
    await postgres.run("UPDATE agent_threads SET epoch = epoch + 1 WHERE thread_id = %s", [file.thread_id])
    with pytest.raises(EpochSuperseded):
        await ledger.begin(call, dispatch=True, fence=fence)


# --- balances, to be copied ---


async def test_what_a_commit_changed_is_told_as_it_now_stands(ledger: PostgresLedger) -> None:
    told: list[AccountBalance] = []
    ledger.writer.on_committed = told.extend
    call = a_call()
    await ledger.books.set_tenant(call.payer.tenant_id, TenantBudget(daily_limit=Money(1000)))
    hold = await held(ledger, call)
    key = Account(call.payer.tenant_id, Scope.API_KEY, call.payer.api_key_id)
    await ledger.books.set_limit(key, Money(500))
    await ledger.settle(hold, a_settlement(40))
    newest = {each.account: each for each in told}
    assert sorted(newest.values(), key=_name) == sorted(
        await ledger.books.balances(call.payer.tenant_id), key=_name
    )
    assert {each.limit for each in newest.values()} == {None, 500, 1000}
    assert [each.version for each in told if each.account == key] == [1, 3]


def _name(balance: AccountBalance) -> Account:
    return balance.account


async def test_a_listener_that_fails_takes_nothing_with_it(ledger: PostgresLedger) -> None:
    def fail(_: Sequence[AccountBalance]) -> None:
        raise RuntimeError("no copy today")

    ledger.writer.on_committed = fail
    call = a_call()
    await ledger.settle(await held(ledger, call), a_settlement(40))
    assert await ledger.spend_today(call.payer.tenant_id) == 40


async def test_a_payers_quota_has_every_account_of_today_with_its_limit(
    ledger: PostgresLedger, postgres: Postgres, clock: HeldClock
) -> None:
    batch = await pending_batch(postgres, limit_nanodollars=150)
    payer = a_payer(tenant_id="local", batch_id=batch.id)
    accounts = {each.account.scope: each for each in await ledger.books.quota(payer)}
    assert set(accounts) == set(Scope) - {Scope.CALL}
    assert (accounts[Scope.BATCH].limit, accounts[Scope.BATCH].version) == (150, 0)
    assert (accounts[Scope.API_KEY].limit, accounts[Scope.API_KEY].left) == (None, None)

    payer = a_payer()
    await ledger.books.set_tenant(payer.tenant_id, TenantBudget("Asia/Shanghai", daily_limit=Money(900)))
    clock.moment = datetime(2036, 3, 1, 16, 1, tzinfo=UTC)  # a minute after midnight in Shanghai
    await ledger.settle(await held(ledger, a_call(payer)), a_settlement(40))
    today = {each.account.scope: each for each in await ledger.books.quota(payer)}[Scope.TENANT_DAY]
    assert (today.account.subject, today.limit, today.left) == ("2036-03-02", 900, 860)
    assert await ledger.books.quota(payer) == await ledger.books.balances(payer.tenant_id)


async def test_accounts_that_changed_are_found_limits_included(
    ledger: PostgresLedger, postgres: Postgres
) -> None:
    call = a_call()
    tenant = call.payer.tenant_id
    await held(ledger, call)

    async def changed() -> list[AccountBalance]:
        nonlocal moment
        found = await ledger.books.changed_since(moment, 100)
        moment = await now(postgres)
        return [each for each in found if each.account.tenant_id == tenant]

    moment = await now(postgres) - timedelta(seconds=60)
    assert len(await changed()) == 4
    assert await changed() == []
    await ledger.books.set_tenant(tenant, TenantBudget(daily_limit=Money(900)))
    (day,) = await changed()
    assert (day.account.scope, day.limit, day.version) == (Scope.TENANT_DAY, 900, 2)
    assert await ledger.books.changed_since(moment - timedelta(days=1), 1) != []


async def now(postgres: Postgres) -> datetime:
    row = await postgres.row("SELECT clock_timestamp() AS now")
    assert row is not None
    found: datetime = row["now"]
    return found

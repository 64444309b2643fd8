"""One call's life in the ledger, and everything that can come in between."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from db.postgres.ledger_port import PostgresLedger, SynchronousLedger
from db.postgres.pool import Postgres
from domain.completion import Fence
from domain.errors import (
    BudgetExhausted,
    EpochSuperseded,
    HoldExpired,
    InvalidInput,
    LedgerConflict,
)
from domain.ledger import (
    Account,
    CallKey,
    DoubtRule,
    EventType,
    FactKind,
    Hold,
    LedgerEvent,
    LedgerFact,
    Mode,
    Replayed,
    Scope,
    TenantBudget,
    Underway,
    accounts_of,
    chosen_mode,
    event_id,
    fold,
)
from domain.money import ZERO, Money
from tests.db.purse import HeldClock, a_call, a_payer, a_settlement, assert_whole, held, opened_ledger
from tests.db.stage import pending_batch, running_file

TODAY = date(2036, 3, 1)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def ledger(
    session_database_url: str, postgres: Postgres, clock: HeldClock
) -> AsyncIterator[PostgresLedger]:
    async with opened_ledger(session_database_url, clock, postgres) as opened:
        yield opened


async def balance(ledger: PostgresLedger, call: Any, scope: Scope = Scope.BATCH) -> tuple[int, int]:
    """What is held and spent in one of the call's accounts."""
    found = await ledger.books.balances(call.payer.tenant_id, scope)
    return found[0].held, found[0].spent


async def facts_of(postgres: Postgres, call: Any) -> list[str]:
    rows = await postgres.rows("SELECT kind FROM ledger_facts WHERE call_id = %s ORDER BY id", [call.key.id])
    return [row["kind"] for row in rows]


async def events_of(ledger: PostgresLedger, call: Any) -> list[LedgerEvent]:
    first, last = TODAY - timedelta(days=9), TODAY + timedelta(days=9)
    return [
        each
        for each in reversed(await ledger.books.statement(call.payer.tenant_id, first, last))
        if each.call_id == call.key.id
    ]


# --- the way it should go ---


async def test_a_call_is_held_dispatched_and_committed(ledger: PostgresLedger, postgres: Postgres) -> None:
    call = a_call()
    hold = await held(ledger, call, dispatch=False)
    assert await balance(ledger, call) == (100, 0)
    assert await ledger.dispatch(hold) is None
    entry = await ledger.settle(hold, a_settlement(40))
    assert (entry.reply.text, entry.actual, entry.attempt) == ("reply", 40, 1)
    again = await ledger.begin(call)
    assert isinstance(again, Replayed)
    assert again.entry == entry
    balances = await ledger.books.balances(call.payer.tenant_id)
    assert {each.account.scope for each in balances} == set(Scope) - {Scope.CALL}
    assert {(each.held, each.spent, each.requests, each.tokens) for each in balances} == {(0, 40, 1, 30)}
    assert await facts_of(postgres, call) == ["dispatched"]
    await assert_whole(ledger)


async def test_the_full_actual_is_committed_even_beyond_hold_and_limit(ledger: PostgresLedger) -> None:
    """X7: the overage is not dropped; the next call is refused."""
    call = a_call(estimated=100)
    await ledger.books.set_limit(Account(call.payer.tenant_id, Scope.PROFILE, "class"), Money(150))
    hold = await held(ledger, call)
    await ledger.settle(hold, a_settlement(actual=500))
    assert await balance(ledger, call, Scope.PROFILE) == (0, 500)
    with pytest.raises(BudgetExhausted):
        await ledger.begin(a_call(call.payer, estimated=0 + 1))


@pytest.mark.parametrize("scope", list(Scope))
async def test_the_refusing_scope_is_named_with_what_is_missing(
    ledger: PostgresLedger, postgres: Postgres, scope: Scope
) -> None:
    call = a_call(estimated=100)
    tenant, limit = call.payer.tenant_id, Money(70)
    if scope in (Scope.CALL, Scope.TENANT_DAY):
        in_all = {"call_limit": limit} if scope is Scope.CALL else {"daily_limit": limit}
        await ledger.books.set_tenant(tenant, TenantBudget(**in_all))  # type: ignore[arg-type]  # by its name
    else:
        account = next(each for each in accounts_of(call.payer, TODAY) if each.scope is scope)
        await ledger.books.set_limit(account, limit)
    with pytest.raises(BudgetExhausted) as refusal:
        await ledger.begin(call, dispatch=True)
    assert (refusal.value.scope, refusal.value.missing_nanodollars) == (scope, 30)
    assert "0.00000007 USD" in refusal.value.message
    assert await facts_of(postgres, call) == ["refused"]
    assert await events_of(ledger, call) == []
    await assert_whole(ledger)


async def test_a_raised_limit_lets_the_next_call_through(ledger: PostgresLedger) -> None:
    call = a_call()
    account = Account(call.payer.tenant_id, Scope.API_KEY, call.payer.api_key_id)
    await ledger.books.set_limit(account, Money(99))
    with pytest.raises(BudgetExhausted):
        await ledger.begin(call)
    await ledger.books.set_limit(account, Money(100))
    await held(ledger, call)
    await ledger.books.set_limit(account, None)
    await held(ledger, a_call(call.payer, 10**15))


async def test_a_batchs_limit_is_the_batchs_own_and_follows_it(
    ledger: PostgresLedger, postgres: Postgres
) -> None:
    batch = await pending_batch(postgres, limit_nanodollars=150)
    payer = a_payer(tenant_id="local", batch_id=batch.id)
    await held(ledger, a_call(payer))
    with pytest.raises(BudgetExhausted, match=r"batch .* 0\.00000015 USD"):
        await ledger.begin(a_call(payer))
    await postgres.run("UPDATE batches SET limit_nanodollars = 200 WHERE id = %s", [batch.id])
    await held(ledger, a_call(payer))
    await ledger.books.set_limit(Account("local", Scope.BATCH, batch.id), Money(300))
    row = await postgres.row("SELECT limit_nanodollars FROM batches WHERE id = %s", [batch.id])
    assert row == {"limit_nanodollars": 300}
    await held(ledger, a_call(payer))


# --- repetition ---


async def test_another_hash_under_the_same_key_is_a_fact_and_a_new_paid_call(
    ledger: PostgresLedger, postgres: Postgres
) -> None:
    call = a_call()
    await ledger.settle(await held(ledger, call), a_settlement(40, "first"))
    other = replace(call, request_hash="other")
    hold = await held(ledger, other)
    await ledger.settle(hold, a_settlement(50, "second"))
    assert await facts_of(postgres, call) == ["dispatched", "diverged", "dispatched"]
    for each, text in ((call, "first"), (other, "second")):
        replayed = await ledger.begin(each)
        assert isinstance(replayed, Replayed)
        assert replayed.entry.reply.text == text
    assert await balance(ledger, call) == (0, 90)
    await assert_whole(ledger)


async def test_a_new_generation_is_paid_anew(ledger: PostgresLedger) -> None:
    call = a_call()
    await ledger.settle(await held(ledger, call), a_settlement())
    again = replace(call, key=CallKey(call.payer.tenant_id, call.key.step, 2, 1))
    assert isinstance(await ledger.begin(again), Hold)


async def test_a_settlement_of_an_estimated_usage_may_be_repeated_too(ledger: PostgresLedger) -> None:
    settlement = a_settlement()
    settlement = replace(settlement, reply=replace(settlement.reply, usage_estimated=True))
    hold = await held(ledger, a_call())
    first = await ledger.settle(hold, settlement)
    assert await ledger.settle(hold, settlement) == first
    await assert_whole(ledger)


async def test_a_settlement_repeated_is_a_no_op_and_with_another_content_an_error(
    ledger: PostgresLedger,
) -> None:
    call = a_call()
    hold = await held(ledger, call)
    entry = await ledger.settle(hold, a_settlement(40))
    assert await ledger.settle(hold, a_settlement(40)) == entry
    with pytest.raises(LedgerConflict):
        await ledger.settle(hold, a_settlement(41))
    assert await balance(ledger, call) == (0, 40)


async def test_a_dispatched_call_is_waited_for_and_then_dispatched_anew(
    ledger: PostgresLedger, clock: HeldClock, postgres: Postgres
) -> None:
    call = a_call(reply_seconds=30)
    first = await held(ledger, call)
    underway = await ledger.begin(call, dispatch=True)
    assert underway == Underway(clock.now() + timedelta(seconds=30))
    clock.pass_(31)
    second = await held(ledger, call)
    assert await balance(ledger, call) == (200, 0)
    assert await ledger.books.in_doubt(call.payer.batch_id) == 100
    await ledger.settle(second, a_settlement(40, "second"))
    late = await ledger.settle(first, a_settlement(45, "first"))
    assert late.reply.text == "second"
    assert [each.event_type for each in await events_of(ledger, call)].count(EventType.COMMIT) == 1
    assert await balance(ledger, call) == (0, 85)
    assert await ledger.settle(first, a_settlement(45, "first")) == late
    assert await facts_of(postgres, call) == ["dispatched", "in_doubt", "dispatched"]
    await assert_whole(ledger)


async def test_an_undispatched_hold_is_taken_over_and_its_first_owner_sends_nothing(
    ledger: PostgresLedger,
) -> None:
    call = a_call()
    slow = await held(ledger, call, dispatch=False)
    fast = await held(ledger, call, dispatch=False)
    assert await ledger.dispatch(fast) is None
    assert isinstance(await ledger.dispatch(slow), Underway)
    assert await balance(ledger, call) == (100, 0)
    await ledger.cancel(slow, "not mine")
    assert await balance(ledger, call) == (100, 0)


# --- ends without a reply ---


async def test_a_refused_connection_costs_nothing_and_the_next_attempt_is_a_new_hold(
    ledger: PostgresLedger,
) -> None:
    call = a_call()
    hold = await held(ledger, call)
    await ledger.cancel(hold, "429")
    await ledger.cancel(hold, "429")
    assert await balance(ledger, call) == (0, 0)
    entry = await ledger.settle(await held(ledger, call), a_settlement())
    assert entry.attempt == 2
    assert [each.event_type for each in await events_of(ledger, call)].count(EventType.CANCEL) == 1
    await assert_whole(ledger)


async def test_a_reply_after_a_cancel_is_paid_and_kept(ledger: PostgresLedger) -> None:
    call = a_call()
    hold = await held(ledger, call)
    await ledger.cancel(hold, "believed refused")
    assert (await ledger.settle(hold, a_settlement(40))).actual == 40
    assert await balance(ledger, call) == (0, 40)
    assert isinstance(await ledger.begin(call), Replayed)
    with pytest.raises(LedgerConflict):
        await ledger.cancel(hold, "too late")
    await assert_whole(ledger)


@pytest.mark.parametrize(("rule", "charged"), [("full", 100), ("estimate", 60), ("zero", 0)])
async def test_a_doubt_stays_charged_until_its_rule_settles_it(
    ledger: PostgresLedger, clock: HeldClock, rule: str, charged: int
) -> None:
    call = a_call(likely=Money(60))
    hold = await held(ledger, call)
    await ledger.doubt(hold, "timeout", DoubtRule(rule))
    await ledger.doubt(hold, "timeout", DoubtRule(rule))
    await ledger.sweep()
    assert await balance(ledger, call) == (100, 0)
    clock.pass_(24 * 3600)
    await ledger.sweep()
    await ledger.sweep()
    assert await balance(ledger, call) == (0, charged)
    # the reply came after all: the commit states the full cost, nothing is paid twice
    await ledger.settle(hold, a_settlement(40))
    assert await balance(ledger, call) == (0, 40)
    await assert_whole(ledger)


async def test_a_doubt_is_settled_by_the_providers_usage_once(ledger: PostgresLedger) -> None:
    call = a_call()
    hold = await held(ledger, call)
    await ledger.doubt(hold, "reset")
    await ledger.adjust(hold, Money(33), usage={"tokens_in": 5})
    await ledger.adjust(hold, Money(33), usage={"tokens_in": 5})
    assert await balance(ledger, call) == (0, 33)
    with pytest.raises(LedgerConflict):
        await ledger.adjust(hold, Money(34))
    await assert_whole(ledger)


async def test_a_refund_is_paid_once_under_its_reference(ledger: PostgresLedger) -> None:
    """X5"""
    call = a_call()
    hold = await held(ledger, call)
    await ledger.settle(hold, a_settlement(40))
    await asyncio.gather(*(ledger.adjust(hold, Money(-15), reference="invoice-7") for _ in range(5)))
    assert await balance(ledger, call) == (0, 25)
    with pytest.raises(LedgerConflict, match="reference"):
        await ledger.adjust(hold, Money(-15))
    await assert_whole(ledger)


async def test_an_undispatched_hold_expires_and_a_dispatched_one_never_does_for_free(
    ledger: PostgresLedger, clock: HeldClock
) -> None:
    undispatched, dispatched = a_call(hold_seconds=10), a_call(reply_seconds=10)
    waiting = await held(ledger, undispatched, dispatch=False)
    sent = await held(ledger, dispatched)
    clock.pass_(-3600)
    await ledger.sweep()
    clock.pass_(3600 + 11)
    await ledger.sweep()
    assert await balance(ledger, undispatched) == (0, 0)
    assert await balance(ledger, dispatched) == (100, 0)
    with pytest.raises(HoldExpired):
        await ledger.dispatch(waiting)
    assert (await ledger.settle(sent, a_settlement(40))).actual == 40
    await assert_whole(ledger)


# --- the fence ---


async def test_a_superseded_attempt_is_not_dispatched(ledger: PostgresLedger, postgres: Postgres) -> None:
    file = await running_file(postgres)
    old, new = Fence(file.thread_id, file.epoch), Fence(file.thread_id, file.epoch + 1)
    call = a_call()
    hold = await held(ledger, call, dispatch=False)
    await postgres.run("UPDATE agent_threads SET epoch = epoch + 1 WHERE thread_id = %s", [file.thread_id])
    for attempt in (ledger.dispatch(hold, old), ledger.begin(a_call(), dispatch=True, fence=old)):
        with pytest.raises(EpochSuperseded):
            await attempt
    others = a_call(mode=Mode.BEST_EFFORT)
    with pytest.raises(EpochSuperseded):
        await ledger.begin(others, dispatch=True, fence=old)
    assert await ledger.dispatch(hold, new) is None


# --- days ---


async def test_a_commit_belongs_to_its_own_day_and_a_hold_to_the_day_it_was_made(
    ledger: PostgresLedger, clock: HeldClock
) -> None:
    call = a_call()
    tenant = call.payer.tenant_id
    await ledger.books.set_tenant(tenant, TenantBudget("Asia/Shanghai", daily_limit=Money(150)))
    clock.moment = datetime(2036, 3, 1, 15, 59, tzinfo=UTC)  # a minute before midnight in Shanghai
    hold = await held(ledger, call)
    with pytest.raises(BudgetExhausted):
        await ledger.begin(a_call(call.payer))
    clock.pass_(120)
    await held(ledger, a_call(call.payer))
    await ledger.settle(hold, a_settlement(40))
    assert await ledger.spend_today(tenant) == 40
    days = await ledger.books.days(tenant, TODAY, TODAY + timedelta(days=1))
    assert [(each.day.day, each.held, each.spent) for each in days] == [(2, 100, 40), (1, 0, 0)]
    await assert_whole(ledger)


async def test_spend_today_is_of_all_or_of_one_profile(ledger: PostgresLedger, clock: HeldClock) -> None:
    payer = a_payer()
    for each in (payer, replace(payer, profile="other")):
        await ledger.settle(await held(ledger, a_call(each)), a_settlement(40))
    assert await ledger.spend_today(payer.tenant_id) == 80
    assert await ledger.spend_today(payer.tenant_id, scope="profile", profile="other") == 40
    clock.pass_(86400)
    assert await ledger.spend_today(payer.tenant_id) == 0
    with pytest.raises(InvalidInput):
        await ledger.spend_today(payer.tenant_id, scope="profile")


async def test_an_unknown_time_zone_and_a_scope_without_account_are_refused(ledger: PostgresLedger) -> None:
    with pytest.raises(InvalidInput, match="IANA"):
        await ledger.books.set_tenant("t", TenantBudget("Mars/Olympus"))
    with pytest.raises(InvalidInput, match="tenant_day"):
        await ledger.books.set_limit(Account("t", Scope.TENANT_DAY, "2036-03-01"), ZERO)


# --- best effort ---


async def test_best_effort_does_not_wait_for_its_hold_and_is_whole_after_its_reply(
    ledger: PostgresLedger,
) -> None:
    call = a_call(mode=Mode.BEST_EFFORT)
    hold = await held(ledger, call, dispatch=False)
    assert await ledger.dispatch(hold) is None
    entry = await ledger.settle(hold, a_settlement(40))
    assert isinstance(await ledger.begin(call), Replayed)
    assert entry.attempt == 1
    assert await balance(ledger, call) == (0, 40)
    await assert_whole(ledger)


async def test_best_effort_over_the_limit_is_refused_with_a_fact(
    ledger: PostgresLedger, postgres: Postgres
) -> None:
    call = a_call(mode=Mode.BEST_EFFORT)
    await ledger.books.set_limit(Account(call.payer.tenant_id, Scope.PROFILE, "class"), Money(99))
    with pytest.raises(BudgetExhausted):
        await ledger.begin(call)
    assert await facts_of(postgres, call) == ["refused"]


async def test_modes_are_read_from_key_batch_and_tenant_and_the_strictest_wins(
    ledger: PostgresLedger,
) -> None:
    payer = a_payer()
    assert chosen_mode(*await ledger.books.modes(payer)) is Mode.STRICT
    await ledger.books.set_tenant(payer.tenant_id, TenantBudget(mode=Mode.BEST_EFFORT))
    assert chosen_mode(*await ledger.books.modes(payer)) is Mode.BEST_EFFORT
    account = Account(payer.tenant_id, Scope.API_KEY, payer.api_key_id)
    await ledger.books.set_limit(account, None, Mode.STRICT)
    assert chosen_mode(*await ledger.books.modes(payer)) is Mode.STRICT


# --- events made elsewhere ---


def an_event(kind: EventType, call: Any, estimated: int, actual: int = 0, **fields: Any) -> LedgerEvent:
    known = {
        "event_id": event_id(call.key.id, 1, kind),
        "day": TODAY,
        "hold_day": TODAY,
        "occurred_at": datetime(2036, 3, 1, tzinfo=UTC),
    }
    return LedgerEvent(
        event_type=kind, call_id=call.key.id, attempt=1, payer=call.payer,
        estimated=Money(estimated), actual=Money(actual), **(known | fields),
    )  # fmt: skip


async def test_an_event_repeated_is_a_no_op_and_with_another_content_an_error(ledger: PostgresLedger) -> None:
    call = a_call()
    hold = an_event(EventType.HOLD, call, 100)
    commit = an_event(EventType.COMMIT, call, 100, 40, usage={"tokens_in": 7})
    for event in (hold, hold, commit, commit._replace(occurred_at=datetime.now(UTC)), hold):
        await ledger.write_event(event)
    for other in (hold._replace(estimated=Money(99)), commit._replace(actual=Money(41))):
        with pytest.raises(LedgerConflict):
            await ledger.write_event(other)
    assert await balance(ledger, call) == (0, 40)
    assert fold([hold, commit])[Account(call.payer.tenant_id, Scope.PROFILE, "class")].spent == 40
    await assert_whole(ledger)


async def test_an_end_without_its_hold_and_a_second_hold_are_refused(ledger: PostgresLedger) -> None:
    call = a_call()
    with pytest.raises(LedgerConflict, match="needs its hold"):
        await ledger.write_event(an_event(EventType.CANCEL, call, 100))
    await ledger.write_event(an_event(EventType.HOLD, call, 100), sync=False)
    with pytest.raises(LedgerConflict, match="needs its hold"):
        await ledger.write_event(an_event(EventType.COMMIT, call, 99, 1))
    with pytest.raises(LedgerConflict, match="hold number"):
        await ledger.write_event(an_event(EventType.HOLD, call, 100, event_id=uuid4()))
    await ledger.write_event(an_event(EventType.CANCEL, call, 100))
    assert await balance(ledger, call) == (0, 0)


async def test_facts_are_queued_and_written(ledger: PostgresLedger, postgres: Postgres) -> None:
    call = a_call()
    await ledger.record(
        LedgerFact(FactKind.WAITED, call.payer, call.key.id, data={"reason": "rate", "waited_ms": 5})
    )
    await ledger.close()
    assert await facts_of(postgres, call) == ["waited"]


def test_scripts_have_a_synchronous_front(session_database_url: str) -> None:
    front = SynchronousLedger(opened_ledger(session_database_url))
    call = a_call()
    try:
        front.write_event(an_event(EventType.HOLD, call, 100))
        front.write_event(an_event(EventType.COMMIT, call, 100, 40))
        assert front.spend_today(call.payer.tenant_id) == 40
        with pytest.raises(LedgerConflict):
            front.write_event(an_event(EventType.COMMIT, call, 100, 41))
    finally:
        front.close()


# --- the journal's retention ---


async def test_the_journal_is_kept_for_thirty_days_and_for_running_batches(
    ledger: PostgresLedger, clock: HeldClock, postgres: Postgres
) -> None:
    batch = await pending_batch(postgres)
    running, alone = a_call(a_payer(tenant_id="local", batch_id=batch.id)), a_call()
    for call in (running, alone):
        await ledger.settle(await held(ledger, call), a_settlement())
    with pytest.raises(InvalidInput, match="30 days"):
        await ledger.books.prune(clock.now() - timedelta(days=29), ["completed"])
    clock.pass_(31 * 86400)
    while await ledger.books.prune(clock.now() - timedelta(days=30), ["completed"]):
        pass
    assert isinstance(await ledger.begin(running), Replayed)
    again = await ledger.begin(alone)
    assert isinstance(again, Hold)
    assert (await ledger.settle(again, a_settlement())).attempt == 2
    await assert_whole(ledger)

"""Calls under rate limits: granted, told to wait or refused at once; their place is free however they end."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

import pytest

from db.redis.limits import RedisRateLimits, limit_key
from domain.completion import IMPATIENT, CompletionReply, CompletionRequest, Patience
from domain.errors import (
    BudgetExhausted,
    LedgerUnavailable,
    LimitExceeded,
    ModelRefused,
    ModelUnavailable,
    RateLimited,
)
from domain.gateway import Caller, LimitState, Permit, RateLimit
from domain.ledger import Account, LedgerFact, Scope
from domain.money import Money
from gateway.context import Context, QuotaChecked
from gateway.quotas import QuotaStep
from runtime.resources import Resources
from tests.db.stage import until
from tests.gateway.lane import Lane, Upstream, at_once, opened_lane, raising

PLACE = RateLimit("key/k", "calls", 1)
TOKENS = RateLimit("key/k", "tokens", 10_000)
REQUESTS = RateLimit("tenant", "requests", 100)


@dataclass
class Time:
    """A clock that only sleeping moves."""

    moment: float = 1_000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.moment += seconds


class Held(Upstream):
    """An upstream whose replies are held until they are let go."""

    def __init__(self) -> None:
        super().__init__(self.wait)
        self.asked, self.released = asyncio.Event(), asyncio.Event()

    async def wait(self, request: CompletionRequest) -> CompletionReply:
        self.asked.set()
        await self.released.wait()
        return await at_once(request)


class Telling(RedisRateLimits):
    """The real limits, which also tell how many tokens were said to be used, the first time for each call."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources.redis)
        self.used: dict[str, int | None] = {}

    async def release(self, tenant_id: str, permit: Permit, *, tokens_used: int | None = None) -> None:
        self.used.setdefault(permit.id, tokens_used)
        await super().release(tenant_id, permit, tokens_used=tokens_used)


class Timed(RedisRateLimits):
    """The real limits, under which waiting for a place only moves the clock."""

    def __init__(self, resources: Resources, time: Time) -> None:
        super().__init__(resources.redis)
        self.time = time

    async def freed(self, tenant_id: str, full: Sequence[RateLimit], *, within_seconds: float) -> None:
        assert full == (PLACE,)
        await self.time.sleep(round(within_seconds, 6))


class Unhurried(RedisRateLimits):
    """The real limits, under which nobody asks again before it is woken."""

    async def freed(self, tenant_id: str, full: Sequence[RateLimit], *, within_seconds: float) -> None:
        await super().freed(tenant_id, full, within_seconds=600)


@pytest.fixture
async def lane(session_resources: Resources) -> Lane:
    return await opened_lane(session_resources, Held())


@pytest.fixture
def facts() -> list[LedgerFact]:
    return []


def a_step(lane: Lane, facts: list[LedgerFact], **options: object) -> QuotaStep:
    """The step over the real limits and quotas."""

    async def record(fact: LedgerFact) -> None:
        facts.append(fact)

    resources = lane.resources
    limits = options.pop("limits", resources.limits)
    return QuotaStep(limits, resources.quotas, **({"record": record} | options))  # type: ignore[arg-type]


def a_caller(lane: Lane, *limits: RateLimit) -> Caller:
    return replace(lane.caller, limits=limits)


def a_context(lane: Lane, *limits: RateLimit, arrived: float | None = None, **patience: object) -> Context:
    """A client's call that has just arrived."""
    request = lane.chat(patience=Patience(**patience), payer=lane.payer)  # type: ignore[arg-type]
    return Context(request, a_caller(lane, *limits), monotonic() if arrived is None else arrived)


async def taken(lane: Lane, limit: RateLimit) -> int:
    """How many places are, or how much of a bucket is."""
    client, key = lane.resources.redis.client, limit_key(lane.payer.tenant_id, limit)
    if limit.unit == "calls":
        return int(await client.zcard(key))
    level = await client.hget(key, "level")
    # what has come back since then is less than a token
    return 0 if level is None else limit.capacity - -(-int(level) // 60_000)


# --- through the door ---


async def test_the_place_of_a_client_that_left_is_taken_until_its_call_has_ended_and_not_longer(
    lane: Lane, facts: list[LedgerFact]
) -> None:
    """X3: no phantom 429, and no more upstream calls at once than the limit either."""
    assert isinstance(lane.upstream, Held)
    door, caller = lane.door(quotas=a_step(lane, facts)), a_caller(lane, PLACE)
    calling = asyncio.create_task(door.complete(lane.chat(), caller=caller))
    await lane.upstream.asked.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    with pytest.raises(RateLimited) as refused:
        await door.complete(lane.chat(patience=IMPATIENT), caller=caller)
    assert refused.value.limit == "key/k calls"
    lane.upstream.released.set()

    async def drained() -> bool:
        return not door.under_way

    await until(drained)
    assert await taken(lane, PLACE) == 0
    assert (await door.complete(lane.chat(), caller=caller)).text == "{}"
    assert await lane.outside_states() == ["committed", "committed"]


async def test_a_call_uses_the_tokens_of_its_reply_and_a_replay_none(
    lane: Lane, facts: list[LedgerFact]
) -> None:
    assert isinstance(lane.upstream, Held)
    lane.upstream.released.set()
    limits, caller = Telling(lane.resources), a_caller(lane, TOKENS, REQUESTS, PLACE)
    door = lane.door(quotas=a_step(lane, facts, limits=limits))
    told: list[Sequence[LimitState]] = []
    for _ in range(3):
        await door.complete(lane.chat("mine"), caller=caller, on_limits=told.append)
    assert list(limits.used.values()) == [150, 0, 0]  # 100 in, 50 out
    assert await taken(lane, PLACE) == 0
    first = {each.limit: each.left for each in told[0]}
    assert (first[REQUESTS], first[PLACE]) == (99, 0)
    # the worst case of this call, which is not known better before it is answered
    assert 9_000 < first[TOKENS] < 10_000 - 150


@pytest.mark.parametrize(
    ("error", "kept"),
    [(ModelRefused("no"), False), (ModelUnavailable("reset", in_doubt=True), True)],
    ids=["refused", "in doubt"],
)
async def test_a_failed_call_gives_back_its_place_and_what_it_surely_did_not_use(
    lane: Lane, facts: list[LedgerFact], error: Exception, kept: bool
) -> None:
    limits = Telling(lane.resources)
    door = replace(lane, upstream=Upstream(raising(error))).door(quotas=a_step(lane, facts, limits=limits))
    patience = Patience(retry_budget_s=0)
    with pytest.raises(type(error)):
        await door.complete(lane.chat(patience=patience), caller=a_caller(lane, TOKENS, PLACE))
    assert await taken(lane, PLACE) == 0
    assert list(limits.used.values()) == [None if kept else 0]


async def test_an_agents_calls_count_against_its_tenants_limits(lane: Lane, facts: list[LedgerFact]) -> None:
    asked: list[str] = []

    async def limits_of(tenant_id: str) -> Sequence[RateLimit]:
        asked.append(tenant_id)
        return (REQUESTS,)

    time = Time()
    step = a_step(lane, facts, limits_of=limits_of, now=time.now)
    for _ in range(3):
        async with step.checked(Context(lane.request(), None, time.now()), 10) as checked:
            assert [each.limit for each in checked.states] == [REQUESTS]
    assert asked == [lane.payer.tenant_id]
    time.moment += 61
    async with step.checked(Context(lane.request(), None, time.now()), 10):
        assert len(asked) == 2
    assert await taken(lane, REQUESTS) > 0


# --- waiting ---


async def test_a_patient_call_waits_for_its_place_and_says_how_long(
    lane: Lane, facts: list[LedgerFact]
) -> None:
    step, other = a_step(lane, facts), RedisRateLimits(lane.resources.redis)
    tenant_id = lane.payer.tenant_id
    # another process's place: nobody is woken when it is given back
    permit = await other.acquire(tenant_id, [PLACE], tokens=0, lease_seconds=60)
    context = a_context(lane, PLACE, wait_on_rate_limit=True)
    waiting = asyncio.create_task(_enter_and_leave(step, context))
    await until(lambda: _stands_in_line(lane))
    await other.release(tenant_id, permit)
    assert await waiting == 1
    await other.close()
    (fact,) = facts
    assert (fact.kind, fact.payer, fact.call_id) == ("waited", context.payer, context.key.id)
    assert fact.data["reason"] == "key/k calls"
    assert fact.data["outcome"] == "answered"
    assert isinstance(fact.data["rounds"], int)
    assert fact.data["rounds"] >= 1
    assert isinstance(fact.data["waited_ms"], int)
    assert fact.data["waited_ms"] > 0


async def test_waits_end_at_one_deadline_which_counts_from_the_arrival(
    lane: Lane, facts: list[LedgerFact]
) -> None:
    time = Time()
    step = a_step(lane, facts, limits=Timed(lane.resources, time), now=time.now)
    await lane.resources.limits.acquire(lane.payer.tenant_id, [PLACE], tokens=0, lease_seconds=60)
    waiting = {"wait_on_rate_limit": True, "max_wait_timeout_s": 10.0}
    # 7.5 of its 10 seconds were waited for something else
    context = a_context(lane, PLACE, arrived=time.now() - 7.5, **waiting)
    with pytest.raises(RateLimited):
        await _enter(step, context)
    assert time.slept == [0.05, 0.1, 0.2, 0.4, 0.8, 0.95]
    (fact,) = facts
    assert fact.data == {"reason": "key/k calls", "waited_ms": 2_500, "rounds": 6, "outcome": "refused"}


async def test_a_place_given_back_goes_to_one_who_waits_at_once(lane: Lane, facts: list[LedgerFact]) -> None:
    """X3: forty calls under a limit of four follow each other, though nobody looks again by itself."""
    four, limits = RateLimit("key/k", "calls", 4), Unhurried(lane.resources.redis)
    step, under_way, most = a_step(lane, facts, limits=limits), 0, 0

    async def call() -> None:
        nonlocal under_way, most
        context = a_context(lane, four, wait_on_rate_limit=True)
        async with step.checked(context, 10):
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            under_way -= 1

    await asyncio.wait_for(asyncio.gather(*(call() for _ in range(40))), 60)
    assert (most, await taken(lane, four)) == (4, 0)
    await limits.close()


async def test_who_is_cancelled_while_its_wait_is_written_down_gives_back_its_place(lane: Lane) -> None:
    telling = asyncio.Event()

    async def record(_: LedgerFact) -> None:
        telling.set()
        await asyncio.Event().wait()

    limits = lane.resources.limits
    permit = await limits.acquire(lane.payer.tenant_id, [PLACE], tokens=0, lease_seconds=60)
    step = a_step(lane, [], record=record)
    waiting = asyncio.create_task(_enter(step, a_context(lane, PLACE, wait_on_rate_limit=True)))
    await until(lambda: _stands_in_line(lane))
    await limits.release(lane.payer.tenant_id, permit)
    await telling.wait()
    assert await taken(lane, PLACE) == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await taken(lane, PLACE) == 0


async def test_a_wait_that_would_be_too_long_is_refused_at_once(lane: Lane, facts: list[LedgerFact]) -> None:
    time = Time()
    step = a_step(lane, facts, now=time.now, sleep=time.sleep)
    await lane.resources.limits.acquire(lane.payer.tenant_id, [TOKENS], tokens=10_000, lease_seconds=60)
    waiting = {"wait_on_rate_limit": True, "max_wait_timeout_s": 10.0}
    with pytest.raises(RateLimited) as refused:
        await _enter(step, a_context(lane, TOKENS, PLACE, arrived=time.now(), **waiting), tokens=5_000)
    assert refused.value.retry_after_seconds is not None
    assert 25 < refused.value.retry_after_seconds <= 30
    assert (time.slept, facts, await taken(lane, PLACE)) == ([], [], 0)


async def test_an_impatient_call_and_one_that_can_never_pass_do_not_wait(
    lane: Lane, facts: list[LedgerFact]
) -> None:
    time = Time()
    step = a_step(lane, facts, now=time.now, sleep=time.sleep)
    await lane.resources.limits.acquire(lane.payer.tenant_id, [PLACE], tokens=0, lease_seconds=60)
    with pytest.raises(RateLimited):
        await _enter(step, a_context(lane, PLACE, arrived=time.now()))
    with pytest.raises(LimitExceeded):
        await _enter(
            step, a_context(lane, TOKENS, arrived=time.now(), wait_on_rate_limit=True), tokens=10_001
        )
    assert (time.slept, facts) == ([], [])


async def test_a_fact_that_cannot_be_written_stops_no_call(lane: Lane) -> None:
    async def record(_: LedgerFact) -> None:
        raise LedgerUnavailable("the buffer is full")

    step = a_step(lane, [], record=record)
    limits, tenant_id = lane.resources.limits, lane.payer.tenant_id
    permit = await limits.acquire(tenant_id, [PLACE], tokens=0, lease_seconds=60)
    waiting = asyncio.create_task(_enter(step, a_context(lane, PLACE, wait_on_rate_limit=True)))
    await until(lambda: _stands_in_line(lane))
    await limits.release(tenant_id, permit)
    assert (await waiting).permit is not None


# --- what ends ---


async def test_a_spent_budget_gives_back_what_the_limits_granted(lane: Lane, facts: list[LedgerFact]) -> None:
    books, payer = lane.resources.ledger.books, lane.payer
    await replace(lane, upstream=Upstream()).door().complete(lane.request())
    await books.set_limit(Account(payer.tenant_id, Scope.API_KEY, payer.api_key_id), Money(10))
    await lane.resources.quotas.write(await books.quota(payer))
    with pytest.raises(BudgetExhausted):
        await _enter(a_step(lane, facts), a_context(lane, PLACE, TOKENS), tokens=500)
    assert await taken(lane, PLACE) == 0
    assert await taken(lane, TOKENS) == 0


async def test_a_cancelled_call_gives_back_its_place(lane: Lane, facts: list[LedgerFact]) -> None:
    step, inside = a_step(lane, facts), asyncio.Event()

    async def hold() -> None:
        async with step.checked(a_context(lane, PLACE), 10):
            inside.set()
            await asyncio.sleep(60)

    holding = asyncio.create_task(hold())
    await inside.wait()
    assert await taken(lane, PLACE) == 1
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert await taken(lane, PLACE) == 0


async def _enter(step: QuotaStep, context: Context, tokens: int = 10) -> QuotaChecked:
    async with step.checked(context, tokens) as checked:
        return checked


async def _enter_and_leave(step: QuotaStep, context: Context) -> int:
    """How many places are taken inside."""
    async with step.checked(context, 10) as checked:
        return len(checked.states)


async def _stands_in_line(lane: Lane) -> bool:
    key = limit_key(lane.payer.tenant_id, PLACE)
    return key in lane.resources.limits._lines._lines

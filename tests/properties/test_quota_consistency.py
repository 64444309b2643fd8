"""Property 30: whatever calls at once and whatever is lost, Redis and Postgres agree in the end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from db.postgres.ledger import PostgresLedgerBooks
from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from db.postgres.quotas import PostgresQuotaAudit
from db.redis.connection import RedisLink
from db.redis.limits import RedisRateLimits, limit_key
from db.redis.quotas import RedisQuotas, copy_key, copy_of
from domain.completion import CompletionRequest, Payer
from domain.errors import BudgetExhausted
from domain.gateway import Caller, RateLimit
from domain.identity import ClientStep
from domain.ledger import Account, Hold, Scope
from domain.money import Money
from gateway.context import Context
from gateway.figures import GatewayFigures
from gateway.quotas import QuotaStep
from runtime.reconciling import QuotaReconciler
from runtime.resources import SystemClock, in_background
from tests.db.purse import HeldClock, a_call, a_payer, a_settlement, opened_ledger
from tests.db.stage import opened_postgres, own_valkey, until

#: what a call estimates, what it does with its hold, and what it costs in the end
CALLS = st.tuples(
    st.just("call"),
    st.integers(0, 200),
    st.sampled_from(["settle", "settle", "cancel", "doubt", "keep"]),
    st.integers(0, 300),
)
FAULTS = st.sampled_from(["restart", "flush", "snapshot", "restore"]).map(lambda name: (name,))
LIMITS = st.tuples(st.just("limit"), st.one_of(st.none(), st.integers(0, 800)))
#: those of one group happen at once
HISTORIES = st.lists(
    st.lists(st.one_of(CALLS, CALLS, CALLS, FAULTS, LIMITS), max_size=6), min_size=1, max_size=3
)


class Installation:
    """One process over one Postgres and one Redis, which dies and is started again."""

    def __init__(self, url: str, postgres: Postgres, link: RedisLink) -> None:
        self.clock = HeldClock()
        self.books = PostgresLedgerBooks(postgres, self.clock)
        self.figures = GatewayFigures(CollectorRegistry())
        self._url, self._postgres, self.link = url, postgres, link
        self._ends = AsyncExitStack()
        self.ledger: PostgresLedger
        self.quotas: RedisQuotas
        # as it is another process's
        others = RedisQuotas(link, self.books, self.clock)
        self.reconciler = QuotaReconciler(
            others, self.books, PostgresQuotaAudit(postgres), self.figures, SystemClock(), late_seconds=0
        )

    async def start(self) -> None:
        """Begin, knowing nothing."""
        self.quotas = RedisQuotas(self.link, self.books, self.clock)
        await self._ends.enter_async_context(in_background(self.quotas.run()))
        options = {"on_committed": self.quotas.push}
        self.ledger = await self._ends.enter_async_context(
            opened_ledger(self._url, self.clock, self._postgres, **options)
        )

    async def stop(self) -> None:
        """End as a kill does for the copies: what waits in memory is lost."""
        self.quotas._waiting.clear()
        await self._ends.aclose()


class History:
    """One tenant's calls and faults, and what they must add up to."""

    def __init__(self, installation: Installation) -> None:
        self._on = installation
        self.payer = a_payer()
        self.key = Account(self.payer.tenant_id, Scope.API_KEY, self.payer.api_key_id)
        self._snapshot: dict[str, str] = {}
        self.requests = self.spent = self.held = 0

    async def play(self, step: tuple[object, ...]) -> None:
        match step:
            case "call", int(estimated), str(end), int(actual):
                await self._call(estimated, end, actual)
            case "limit", limit:
                money = Money(limit) if isinstance(limit, int) else None
                await self._on.books.set_limit(self.key, money)
            case ("flush",):
                await self._each_copy(self._on.link.client.delete)
            case ("snapshot",):
                await self._each_copy(self._keep)
            case ("restore",):
                for key, text in self._snapshot.items():
                    await self._on.link.client.set(key, text)

    async def _call(self, estimated: int, end: str, actual: int) -> None:
        ledger = self._on.ledger
        try:
            hold = await ledger.begin(a_call(self.payer, estimated), dispatch=True)
        except BudgetExhausted:
            return
        assert isinstance(hold, Hold)
        match end:
            case "settle":
                await ledger.settle(hold, a_settlement(actual))
                self.requests, self.spent = self.requests + 1, self.spent + actual
            case "cancel":
                await ledger.cancel(hold, "429")
            case "doubt":
                await ledger.doubt(hold, "reset")
        self.held += estimated if end in ("doubt", "keep") else 0

    async def _keep(self, key: str) -> None:
        if text := await self._on.link.client.get(key):
            self._snapshot[key] = str(text)

    async def _each_copy(self, act: Callable[[str], object]) -> None:
        for balance in await self._on.books.balances(self.payer.tenant_id):
            await act(copy_key(balance.account))  # type: ignore[misc]  # the client's own method is one of them

    async def check(self) -> None:
        """Postgres has all that happened, and Redis has what Postgres has."""
        balances = await self._on.books.balances(self.payer.tenant_id)
        copies = await self._on.quotas.copies([each.account for each in balances])
        newest = {each.account: each.version for each in balances}
        assert all(copy.version <= newest[copy.account] for copy in copies if copy is not None)
        for balance in balances:
            amounts = (balance.spent, balance.held, balance.requests, balance.tokens)
            assert amounts == (self.spent, self.held, self.requests, 30 * self.requests)
        right = [copy_of(each) for each in balances]

        async def repaired() -> bool:
            await self._on.reconciler.reconcile_all()
            return await self._on.quotas.copies([each.account for each in balances]) == right

        # what is on its way at the first look is looked at again
        await until(repaired)
        right = [copy_of(each) for each in await self._on.books.quota(self.payer)]
        assert list(await self._on.quotas.read(self.payer)) == right
        await self._each_copy(self._on.link.client.delete)


@pytest.fixture(scope="module")
async def installation(
    session_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    monkeypatch = pytest.MonkeyPatch()
    # clocks here are one, and every example looks at those before it again
    monkeypatch.setattr("runtime.reconciling.OVERLAP_SECONDS", 0.2)
    async with (
        opened_postgres(session_database_url) as postgres,
        own_valkey(Path(tmp_path_factory.mktemp("quotas")) / "valkey") as valkey,
    ):
        link = RedisLink.to(valkey.url, max_connections=20, timeout_seconds=5)
        made = Installation(session_database_url, postgres, link)
        await made.start()
        yield made
        await made.stop()
        await link.close()
    monkeypatch.undo()


@settings(max_examples=100)
@given(groups=HISTORIES)
async def test_redis_and_postgres_agree_whatever_happened(
    installation: Installation, example: Callable[[], None], groups: list[list[tuple[object, ...]]]
) -> None:
    """
    **功能: assay, 属性 30: 配额一致性**
    **验证: 需求 O1, O2**

    For every history of concurrent calls with holds, settlements, cancels and doubts, of changed limits,
    killed writers, a flushed Redis and a restored old one: no copy is ever newer than Postgres, balances and
    daily counters in Postgres are exact, and in the end every copy is what Postgres has.
    """
    history = History(installation)
    for group in groups:
        await asyncio.gather(*(history.play(step) for step in group))
        if ("restart",) in group:
            await installation.stop()
            await installation.start()
    await history.check()
    example()


async def test_a_hundred_concurrent_requests_leave_exact_balances_on_both_sides(
    installation: Installation,
) -> None:
    """The source's consistency test: through limits, quotas and ledger."""
    payer = a_payer(batch_id="", profile="")
    limits, facts = RedisRateLimits(installation.link), installation.ledger.record
    step = QuotaStep(limits, installation.quotas, record=facts)
    places = RateLimit(f"key/{payer.api_key_id}", "calls", 100)
    wanted = (places, RateLimit("tenant", "requests", 1_000), RateLimit("tenant", "tokens", 100_000))
    caller = Caller(payer.tenant_id, payer.api_key_id, frozenset({"submit"}), limits=wanted)
    await installation.books.set_limit(
        Account(payer.tenant_id, Scope.API_KEY, payer.api_key_id), Money(100 * 140)
    )

    async def request(number: int) -> None:
        made = CompletionRequest(ClientStep(str(number)), 1, "scripted", payer=payer)
        context = Context(made, caller, arrived=monotonic())
        async with step.checked(context, 200) as checked:
            hold = await installation.ledger.begin(a_call(payer, 140), dispatch=True)
            assert isinstance(hold, Hold)
            await installation.ledger.settle(hold, a_settlement(40 + number % 2))
            await step.release(context, checked, 30)

    await asyncio.gather(*(request(number) for number in range(100)))

    async def agreed() -> bool:
        found = await installation.quotas.read(payer)
        return [(each.spent, each.held, each.requests, each.tokens) for each in found] == [
            (4_050, 0, 100, 3_000)
        ] * 2

    await until(agreed)
    right = [copy_of(each) for each in await installation.books.quota(payer)]
    assert list(await installation.quotas.read(payer)) == right
    assert not await installation.link.client.zcard(limit_key(payer.tenant_id, places))
    # a budget is what it was after the process has gone
    await installation.stop()
    await installation.start()
    await _exhaust(installation, payer)


async def _exhaust(installation: Installation, payer: Payer) -> None:
    """What was spent before counts: exactly so much is left."""
    left = 100 * 140 - 4_050
    with pytest.raises(BudgetExhausted):
        await installation.ledger.begin(a_call(payer, left + 1))
    assert isinstance(await installation.ledger.begin(a_call(payer, left)), Hold)

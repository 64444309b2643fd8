"""What the load rests on: a simulated upstream, the real API before it, and ways to look at its books."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx

from db.postgres.prices import PostgresPrices
from db.redis.quotas import copy_key, copy_of
from domain.gateway import QuotaCopy
from domain.ledger import Account, AccountBalance
from domain.prices import Unit, own_prices
from gateway.catalogue import canonical_name, catalogue
from runtime.resources import Resources
from runtime.settings import CompatibleServer, ModelSettings, Settings
from runtime.simulated_upstream import Behaviour, SimulatedUpstream
from tests.conftest import KEY, opened, served

MODEL = "upstream:simulated"
PROFILE = "load"
TOKENS_IN_NANODOLLARS, TOKENS_OUT_NANODOLLARS = 150, 600
QUIET_SECONDS = 60.0
OPEN_HOLDS_SQL = "SELECT count(*) AS open FROM ledger_holds WHERE state IN ('held', 'dispatched', 'in_doubt')"
COMMITS_SQL = "SELECT count(*) AS commits FROM ledger_events WHERE event_type = 'commit'"


@dataclass(frozen=True)
class Field:
    """What runs, and the keys of its users."""

    upstream: SimulatedUpstream
    resources: Resources
    url: str
    tenant_id: str
    keys: Sequence[str]

    async def balances(self) -> list[AccountBalance]:
        """Every account of the tenant that was used, as Postgres has it."""
        found = await self.resources.ledger.books.balances(self.tenant_id, count=1000)
        return [each for each in found if each.requests or each.spent or each.held]

    async def copies(self, accounts: Sequence[Account]) -> list[QuotaCopy | None]:
        """The same as Redis has it."""
        return await self.resources.quotas.copies(accounts)

    async def count(self, sql: str) -> int:
        """The one number that a statement answers."""
        row = await self.resources.postgres.row(sql)
        assert row is not None
        (number,) = row.values()
        return int(number)

    async def snapshot(self, accounts: Sequence[Account]) -> None:
        """Keep what Redis has now."""
        with self.resources.redis.use() as client:
            for key in map(copy_key, accounts):
                assert await client.copy(key, f"kept:{key}", replace=True)

    async def restore(self, accounts: Sequence[Account]) -> None:
        """Put back what was kept, as a restored snapshot would."""
        with self.resources.redis.use() as client:
            for key in map(copy_key, accounts):
                assert await client.copy(f"kept:{key}", key, replace=True)
                await client.delete(f"kept:{key}")

    async def quiet(self) -> None:
        """Wait until no call is under way: whoever has left is settled for, too."""
        async with asyncio.timeout(QUIET_SECONDS):
            while self.upstream.statistics.underway or await self.count(OPEN_HOLDS_SQL):
                await asyncio.sleep(0.02)

    async def agreeing(self) -> list[AccountBalance]:
        """The balances, once Redis agrees with Postgres on all of them; fails if it does not in time."""
        async with asyncio.timeout(QUIET_SECONDS):
            while True:
                balances = await self.balances()
                copies = await self.copies([each.account for each in balances])
                if copies == [copy_of(each) for each in balances]:
                    return balances
                await asyncio.sleep(0.05)


@asynccontextmanager
async def opened_field(settings: Settings, tenant_id: str, keys: int) -> AsyncIterator[Field]:
    """All of it, for a tenant of its own: tests share one Redis."""
    behaviour = Behaviour.model_validate(
        {
            "latency": {"shape": "uniform", "seconds": 0.002, "spread": 0.03},
            "faults": {"rate_limited": 0.02, "server_error": 0.01, "unavailable": 0.01},
            "retry_after_seconds": 0.02,
        }
    )
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(SimulatedUpstream(behaviour, seed=5).serving())
        server = CompatibleServer(url=f"{upstream.url}/v1")
        changed = {"tenant_id": tenant_id, "models": ModelSettings(compatible={"upstream": server})}
        settings = settings.model_copy(update=changed)
        resources = await stack.enter_async_context(opened(settings))
        usd = [(Unit.TOKENS_IN, "0.15"), (Unit.TOKENS_OUT, "0.60")]
        prices = PostgresPrices(resources.postgres, catalogue=catalogue, canonical=canonical_name)
        await prices.add(own_prices(MODEL, usd))
        url = await stack.enter_async_context(served(settings))
        yield Field(upstream, resources, url, tenant_id, await _keys(url, keys))


async def _keys(url: str, count: int) -> list[str]:
    """Keys with budgets, of one profile with a budget, of a tenant with a budget for the day."""
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as admin:
        limits = {"daily_limit_usd": "1000.00", "requests_per_minute": 1_000_000}
        (await admin.patch("/v1/tenant", json=limits)).raise_for_status()
        (await admin.put(f"/v1/profiles/{PROFILE}", json={"limit_usd": "1000.00"})).raise_for_status()
        terms = {"scopes": ["model"], "profile": PROFILE, "limit_usd": "100.00", "max_concurrent": 1000}
        made = [
            (await admin.post("/v1/keys", json={"name": f"user {number}", **terms})).raise_for_status().json()
            for number in range(count)
        ]
    return [each["secret"] for each in made]

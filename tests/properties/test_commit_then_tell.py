"""Property 31: what a rollback takes back was told to nobody; no event, no copy, no counter knows of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from db.redis.connection import RedisLink
from db.redis.quotas import RedisQuotas
from domain.completion import CompletionReply, CompletionRequest, Payer, Usage
from domain.errors import CallUnderway
from domain.gateway import Caller, QuotaCopy
from domain.ledger import AccountBalance, EventType
from gateway.door import CallTerms, Door
from gateway.tokens import TokenEstimates
from runtime.embedded import Addresses
from tests.db.purse import HeldClock, assert_whole, opened_ledger
from tests.db.stage import opened_postgres
from tests.gateway.paper import NothingLearned, OnePrice, a_chat, strict

REPLY_SECONDS = 30.0

#: what each row of a settlement is when it is written; the last one fails only when the transaction commits
PLACES = {
    "ledger_events": "INSERT",
    "ledger_journal": "INSERT",
    "ledger_holds": "UPDATE",
    "ledger_accounts": "UPDATE",
    "commit": "INSERT",
}
_FAULTS = """
CREATE TABLE forced_rollbacks (tenant_id text, place text);
GRANT SELECT ON forced_rollbacks TO assay_app;
CREATE FUNCTION force_rollback() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE written jsonb := to_jsonb(NEW);
BEGIN
    IF EXISTS (SELECT FROM forced_rollbacks f WHERE f.tenant_id = NEW.tenant_id AND f.place = TG_ARGV[0])
       AND (TG_ARGV[0] NOT IN ('ledger_events', 'ledger_holds', 'ledger_accounts')
            OR written ->> 'event_type' = 'commit' OR written ->> 'state' = 'committed'
            OR (written ->> 'spent_nanodollars')::bigint > (to_jsonb(OLD) ->> 'spent_nanodollars')::bigint)
    THEN RAISE EXCEPTION 'forced rollback at %', TG_ARGV[0];
    END IF;
    RETURN NULL;
END $$;
"""


@dataclass
class Upstream:
    """Models that use what the example says."""

    usage: Usage = Usage(1, 1)
    requests: list[str] = field(default_factory=list)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """A reply."""
        self.requests.append(request.key)
        return CompletionReply("Light is energy.", self.usage, request.model)


@dataclass
class World:
    """A door over a real ledger with copies in Redis, whose settlements can be forced to roll back."""

    clock: HeldClock
    postgres: Postgres
    ledger: PostgresLedger
    quotas: RedisQuotas
    told: list[AccountBalance]
    admin: psycopg.AsyncConnection[Any]
    upstream: Upstream = field(default_factory=Upstream)

    def door(self) -> Door:
        """A door."""
        return Door(
            self.upstream,
            self.ledger,
            OnePrice(),
            TokenEstimates(NothingLearned()),
            terms=lambda _: CallTerms(timeout_seconds=5, wait_seconds=REPLY_SECONDS),
            modes=strict,
        )

    async def force(self, tenant_id: str, place: str) -> None:
        """From now on the tenant's settlements fail there."""
        await self.admin.execute("INSERT INTO forced_rollbacks VALUES (%s, %s)", [tenant_id, place])

    async def relieve(self, tenant_id: str) -> None:
        """From now on they succeed."""
        await self.admin.execute("DELETE FROM forced_rollbacks WHERE tenant_id = %s", [tenant_id])

    async def spent(self, payer: Payer) -> dict[str, tuple[int, int, int]]:
        """Money, requests and tokens of each account, as Postgres has them."""
        return {each.account.subject: _counters(each) for each in await self.ledger.books.quota(payer)}

    async def copied(self, payer: Payer) -> dict[str, tuple[int, int, int]]:
        """The same, as Redis has them."""
        await self.quotas.flush()
        return {each.account.subject: _counters(each) for each in await self.quotas.read(payer)}

    async def records(self, tenant_id: str) -> list[str]:
        """The usage records: commits, and replies in the journal."""
        commits = await self.postgres.rows(
            "SELECT call_id::text FROM ledger_events WHERE tenant_id = %s AND event_type = 'commit'",
            [tenant_id],
        )
        replies = await self.postgres.rows(
            "SELECT call_id::text FROM ledger_journal WHERE tenant_id = %s", [tenant_id]
        )
        assert sorted(row["call_id"] for row in commits) == sorted(row["call_id"] for row in replies)
        return sorted(row["call_id"] for row in commits)


def _counters(each: AccountBalance | QuotaCopy) -> tuple[int, int, int]:
    return int(each.spent), each.requests, each.tokens


@asynccontextmanager
async def _faults(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as admin:
        await admin.execute(_FAULTS)
        for place, verb in PLACES.items():
            table = "ledger_journal" if place == "commit" else place
            kind, deferred = (
                ("CONSTRAINT ", "DEFERRABLE INITIALLY DEFERRED") if place == "commit" else ("", "")
            )
            await admin.execute(
                f"CREATE {kind}TRIGGER force_{place} AFTER {verb} ON {table} {deferred} "
                f"FOR EACH ROW EXECUTE FUNCTION force_rollback('{place}')".encode()
            )
        try:
            yield admin
        finally:
            await admin.execute("DROP FUNCTION force_rollback CASCADE")
            await admin.execute("DROP TABLE forced_rollbacks")


@pytest.fixture(scope="module")
async def world(session_database_url: str, addresses: Addresses) -> AsyncIterator[World]:
    clock, told = HeldClock(), list[AccountBalance]()
    link = RedisLink.to(addresses.redis_url, max_connections=20, timeout_seconds=5)
    async with (
        _faults(session_database_url) as admin,
        opened_postgres(session_database_url) as postgres,
        opened_ledger(session_database_url, clock, postgres) as ledger,
    ):
        quotas = RedisQuotas(link, ledger.books, clock)

        def tell(balances: Any) -> None:
            told.extend(balances)
            quotas.push(balances)

        ledger.writer.on_committed = tell
        yield World(clock, postgres, ledger, quotas, told, admin)
        await quotas.flush()
    await link.close()


@settings(max_examples=100)
@given(
    place=st.sampled_from(sorted(PLACES)),
    usages=st.lists(st.builds(Usage, st.integers(1, 5_000), st.integers(0, 5_000)), min_size=1, max_size=3),
    profile=st.sampled_from(["", "class"]),
)
async def test_a_rollback_of_a_settlement_is_known_to_nobody(
    world: World, place: str, usages: list[Usage], profile: str
) -> None:
    """
    **功能: assay, 属性 31: 提交后触发**
    **验证: 需求 O3**

    Wherever a settlement's transaction is rolled back, there is no usage record and no event of it, nothing
    was pushed, and balances and counters stand as before, in Postgres and in Redis; its repetition is paid once.
    """
    tenant_id, key_id = f"tenant-{uuid4().hex[:12]}", str(uuid4())
    caller = Caller(tenant_id, key_id, frozenset({"model"}), profile)
    payer, door = Payer(tenant_id, "", key_id, profile), world.door()
    for number, usage in enumerate(usages[1:]):
        world.upstream.usage = usage
        await door.complete(a_chat(f"before-{number}"), caller=caller)
    before, records = await world.spent(payer), await world.records(tenant_id)
    world.told.clear()

    await world.force(tenant_id, place)
    world.upstream.usage = usages[0]
    with pytest.raises(psycopg.errors.RaiseException, match="forced rollback"):
        await door.complete(a_chat("struck"), caller=caller)

    assert await world.records(tenant_id) == records
    assert await world.spent(payer) == before
    assert await world.copied(payer) == before
    # what was pushed is the hold's, which was committed on its own
    assert {each.account.subject: _counters(each) for each in world.told if each.held} == before
    assert all(each.held for each in world.told)
    await assert_events_of(world, tenant_id, len(usages), EventType.HOLD)

    await world.relieve(tenant_id)
    with pytest.raises(CallUnderway):
        await door.complete(a_chat("struck", refuse_underway=True), caller=caller)
    world.clock.pass_(REPLY_SECONDS + 1)
    reply = await door.complete(a_chat("struck"), caller=caller)
    assert len(await world.records(tenant_id)) == len(usages)
    after = await world.spent(payer)
    assert after[key_id] == (
        before[key_id][0] + reply.cost_nanodollars,
        len(usages),
        sum(each.tokens_in + each.tokens_out for each in usages),
    )
    assert await world.copied(payer) == after


async def assert_events_of(world: World, tenant_id: str, count: int, kind: EventType) -> None:
    """So many of the tenant's events are of that kind."""
    row = await world.postgres.row(
        "SELECT count(*) AS count FROM ledger_events WHERE tenant_id = %s AND event_type = %s",
        [tenant_id, kind.value],
    )
    assert row is not None
    assert row["count"] == count


async def test_the_books_are_whole_after_all_of_it(world: World) -> None:
    await assert_whole(world.ledger)

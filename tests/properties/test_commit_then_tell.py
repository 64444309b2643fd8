"""Property 31: what a rollback takes back was told to nobody; no event, no copy, no counter knows of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
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
from domain.errors import Defect
from domain.gateway import Caller, QuotaCopy
from domain.identity import ClientStep
from domain.ledger import AccountBalance
from gateway.door import CallTerms, Door
from gateway.tokens import TokenEstimates
from runtime.embedded import Addresses
from tests.db.purse import HeldClock, assert_whole, opened_ledger
from tests.db.stage import opened_postgres
from tests.gateway.paper import NothingLearned, OnePrice, a_chat, strict
from tests.properties.drawing import REQUIRED

REPLY_SECONDS = 30.0
#: cases that run side by side, through one writer
AT_ONCE = 10

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
    """Models that use what the call's id says."""

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """A reply."""
        assert isinstance(request.step, ClientStep)
        tokens_in, tokens_out = map(int, request.step.call_id.split("-")[1:])
        return CompletionReply("Light is energy.", Usage(tokens_in, tokens_out), request.model)


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


@dataclass
class Case:
    """The calls of one key: some that succeed, and one that is struck."""

    world: World
    place: str
    usages: Sequence[tuple[int, int]]
    caller: Caller
    before: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def payer(self) -> Payer:
        """Who pays."""
        return Payer(self.caller.tenant_id, "", self.caller.key_id, self.caller.profile)

    async def call(self, number: int, **changes: Any) -> CompletionReply:
        """One call."""
        tokens_in, tokens_out = self.usages[number]
        request = a_chat(f"{number}-{tokens_in}-{tokens_out}", **changes)
        return await self.world.door().complete(request, caller=self.caller)

    async def strike(self) -> None:
        """The settlement of the last call is rolled back, and nothing is known of it."""
        world, tenant_id = self.world, self.caller.tenant_id
        for number in range(len(self.usages) - 1):
            await self.call(number)
        self.before, records = await world.spent(self.payer), await world.records(tenant_id)
        told = len(world.told)
        await world.force(tenant_id, self.place)
        with pytest.raises(Defect, match="forced rollback"):
            await self.call(len(self.usages) - 1)
        assert await world.records(tenant_id) == records
        assert await world.spent(self.payer) == self.before
        assert await world.copied(self.payer) == self.before
        # what was pushed is the hold's, which was committed on its own
        pushed = [each for each in world.told[told:] if each.account.tenant_id == tenant_id]
        assert all(each.held for each in pushed)
        assert {each.account.subject: _counters(each) for each in pushed} == self.before

    async def repeat(self) -> None:
        """The last call again, which is paid for once."""
        world, last = self.world, len(self.usages) - 1
        await world.relieve(self.caller.tenant_id)
        reply = await self.call(last)
        assert len(await world.records(self.caller.tenant_id)) == len(self.usages)
        after = await world.spent(self.payer)
        tokens = sum(tokens_in + tokens_out for tokens_in, tokens_out in self.usages)
        spent = self.before[self.caller.key_id][0] + reply.cost_nanodollars
        assert after[self.caller.key_id] == (spent, len(self.usages), tokens)
        assert await world.copied(self.payer) == after


CASE = st.tuples(
    st.sampled_from(sorted(PLACES)),
    st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 5_000)), min_size=1, max_size=2),
    st.sampled_from(["", "class"]),
)


@settings(max_examples=REQUIRED // AT_ONCE)
@given(drawn=st.lists(CASE, min_size=AT_ONCE, max_size=AT_ONCE))
async def test_a_rollback_of_a_settlement_is_known_to_nobody(
    world: World, example: Callable[[], None], drawn: list[tuple[str, list[tuple[int, int]], str]]
) -> None:
    """
    **功能: assay, 属性 31: 提交后触发**
    **验证: 需求 O3**

    Wherever a settlement's transaction is rolled back, there is no usage record and no event of it, nothing
    was pushed, and balances and counters stand as before, in Postgres and in Redis. Its repetition is paid
    once. Several keys at once share the writer's transactions: one's rollback strikes no other's settlement.
    """
    cases = [
        Case(world, place, usages, Caller(f"tenant-{uuid4().hex[:12]}", str(uuid4()), frozenset(), profile))
        for place, usages, profile in drawn
    ]
    await asyncio.gather(*(case.strike() for case in cases))
    # what was sent and not answered is waited for, and then sent again
    world.clock.pass_(REPLY_SECONDS + 1)
    await asyncio.gather(*(case.repeat() for case in cases))
    for _ in cases:
        example()


async def test_the_books_are_whole_after_all_of_it(world: World) -> None:
    await assert_whole(world.ledger)

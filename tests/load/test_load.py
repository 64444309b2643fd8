"""Load over HTTP: afterwards Redis and Postgres agree, and every amount is exact (O1, O2, O3)."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import psycopg
import pytest

from domain.ledger import Scope
from runtime.settings import Settings
from runtime.simulated_upstream import Behaviour
from runtime.worker import reconciler
from tests.load.field import (
    COMMITS_SQL,
    MODEL,
    TOKENS_IN_NANODOLLARS,
    TOKENS_OUT_NANODOLLARS,
    Field,
    opened_field,
)
from tests.load.users import Answers, press


@pytest.fixture
async def stage(app_settings: Settings) -> AsyncIterator[Field]:
    """Ten keys of a tenant whose name no other test has."""
    async with opened_field(app_settings, f"load-{uuid4().hex[:12]}", keys=10) as opened:
        yield opened


@dataclass(frozen=True)
class Paid:
    """What the events say was used."""

    calls: int
    tokens_in: int
    tokens_out: int

    @property
    def nanodollars(self) -> int:
        """At the prices that were stated."""
        return self.tokens_in * TOKENS_IN_NANODOLLARS + self.tokens_out * TOKENS_OUT_NANODOLLARS

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.tokens_in + self.tokens_out


USED_SQL = """
SELECT count(*)::int AS calls, sum((usage ->> 'tokens_in')::bigint)::bigint AS tokens_in,
       sum((usage ->> 'tokens_out')::bigint)::bigint AS tokens_out
FROM ledger_events WHERE event_type = 'commit'
"""


async def assert_exact(stage: Field, answers: Answers) -> None:
    """Paid is what the upstream worked for; every account adds up, in Postgres and in Redis."""
    await stage.quiet()
    row = await stage.resources.postgres.row(USED_SQL)
    assert row
    paid = Paid(**row)
    assert paid.calls == stage.upstream.statistics.worked
    # each reply was worked for once; whoever left may have been answered all the same
    assert 0 <= paid.calls - (answers.replies - answers.repeated) <= answers.left + len(answers.refused)
    balances = await stage.agreeing()
    sums = {
        scope: (
            sum(int(each.spent) for each in balances if each.account.scope is scope),
            sum(each.requests for each in balances if each.account.scope is scope),
            sum(each.tokens for each in balances if each.account.scope is scope),
        )
        for scope in (Scope.API_KEY, Scope.PROFILE, Scope.TENANT_DAY)
    }
    assert set(sums.values()) == {(paid.nanodollars, paid.calls, paid.tokens)}
    assert not any(each.held for each in balances)
    assert (await stage.resources.ledger.books.verify())[1] == []


async def test_ten_users_leave_exact_books(stage: Field) -> None:
    answers = await press(stage, users=10, spawned_per_second=50, turns=6)
    assert answers.replies + answers.left + len(answers.refused) >= 60
    await assert_exact(stage, answers)


@pytest.mark.long
async def test_a_hundred_users_leave_exact_books(stage: Field) -> None:
    answers = await press(stage, users=100, spawned_per_second=10, seconds=60)
    assert answers.replies > 100
    await assert_exact(stage, answers)
    print(answers.replies, answers.repeated, answers.left, len(answers.refused))  # noqa: T201  # by hand


async def test_a_restored_old_redis_is_repaired_upward(stage: Field) -> None:
    await press(stage, users=3, spawned_per_second=100, turns=3)
    await stage.quiet()
    accounts = [each.account for each in await stage.agreeing()]
    await stage.snapshot(accounts)
    await press(stage, users=3, spawned_per_second=100, turns=3, seed=12)
    await stage.quiet()
    await stage.agreeing()
    await stage.restore(accounts)
    copies, balances = await stage.copies(accounts), await stage.balances()
    assert all(
        copy and copy.version < balance.version and copy.spent < balance.spent
        for copy, balance in zip(copies, balances, strict=True)
    )
    assert await reconciler(stage.resources).reconcile_all() >= len(accounts)
    assert [each.account for each in await stage.agreeing()] == accounts


FAIL_SQL = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.event_type = 'commit' THEN RAISE EXCEPTION 'forced'; END IF; RETURN NEW; END $$;
CREATE TRIGGER fail BEFORE INSERT ON ledger_events FOR EACH ROW EXECUTE FUNCTION fail();
"""


async def test_a_forced_rollback_leaves_no_usage_record_and_counters_as_before(
    stage: Field, database_url: str
) -> None:
    await press(stage, users=2, spawned_per_second=100, turns=2)
    await stage.quiet()
    before, commits = await stage.agreeing(), await stage.count(COMMITS_SQL)
    worked = stage.upstream.statistics.worked
    stage.upstream.behave(Behaviour())
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as owner:
        await owner.execute(FAIL_SQL)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 8}
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stage.keys[0]}"}) as client:
        reply = await client.post(f"{stage.url}/v1/chat/completions", json=asked)
    assert reply.status_code >= 500
    assert stage.upstream.statistics.worked == worked + 1
    assert await stage.count(COMMITS_SQL) == commits
    after = await stage.agreeing()
    for earlier, later in zip(before, after, strict=True):
        assert (later.spent, later.requests, later.tokens) == (
            earlier.spent,
            earlier.requests,
            earlier.tokens,
        )

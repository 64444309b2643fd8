"""Copies of balances: late, lost, old or wrong, they refuse nobody wrongly and are made right."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from prometheus_client import CollectorRegistry

from db.postgres.ledger import PostgresLedgerBooks
from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from db.postgres.quotas import PostgresQuotaAudit
from db.redis.connection import RedisLink
from db.redis.quotas import COPY_SECONDS, RedisQuotas, copy_key, copy_of
from domain.completion import Payer
from domain.errors import BudgetExhausted, PostgresUnavailable, RedisUnavailable
from domain.ledger import Account, AccountBalance, Scope, TenantBudget
from domain.money import Money
from gateway.figures import GatewayFigures
from runtime.embedded import ValkeyServer
from runtime.reconciling import QuotaReconciler
from runtime.resources import SystemClock, in_background
from tests.db.purse import HeldClock, a_call, a_payer, a_settlement, held, opened_ledger
from tests.db.stage import until


class CountingBooks(PostgresLedgerBooks):
    """The real books, which also count what they are asked, and may be away."""

    asked = days_asked = 0
    away = False

    async def today(self, tenant_id: str) -> date:
        self.days_asked += 1
        return await super().today(tenant_id)

    async def quota(self, payer: Payer) -> list[AccountBalance]:
        if self.away:
            raise PostgresUnavailable("away")
        self.asked += 1
        return await super().quota(payer)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def books(postgres: Postgres, clock: HeldClock) -> CountingBooks:
    return CountingBooks(postgres, clock)


@pytest.fixture
async def postgres(own_postgres: Postgres) -> Postgres:
    """A reconciler looks at every copy there is, so each test has a database of its own …"""
    return own_postgres


@pytest.fixture
async def redis(own_redis_url: str) -> AsyncIterator[RedisLink]:
    """… and a Redis of its own."""
    link = RedisLink.to(own_redis_url, max_connections=10, timeout_seconds=5)
    yield link
    await link.close()


@pytest.fixture
def figures() -> GatewayFigures:
    return GatewayFigures(CollectorRegistry())


@pytest.fixture
def quotas(redis: RedisLink, books: CountingBooks, clock: HeldClock, figures: GatewayFigures) -> RedisQuotas:
    return a_copier(redis, books, clock, figures)


def a_copier(
    redis: RedisLink, books: CountingBooks, clock: HeldClock, figures: GatewayFigures, limit: int = 1_000
) -> RedisQuotas:
    """As each process has one."""
    return RedisQuotas(
        redis, books, clock, waiting_limit=limit,
        synced=figures.synced, dropped=figures.dropped, raced=figures.warm_race,
    )  # fmt: skip


@pytest.fixture
async def ledger(
    database_url: str, postgres: Postgres, clock: HeldClock, quotas: RedisQuotas
) -> AsyncIterator[PostgresLedger]:
    """A ledger whose commits are copied."""
    options = {"on_committed": quotas.push}
    async with opened_ledger(database_url, clock, postgres, **options) as opened:
        yield opened


@pytest.fixture
def reconciler(
    quotas: RedisQuotas, books: CountingBooks, postgres: Postgres, figures: GatewayFigures
) -> QuotaReconciler:
    audit = PostgresQuotaAudit(postgres)
    return QuotaReconciler(quotas, books, audit, figures, SystemClock(), late_seconds=0.01)


def figure(figures: GatewayFigures, name: str) -> float:
    """What Prometheus would read."""
    return figures.registry.get_sample_value(name) or 0.0


def a_balance(account: Account, version: int, spent: int = 0, limit: int | None = None) -> AccountBalance:
    """A balance as the ledger tells it."""
    known = None if limit is None else Money(limit)
    return AccountBalance(account, known, Money(0), Money(spent), version, 30 * version, version)


def a_key(payer: Payer | None = None) -> Account:
    payer = payer or a_payer()
    return Account(payer.tenant_id, Scope.API_KEY, payer.api_key_id)


async def copied(quotas: RedisQuotas, *accounts: Account) -> list[int | None]:
    """The versions that are in Redis."""
    return [None if each is None else each.version for each in await quotas.copies(accounts)]


async def spend(ledger: PostgresLedger, payer: Payer, actual: int = 40) -> None:
    hold = await held(ledger, a_call(payer, 100))
    await ledger.settle(hold, a_settlement(actual))


# --- writing ---


async def test_after_a_commit_every_account_of_the_payer_is_copied(
    ledger: PostgresLedger, quotas: RedisQuotas, books: CountingBooks, figures: GatewayFigures
) -> None:
    payer = a_payer()
    async with in_background(quotas.run()):
        await spend(ledger, payer)
        right = [copy_of(each) for each in await books.quota(payer)]

        async def all_copied() -> bool:
            return list(await quotas.copies([each.account for each in right])) == right

        await until(all_copied)
    assert {(each.spent, each.held, each.requests, each.tokens) for each in right} == {(40, 0, 1, 30)}
    assert 0 <= figure(figures, "quota_sync_lag_ms") < 10_000


async def test_only_newer_versions_replace_older_ones_and_old_copies_vanish(
    quotas: RedisQuotas, redis: RedisLink
) -> None:
    key = a_key()
    for version in (3, 2, 5, 5, 4):
        await quotas.write([a_balance(key, version, spent=version)])
    (copy,) = await quotas.copies([key])
    assert copy is not None
    assert (copy.version, copy.spent, copy.limit, copy.requests) == (5, 5, None, 5)
    assert COPY_SECONDS - 10 < await redis.client.ttl(copy_key(key)) <= COPY_SECONDS
    # an older one replaces exactly the version that is known to be wrong
    assert await quotas.write([a_balance(key, 1)], {key: 4}) == 0
    assert await quotas.write([a_balance(key, 1, limit=7)], {key: 5}) == 1
    assert await copied(quotas, key) == [1]
    assert await quotas.write([]) == 0


async def test_a_hot_account_waits_as_its_newest_version_and_too_many_are_given_up(
    redis: RedisLink, books: CountingBooks, clock: HeldClock, figures: GatewayFigures
) -> None:
    quotas = a_copier(redis, books, clock, figures, limit=3)
    keys = [a_key() for _ in range(5)]
    for version in (1, 3, 2):
        quotas.push([a_balance(keys[0], version)])
    quotas.push([a_balance(each, 1) for each in keys[1:]])
    await quotas.flush()
    assert await copied(quotas, *keys) == [None, None, 1, 1, 1]
    assert figure(figures, "quota_copies_dropped_total") == 2
    quotas.push([a_balance(keys[0], each) for each in (1, 3, 2)])
    await quotas.close()
    assert await copied(quotas, keys[0]) == [3]


async def test_what_is_committed_while_redis_is_away_is_copied_when_it_is_back(
    valkey: ValkeyServer, own_link: RedisLink, books: CountingBooks, clock: HeldClock, figures: GatewayFigures
) -> None:
    quotas, key = a_copier(own_link, books, clock, figures), a_key()
    async with in_background(quotas.run()):
        await valkey.stop()
        for version in (1, 2):
            quotas.push([a_balance(key, version)])
            with pytest.raises(RedisUnavailable):
                await quotas.flush()
        await quotas.close()
        await valkey.start()

        async def newest() -> bool:
            return not own_link.degraded and await copied(quotas, key) == [2]

        await until(newest)


async def test_what_is_no_copy_is_a_missing_one(quotas: RedisQuotas, redis: RedisLink) -> None:
    text, half, other = a_key(), a_key(), a_key()
    await redis.client.set(copy_key(text), "not ours", ex=60)
    await redis.client.hset(copy_key(half), "spent", "much")
    assert await copied(quotas, text, half, other) == [None, None, None]
    quotas.push([a_balance(each, 1) for each in (text, half, other)])
    await quotas.flush()
    assert await copied(quotas, text, half, other) == [1, 1, 1]


async def test_a_full_redis_gets_no_copies_and_holds_nobody_up(
    own_link: RedisLink, books: CountingBooks, clock: HeldClock, figures: GatewayFigures
) -> None:
    quotas, payer = a_copier(own_link, books, clock, figures), a_payer()
    await own_link.client.config_set("maxmemory-policy", "noeviction")
    await own_link.client.config_set("maxmemory", "1")
    quotas.push([a_balance(a_key(payer), 1)])
    await quotas.flush()
    assert len(await quotas.read(payer)) == 4
    await quotas.check(payer)


# --- reading ---


async def test_a_hundred_readers_of_a_missing_copy_ask_postgres_once(
    quotas: RedisQuotas, books: CountingBooks, figures: GatewayFigures
) -> None:
    payer = a_payer()
    answers = await asyncio.gather(*(quotas.read(payer) for _ in range(100)))
    assert books.asked == 1
    assert all(each == answers[0] for each in answers)
    assert {each.account.scope for each in answers[0]} == set(Scope) - {Scope.CALL}
    assert books.days_asked == 1
    assert 0 < figure(figures, "cache_warm_race_count_total") <= 99
    # from now on Redis knows, also that nothing was ever spent
    assert await quotas.read(payer) == answers[0]
    assert books.asked == 1


async def test_processes_that_miss_at_once_leave_the_question_to_one(
    redis: RedisLink, books: CountingBooks, clock: HeldClock, figures: GatewayFigures
) -> None:
    several = [a_copier(redis, books, clock, figures) for _ in range(4)]
    payer = a_payer()
    answers = await asyncio.gather(*(each.read(payer) for each in several for _ in range(25)))
    assert books.asked == 1
    assert all(list(each) == list(answers[0]) for each in answers)
    assert not await redis.client.keys(f"*{payer.tenant_id}*warming*")


async def test_whoever_waits_for_another_process_in_vain_asks_for_itself(
    redis: RedisLink, quotas: RedisQuotas, books: CountingBooks
) -> None:
    payer = a_payer()
    claim = f"quota:{{{payer.tenant_id}}}:warming:{payer.api_key_id}:{payer.batch_id}:{payer.profile}"
    await redis.client.set(claim, "of one that was killed", px=60_000)
    assert len(await quotas.read(payer)) == 4
    assert books.asked == 1


async def test_a_reader_that_leaves_takes_the_answer_from_nobody(
    quotas: RedisQuotas, books: CountingBooks
) -> None:
    payer = a_payer()
    readers = [asyncio.create_task(quotas.read(payer)) for _ in range(3)]
    while not quotas._warming:
        await asyncio.sleep(0)
    readers[0].cancel()
    _, *others = await asyncio.gather(*readers, return_exceptions=True)
    assert [len(each) for each in others if isinstance(each, Sequence)] == [4, 4]
    assert books.asked == 1


async def test_the_copies_of_a_new_day_are_read_from_its_first_moment_on(
    quotas: RedisQuotas, books: CountingBooks, clock: HeldClock
) -> None:
    payer = a_payer()
    await books.set_tenant(payer.tenant_id, TenantBudget("Asia/Kathmandu"))

    async def day() -> str:
        (found,) = [each for each in await quotas.read(payer) if each.account.scope is Scope.TENANT_DAY]
        return found.account.subject

    clock.moment = datetime(2036, 3, 1, 18, 14, 59, tzinfo=UTC)
    assert await day() == date(2036, 3, 1).isoformat()
    clock.pass_(1)  # midnight in Kathmandu
    assert await day() == date(2036, 3, 2).isoformat()


# --- refusing ---


async def test_a_spent_limit_refuses_with_its_scope_once_postgres_says_so_too(
    ledger: PostgresLedger, quotas: RedisQuotas, books: CountingBooks
) -> None:
    payer = a_payer()
    await quotas.check(payer)
    await books.set_limit(a_key(payer), Money(100))
    await spend(ledger, payer, actual=140)
    await quotas.flush()
    asked = books.asked
    with pytest.raises(BudgetExhausted, match=payer.api_key_id) as refused:
        await quotas.check(payer)
    assert (refused.value.scope, refused.value.missing_nanodollars) == ("api_key", 40)
    assert not refused.value.may_pass
    assert books.asked == asked + 1


async def test_a_stale_copy_refuses_nobody_and_is_repaired_on_the_way(
    ledger: PostgresLedger, quotas: RedisQuotas, books: CountingBooks
) -> None:
    payer = a_payer()
    await books.set_limit(a_key(payer), Money(100))
    await spend(ledger, payer, actual=140)
    await quotas.flush()
    await books.set_limit(a_key(payer), Money(1_000))
    asked = books.asked
    await quotas.check(payer)
    await quotas.check(payer)
    assert books.asked == asked + 1, "the second one read a copy that is right"
    (copy,) = await quotas.copies([a_key(payer)])
    assert copy is not None
    assert copy.limit == 1_000


async def test_what_is_spent_to_the_last_nanodollar_is_the_holds_to_decide(
    ledger: PostgresLedger, quotas: RedisQuotas, books: CountingBooks
) -> None:
    payer = a_payer()
    await books.set_limit(a_key(payer), Money(100))
    await spend(ledger, payer, actual=100)
    await quotas.flush()
    await quotas.check(payer)
    await held(ledger, a_call(payer, 0))
    with pytest.raises(BudgetExhausted):
        await ledger.begin(a_call(payer, 1))


async def test_without_redis_or_postgres_the_hold_decides_alone(
    valkey: ValkeyServer, own_link: RedisLink, books: CountingBooks, clock: HeldClock, figures: GatewayFigures
) -> None:
    quotas, payer = a_copier(own_link, books, clock, figures), a_payer()
    await books.set_limit(a_key(payer), Money(100))
    (key,) = [each for each in await quotas.read(payer) if each.account == a_key(payer)]
    await quotas.write([a_balance(key.account, 99, spent=500, limit=100)])
    books.away = True
    await quotas.check(payer)
    await valkey.stop()
    await quotas.check(payer)
    books.away = False
    assert [each.limit for each in await quotas.read(payer) if each.account == a_key(payer)] == [100]


# --- repairing ---


async def test_a_lost_copy_is_made_again_and_an_old_one_replaced(
    ledger: PostgresLedger, quotas: RedisQuotas, redis: RedisLink, reconciler: QuotaReconciler,
    figures: GatewayFigures,
) -> None:  # fmt: skip
    payer = a_payer()
    await spend(ledger, payer)
    await quotas.flush()
    key = a_key(payer)
    old = await redis.client.get(copy_key(key))
    assert old is not None
    await spend(ledger, payer, actual=70)
    await quotas.flush()
    await reconciler.reconcile_all()
    await redis.client.delete(copy_key(key))
    assert await reconciler.reconcile_once() >= 1
    assert await copied(quotas, key) == [4]
    # an old snapshot of Redis is restored: nothing changes in Postgres, and nobody pushes
    await redis.client.set(copy_key(key), old)
    await reconciler.reconcile_all()
    assert await copied(quotas, key) == [4]
    assert figure(figures, "quota_redis_db_diff") == 70
    assert figure(figures, "quota_copies_repaired_total") >= 2


async def test_the_difference_that_was_found_is_told(
    ledger: PostgresLedger, quotas: RedisQuotas, redis: RedisLink, reconciler: QuotaReconciler,
    figures: GatewayFigures,
) -> None:  # fmt: skip
    payer = a_payer()
    await spend(ledger, payer)
    await quotas.flush()
    await reconciler.reconcile_all()
    right = await redis.client.get(copy_key(a_key(payer)))
    assert right == "2 - 0 40 1 30"
    await redis.client.set(copy_key(a_key(payer)), f"2 - 0 {40 + 987_654_321} 1 30")
    await reconciler.reconcile_once()
    assert figure(figures, "quota_redis_db_diff") == 987_654_321
    await reconciler.reconcile_once()
    assert figure(figures, "quota_redis_db_diff") == 0


async def test_copies_newer_than_a_restored_postgres_are_overwritten_by_it(
    ledger: PostgresLedger, quotas: RedisQuotas, books: CountingBooks, reconciler: QuotaReconciler
) -> None:
    payer, unknown = a_payer(), a_key()
    await spend(ledger, payer)
    ghosts = [replace(each, version=each.version + 7, spent=Money(999)) for each in await books.quota(payer)]
    await quotas.write([*ghosts, a_balance(unknown, 3, spent=5)])
    await reconciler.reconcile_all()
    right = await books.quota(payer)
    assert await quotas.copies([each.account for each in right]) == [copy_of(each) for each in right]
    # an account that Postgres does not know has spent nothing
    (copy,) = await quotas.copies([unknown])
    assert copy is not None
    assert (copy.version, copy.spent, copy.requests) == (0, 0, 0)


async def test_a_limit_that_was_set_reaches_the_copy_without_any_call(
    quotas: RedisQuotas, books: CountingBooks, reconciler: QuotaReconciler
) -> None:
    payer = a_payer()
    await quotas.read(payer)
    await books.set_limit(a_key(payer), Money(500))
    await reconciler.reconcile_once()
    (copy,) = await quotas.copies([a_key(payer)])
    assert copy is not None
    assert copy.limit == 500


async def test_a_copy_that_is_only_on_its_way_is_no_difference(
    ledger: PostgresLedger, quotas: RedisQuotas, postgres: Postgres, books: CountingBooks,
    figures: GatewayFigures,
) -> None:  # fmt: skip
    payer = a_payer()
    audit = PostgresQuotaAudit(postgres)
    reconciler = QuotaReconciler(quotas, books, audit, figures, SystemClock(), late_seconds=0.2)
    await spend(ledger, payer)
    await quotas.flush()
    await reconciler.reconcile_all()
    await spend(ledger, payer)
    reconciling = asyncio.create_task(reconciler.reconcile_once())
    await asyncio.sleep(0.1)
    await quotas.flush()
    await reconciling
    assert figure(figures, "quota_redis_db_diff") == 0


async def test_commits_without_hold_or_reply_are_counted(
    ledger: PostgresLedger, own_postgres: Postgres, quotas: RedisQuotas, database_url: str,
    figures: GatewayFigures,
) -> None:  # fmt: skip
    clock, audit = SystemClock(), PostgresQuotaAudit(own_postgres)
    async with opened_ledger(database_url, clock, own_postgres) as own:
        reconciler = QuotaReconciler(quotas, own.books, audit, figures, clock)
        payer = a_payer()
        for _ in range(3):
            await spend(own, payer)
        await reconciler.count_orphans()
        assert figure(figures, "billing_orphan_usage_record_count") == 0
        await own_postgres.run(
            "DELETE FROM ledger_journal WHERE call_id = (SELECT min(call_id::text)::uuid FROM ledger_holds)"
        )
        await own_postgres.run(
            "DELETE FROM ledger_holds WHERE call_id = (SELECT max(call_id::text)::uuid FROM ledger_holds)"
        )
        await reconciler.count_orphans()
        assert figure(figures, "billing_orphan_usage_record_count") == 2


async def test_the_reconciler_waits_for_absent_servers(
    valkey: ValkeyServer, own_link: RedisLink, books: CountingBooks, clock: HeldClock, postgres: Postgres,
    figures: GatewayFigures, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("runtime.reconciling.RECONCILE_SECONDS", 0.05)
    quotas, payer = a_copier(own_link, books, clock, figures), a_payer()
    audit = PostgresQuotaAudit(postgres)
    reconciler = QuotaReconciler(quotas, books, audit, figures, SystemClock(), late_seconds=0.01)
    await quotas.read(payer)
    await valkey.stop()
    async with in_background(reconciler.run()):
        await books.set_limit(a_key(payer), Money(321))
        await valkey.start()

        async def repaired() -> bool:
            if own_link.degraded:
                return False
            (copy,) = await quotas.copies([a_key(payer)])
            return copy is not None and copy.limit == 321

        await until(repaired)

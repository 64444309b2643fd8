"""Locks: one holder, in order of fences, whatever becomes of Redis; waiting ends, silent leases too."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from db.postgres.locks import PostgresAdvisoryLocks, PostgresFences, check_fence
from db.postgres.pool import Postgres
from db.redis.connection import RedisLink
from db.redis.locks import RedisLocks, lock_key
from domain.errors import LeaseLost, LockTimeout
from domain.locks import Lease, Locks
from runtime.embedded import Addresses, ValkeyServer
from tests.db.stage import until

ASSAY = Path(__file__).resolve().parents[2]
#: takes the lock, says its fence, and never gives it back
HOLDER = """
import asyncio, sys
from db.postgres.locks import PostgresAdvisoryLocks, PostgresFences
from db.postgres.pool import Postgres, open_pool
from db.redis.connection import RedisLink
from db.redis.locks import RedisLocks

async def main(postgres_url, redis_url, subject, lease_seconds):
    pool = open_pool(
        postgres_url, min_size=1, max_size=2, acquire_timeout_seconds=5, check_on_acquire=False,
        role="assay_app",
    )
    await pool.open()
    link = RedisLink.to(redis_url, max_connections=2, timeout_seconds=1)
    fences = PostgresFences(Postgres(pool))
    seconds = float(lease_seconds)
    advisory = PostgresAdvisoryLocks(postgres_url, fences, lease_seconds=seconds)
    locks = RedisLocks(link, fences, advisory, lease_seconds=seconds)
    async with locks.held("test", subject) as lease:
        print(lease.fence, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""
NOWHERE = "redis://127.0.0.1:1/0"


def locks_over(link: RedisLink, postgres: Postgres, url: str, lease_seconds: float = 30) -> RedisLocks:
    fences = PostgresFences(postgres)
    advisory = PostgresAdvisoryLocks(url, fences, lease_seconds=lease_seconds)
    return RedisLocks(link, fences, advisory, lease_seconds=lease_seconds)


@pytest.fixture
async def nowhere() -> AsyncIterator[RedisLink]:
    link = RedisLink.to(NOWHERE, max_connections=2, timeout_seconds=0.5)
    yield link
    await link.close()


@pytest.fixture(params=["redis", "postgres"])
def locks(
    request: pytest.FixtureRequest,
    redis: RedisLink,
    nowhere: RedisLink,
    postgres: Postgres,
    session_database_url: str,
) -> RedisLocks:
    """The same locks with Redis there and with Redis gone."""
    link = redis if request.param == "redis" else nowhere
    return locks_over(link, postgres, session_database_url)


async def in_time(locks: Locks, subject: str, wait_seconds: float = 10) -> Lease:
    """A lease as it was, taken and given back."""
    async with locks.held("test", subject, wait_seconds=wait_seconds) as lease:
        assert not lease.lost
    return lease


# --- one at a time ---


async def test_holders_follow_each_other_with_rising_fences(locks: RedisLocks, fresh: str) -> None:
    inside: list[int] = []
    fences: list[int] = []

    async def hold() -> None:
        async with locks.held("test", fresh, wait_seconds=20) as lease:
            inside.append(lease.fence)
            assert len(inside) == 1
            await asyncio.sleep(0.01)
            lease.check()
            fences.append(inside.pop())

    await asyncio.gather(*(hold() for _ in range(6)))
    assert fences == sorted(set(fences))


async def test_a_waiter_is_told_when_its_time_is_over(locks: RedisLocks, fresh: str) -> None:
    async with locks.held("test", fresh):
        with pytest.raises(LockTimeout, match=rf"test:{fresh} did not become free within 0\.3 s") as refused:
            await in_time(locks, fresh, wait_seconds=0.3)
        assert refused.value.retryable
        assert (await in_time(locks, f"{fresh}-other")).fence > 0
    assert await in_time(locks, fresh, wait_seconds=5)


async def test_a_waiter_that_is_cancelled_ends_and_leaves_nothing_behind(
    locks: RedisLocks, fresh: str
) -> None:
    async with locks.held("test", fresh):
        waiters = [asyncio.create_task(in_time(locks, fresh, wait_seconds=60)) for _ in range(40)]
        await asyncio.sleep(0.1)
        for waiter in waiters:
            waiter.cancel()
            # at many moments, that of the driver's answer among them
            await asyncio.sleep(0.002)
        _, pending = await asyncio.wait(waiters, timeout=10)
        assert not pending
        assert all(waiter.cancelled() for waiter in waiters)
    assert await in_time(locks, fresh, wait_seconds=5)


async def test_an_error_in_the_block_frees_the_lock_and_stays_what_it_is(
    locks: RedisLocks, fresh: str
) -> None:
    with pytest.raises(KeyError):
        async with locks.held("test", fresh) as lease:
            raise KeyError(fresh)
    assert lease.lost, "what is over is held no more"
    assert await in_time(locks, fresh, wait_seconds=5)


async def test_waiters_beyond_the_places_wait_within_their_own_time(
    postgres: Postgres, session_database_url: str, nowhere: RedisLink, fresh: str
) -> None:
    fences = PostgresFences(postgres)
    locks = RedisLocks(nowhere, fences, PostgresAdvisoryLocks(session_database_url, fences, at_once=1))
    async with locks.held("test", fresh):
        with pytest.raises(LockTimeout):
            await in_time(locks, f"{fresh}-other", wait_seconds=0.2)
    assert await in_time(locks, f"{fresh}-other")


# --- leases ---


@pytest.mark.parametrize("redis_there", [True, False], ids=["redis", "postgres"])
async def test_a_lease_is_renewed_for_as_long_as_it_is_held(
    redis: RedisLink,
    nowhere: RedisLink,
    postgres: Postgres,
    session_database_url: str,
    fresh: str,
    redis_there: bool,
) -> None:
    locks = locks_over(redis if redis_there else nowhere, postgres, session_database_url, lease_seconds=1.0)
    async with locks.held("test", fresh) as lease:
        with pytest.raises(LockTimeout):
            await in_time(locks, fresh, wait_seconds=1.5)
        lease.check()


async def test_a_lease_that_another_has_by_now_is_told_and_left_to_the_other(
    redis: RedisLink, postgres: Postgres, session_database_url: str, fresh: str
) -> None:
    locks = locks_over(redis, postgres, session_database_url, lease_seconds=0.3)
    key = lock_key(f"test:{fresh}")
    async with locks.held("test", fresh) as lease:
        await redis.client.set(key, "another's token", px=30_000)
        await until(lambda: _is(lease.lost))
        with pytest.raises(LeaseLost, match=fresh):
            lease.check()
    assert await redis.client.get(key) == "another's token", "only its owner releases it"
    await redis.client.delete(key)


async def test_redis_that_goes_away_ends_a_lease_that_it_does_not_renew(
    valkey: ValkeyServer, own_link: RedisLink, postgres: Postgres, session_database_url: str, fresh: str
) -> None:
    locks = locks_over(own_link, postgres, session_database_url, lease_seconds=0.5)
    async with locks.held("test", fresh) as first:
        await valkey.stop()
        # Postgres takes over at once; the first one's writes are refused from then on, and it will know
        async with locks.held("test", fresh, wait_seconds=5) as second:
            assert second.fence > first.fence
            await until(lambda: _is(first.lost))
            assert not second.lost


async def test_a_lock_in_postgres_is_freed_when_its_connection_is_cut(
    nowhere: RedisLink, postgres: Postgres, session_database_url: str, fresh: str
) -> None:
    locks = locks_over(nowhere, postgres, session_database_url, lease_seconds=0.3)
    async with locks.held("test", fresh) as lease:
        async with await psycopg.AsyncConnection.connect(session_database_url, autocommit=True) as admin:
            await admin.execute(
                "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
                "WHERE l.locktype = 'advisory' AND a.application_name = 'assay-lock' "
                "AND a.datname = current_database()"
            )
        assert (await in_time(locks, fresh, wait_seconds=5)).fence > lease.fence
        await until(lambda: _is(lease.lost))


@pytest.mark.parametrize("redis_there", [True, False], ids=["redis", "postgres"])
async def test_a_holder_that_is_frozen_or_killed_keeps_nobody_out_for_longer_than_a_lease(
    redis: RedisLink,
    nowhere: RedisLink,
    postgres: Postgres,
    session_database_url: str,
    addresses: Addresses,
    fresh: str,
    redis_there: bool,
) -> None:
    url = addresses.redis_url if redis_there else NOWHERE
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, session_database_url, url, fresh, "0.5",
        stdout=asyncio.subprocess.PIPE, cwd=ASSAY,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        fence = int(await holder.stdout.readline())
        locks = locks_over(redis if redis_there else nowhere, postgres, session_database_url)
        with pytest.raises(LockTimeout):
            await in_time(locks, fresh, wait_seconds=0.2)
        os.kill(holder.pid, signal.SIGSTOP)
        assert (await in_time(locks, fresh, wait_seconds=10)).fence > fence
    finally:
        holder.kill()
        await holder.wait()


# --- fences ---


async def test_a_write_with_an_older_fence_is_refused_before_the_newer_one_has_written(
    postgres: Postgres, fresh: str
) -> None:
    fences = PostgresFences(postgres)
    older, newer = await fences.claim(fresh), await fences.claim(fresh)
    async with postgres.transaction() as connection:
        await check_fence(connection, fresh, newer)
    for fence in (older, newer + 1):
        with pytest.raises(LeaseLost):
            async with postgres.transaction() as connection:
                await check_fence(connection, fresh, fence)


async def test_a_claim_waits_for_the_write_under_way(postgres: Postgres, fresh: str) -> None:
    fences = PostgresFences(postgres)
    first = await fences.claim(fresh)
    async with postgres.transaction() as connection:
        await check_fence(connection, fresh, first)
        claiming = asyncio.create_task(fences.claim(fresh))
        await asyncio.sleep(0.1)
        assert not claiming.done()
    assert await claiming > first


async def test_of_claims_at_once_the_greatest_is_the_newest(postgres: Postgres, fresh: str) -> None:
    fences = PostgresFences(postgres)
    claimed = await asyncio.gather(*(fences.claim(fresh) for _ in range(60)))
    assert len(set(claimed)) == len(claimed)
    async with postgres.transaction() as connection:
        await check_fence(connection, fresh, max(claimed))


async def test_a_fence_never_goes_back_though_its_row_was_pruned(own_postgres: Postgres, fresh: str) -> None:
    fences = PostgresFences(own_postgres)
    first = await fences.claim(fresh)
    assert await fences.prune() == 0
    await own_postgres.run("UPDATE lock_fences SET claimed_at = now() - interval '8 days'")
    assert await fences.prune() == 1
    with pytest.raises(LeaseLost):
        async with own_postgres.transaction() as connection:
            await check_fence(connection, fresh, first)
    assert await fences.claim(fresh) > first


async def _is(condition: bool) -> bool:
    return condition

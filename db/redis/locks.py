"""Locks in Redis under `lock:{type}:{id}`, and in Postgres for as long as Redis is gone (G3.4, G6.3)."""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from db.postgres.locks import PostgresAdvisoryLocks, PostgresFences, stopped
from db.redis.connection import GONE_OR_REFUSED, RedisLink
from domain.errors import LockTimeout
from domain.locks import LEASE_SECONDS, WAIT_SECONDS, Lease, lock_name

#: how often a waiter looks, on average; leases are rare and long
_LOOK_SECONDS = 0.1

EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


def lock_key(name: str) -> str:
    """Where the token of a lock's owner is."""
    return f"lock:{name}"


class RedisLocks:
    """Leases by owner token; the port `Locks`.

    Redis says who waits, Postgres whose write counts: every lease has a fence from there, taken after the lock
    and before its last renewal, so that the order of fences is the order of holders.
    """

    def __init__(
        self,
        link: RedisLink,
        fences: PostgresFences,
        without_redis: PostgresAdvisoryLocks,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._link = link
        self._fences = fences
        self._without_redis = without_redis
        self._lease_seconds = lease_seconds
        self._extend_script = link.client.register_script(EXTEND)
        self._release_script = link.client.register_script(RELEASE)

    @asynccontextmanager
    async def held(
        self, kind: str, subject_id: str, *, wait_seconds: float = WAIT_SECONDS
    ) -> AsyncIterator[Lease]:
        """Hold the lock for the block; raises `LockTimeout` when it does not become free in time."""
        name = lock_name(kind, subject_id)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(wait_seconds):
                    lease = await self._take(stack, name)
            except TimeoutError as error:
                raise LockTimeout(
                    f"The lock {name} did not become free within {wait_seconds:g} s; try again.", field=name
                ) from error
            try:
                yield lease
            finally:
                lease.end()

    async def _take(self, stack: AsyncExitStack, name: str) -> Lease:
        try:
            return await stack.enter_async_context(self._in_redis(name))
        except GONE_OR_REFUSED:
            return await stack.enter_async_context(self._without_redis.held(name))

    @asynccontextmanager
    async def _in_redis(self, name: str) -> AsyncIterator[Lease]:
        token = secrets.token_hex(16)
        renewing: asyncio.Task[None] | None = None
        try:
            lease = await self._wait(name, token)
            renewing = asyncio.create_task(self._renew(lease, token))
            yield lease
        finally:
            if renewing is not None:
                await stopped(renewing)
            # also after a cancellation: the token may be there although nobody heard the answer
            await asyncio.shield(self._release(name, token))

    async def _wait(self, name: str, token: str) -> Lease:
        cancellations = _cancellations()
        while True:
            lease = Lease(name, self._lease_seconds)
            taken = await self._set(name, token)
            if taken:
                lease.fence = await self._fences.claim(name)
                # a lock that was lost during the claim could have a fence beyond its successor's
                taken = await self._extend(lease, token)
            # until Python 3.12 `asyncio.wait_for`, which the driver uses, may lose one, a time-out's too
            if _cancellations() > cancellations:
                raise asyncio.CancelledError
            if taken:
                return lease
            await asyncio.sleep(random.uniform(0.5, 1.5) * _LOOK_SECONDS)  # noqa: S311  # spreads waiters, no secret

    async def _set(self, name: str, token: str) -> bool:
        with self._link.use() as client:
            return bool(await client.set(lock_key(name), token, nx=True, px=self._milliseconds))

    async def _extend(self, lease: Lease, token: str) -> bool:
        asked = time.monotonic()
        with self._link.use() as client:
            extended = bool(
                await self._extend_script([lock_key(lease.name)], [token, self._milliseconds], client)
            )
        if extended:
            lease.extend(asked)
        return extended

    async def _renew(self, lease: Lease, token: str) -> None:
        """Renew until it is lost: taken, forgotten by Redis, or not renewed within its time."""
        pause_seconds = self._lease_seconds / 3
        while not lease.lost:
            await asyncio.sleep(pause_seconds)
            try:
                if not await self._extend(lease, token):
                    lease.end()
                pause_seconds = self._lease_seconds / 3
            except GONE_OR_REFUSED:
                pause_seconds = self._lease_seconds / 10

    async def _release(self, name: str, token: str) -> None:
        # what Redis does not hear of ends with its lease
        with suppress(*GONE_OR_REFUSED), self._link.use() as client:
            await self._release_script([lock_key(name)], [token], client)

    @property
    def _milliseconds(self) -> int:
        return max(1, round(self._lease_seconds * 1000))


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()

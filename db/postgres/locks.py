"""Fences, which Postgres alone gives out, and locks for as long as Redis is gone.

A fence comes from one sequence for all names, so that none ever goes back, whatever Redis forgets and whichever
rows are pruned. The newest fence of a name stands in a row: a write takes its row first, and so either comes
before the next holder's fence or is refused.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from db.postgres.pool import APPLICATION_ROLE, Connection, Postgres, translated_errors
from domain.errors import Defect, LeaseLost
from domain.locks import LEASE_SECONDS, Lease

#: connections of one process that hold such a lock or wait for it
_AT_ONCE = 10
#: a fence of that age is nobody's any more, and a write that still has it is refused
_KEPT_DAYS = 7

CLAIM_SQL = """
INSERT INTO lock_fences (name, fence) VALUES (%s, nextval('lock_fence_numbers'))
ON CONFLICT (name) DO UPDATE SET fence = nextval('lock_fence_numbers'), claimed_at = now()
RETURNING fence
"""
# waits for a claim under way, and keeps the next one waiting until this transaction ends
NEWEST_SQL = "SELECT fence FROM lock_fences WHERE name = %s FOR SHARE"
PRUNE_SQL = f"DELETE FROM lock_fences WHERE claimed_at < now() - interval '{_KEPT_DAYS} days'"
# from then on the server ends a session that says nothing for a lease, and so frees its lock
LOCK_SQL = """
SELECT pg_advisory_lock(hashtextextended('lock:' || %s, 0)), set_config('idle_session_timeout', %s, false)
"""


async def check_fence(connection: Connection, name: str, fence: int) -> None:
    """Raise `LeaseLost` unless it is the newest; call it in the transaction of the write that it guards."""
    row = await (await connection.execute(NEWEST_SQL, [name])).fetchone()
    if row is None or row["fence"] != fence:
        raise LeaseLost(f"The lock {name} has another holder by now; begin again.", field=name)


class PostgresFences:
    """Numbers the holders of each lock."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def claim(self, name: str) -> int:
        """The next number; from now on every write with an older one is refused."""
        row = await self._postgres.row(CLAIM_SQL, [name])
        if row is None:
            raise Defect(f"Postgres gave no fence for {name}.")
        fence: int = row["fence"]
        return fence

    async def prune(self) -> int:
        """Forget the fences of locks that nobody has held for days; answers how many."""
        return await self._postgres.run(PRUNE_SQL)


class PostgresAdvisoryLocks:
    """Locks on connections of their own: the server frees one whose holder dies, or is silent for a lease."""

    def __init__(
        self,
        url: str,
        fences: PostgresFences,
        *,
        lease_seconds: float = LEASE_SECONDS,
        at_once: int = _AT_ONCE,
    ) -> None:
        self._url = url
        self._fences = fences
        self._lease_seconds = lease_seconds
        self._places = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[Lease]:
        """Hold the lock for the block; waits without end, so the caller sets a time."""
        async with self._places:
            while True:
                async with self._session(name) as lease:
                    # where the claim took longer than a lease, another may have it by now
                    if not lease.lost:
                        yield lease
                        return

    @asynccontextmanager
    async def _session(self, name: str) -> AsyncIterator[Lease]:
        with translated_errors():
            connection = await self._connect()
        renewing: asyncio.Task[None] | None = None
        try:
            with translated_errors():
                await connection.execute(LOCK_SQL, [name, str(max(1, round(self._lease_seconds * 1000)))])
            lease = Lease(name, self._lease_seconds)
            try:
                # counted from before the server's own count began
                await _renewed(connection, lease)
            except psycopg.OperationalError:
                # this process stood still for a whole lease: the server has freed the lock, which is taken again
                lease.end()
            renewing = asyncio.create_task(self._renew(connection, lease))
            lease.fence = await self._fences.claim(name)
            yield lease
        finally:
            if renewing is not None:
                await stopped(renewing)
            await connection.close()

    async def _connect(self) -> AsyncConnection[dict[str, object]]:
        return await AsyncConnection.connect(
            self._url,
            autocommit=True,
            row_factory=dict_row,
            application_name="assay-lock",
            connect_timeout=5,
            options=f"-c role={APPLICATION_ROLE}",
        )

    async def _renew(self, connection: AsyncConnection[dict[str, object]], lease: Lease) -> None:
        with suppress(psycopg.Error):
            while not lease.lost:
                await asyncio.sleep(self._lease_seconds / 3)
                await _renewed(connection, lease)
        lease.end()


async def _renewed(connection: AsyncConnection[dict[str, object]], lease: Lease) -> None:
    asked = time.monotonic()
    await connection.execute("SELECT 1")
    lease.extend(asked)


async def stopped(renewing: "asyncio.Task[None]") -> None:
    """Cancel the task and wait until it has ended."""
    # again and again: until Python 3.12 `asyncio.wait_for`, which the drivers use, may lose a cancellation
    while not renewing.done():
        renewing.cancel()
        await asyncio.wait([renewing], timeout=0.5)

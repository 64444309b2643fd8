"""The relay: numbers the outbox's events, one batch's without gaps, and publishes them.

One relay at a time, by advisory lock; whoever gets it works, the others stand by. It numbers the rows
whose number is null, never those after the last id: ids are taken in one order and committed in another.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from db.postgres.batches import event_of
from db.postgres.pool import Postgres
from domain.batch import ProgressEvent
from domain.errors import Unavailable

_ADVISORY_LOCK = 0x0A55A8
_POLL_SECONDS = 0.25
_AT_ONCE = 1_000

NUMBER_SQL = f"""
WITH fresh AS (
    SELECT id, batch_id, row_number() OVER (PARTITION BY batch_id ORDER BY id) AS place
    FROM (SELECT id, batch_id FROM progress_events WHERE number IS NULL ORDER BY id LIMIT {_AT_ONCE}) waiting
), latest AS (
    SELECT b.batch_id, coalesce((SELECT max(number) FROM progress_events p WHERE p.batch_id = b.batch_id), 0) AS number
    FROM (SELECT DISTINCT batch_id FROM fresh) b
)
UPDATE progress_events e SET number = latest.number + fresh.place
FROM fresh JOIN latest USING (batch_id)
WHERE e.id = fresh.id
RETURNING e.event_id, e.event_type, e.batch_id, e.number, e.occurred_at, e.file_id, e.data
"""
TRY_LOCK_SQL = "SELECT pg_try_advisory_xact_lock(%s) AS held"


class Publisher(Protocol):
    """Where numbered events are published; an absent Redis is no error."""

    async def publish(self, events: Sequence[ProgressEvent]) -> None:
        """Publish the events in order."""
        ...

    async def wait_for_ring(self, timeout_seconds: float) -> None:
        """Wait until the bell rings or the time is over."""
        ...


class OutboxRelay:
    """Numbers and publishes until cancelled."""

    def __init__(self, postgres: Postgres, publisher: Publisher) -> None:
        self._postgres = postgres
        self._publisher = publisher
        self._log = structlog.get_logger("assay.relay")

    async def run(self) -> None:
        """Relay for ever; an absent Postgres is waited for."""
        while True:
            try:
                moved = await self.relay_once()
            except Unavailable as error:
                self._log.warning("relay_waits", code=error.code, reason=error.message)
                await asyncio.sleep(1)
                continue
            if moved < _AT_ONCE:
                await self._publisher.wait_for_ring(_POLL_SECONDS)

    async def relay_once(self) -> int:
        """Number and publish what waits now; 0 also where another relay is at work."""
        async with self._postgres.transaction() as connection:
            cursor = await connection.execute(TRY_LOCK_SQL, [_ADVISORY_LOCK])
            row = await cursor.fetchone()
            if row is None or not row["held"]:
                return 0
            cursor = await connection.execute(NUMBER_SQL)
            events = [event_of(each) for each in await cursor.fetchall()]
        # published after the commit: nobody hears of an event that is not there
        await self._publisher.publish(sorted(events, key=lambda event: (event.batch_id, event.number)))
        return len(events)

"""Events from outside: stored once by their id, taken for delivery in order, settled once."""

from collections.abc import Collection
from datetime import UTC
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from db.postgres.pool import Connection, Postgres
from domain.batch import Pause
from domain.errors import IdempotencyMismatch, LimitExceeded, NotFound
from domain.external_events import (
    MAX_EVENTS,
    MAX_STATE_DATA_BYTES,
    DeliveryState,
    ExternalEvent,
    HeardEvent,
    News,
    StoredEvent,
)
from domain.identity import WorkflowRef
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState

#: what has been delivered, or never will be, is kept so long
_KEPT_DAYS = 30

# a workflow of a generation to come is nobody's yet
FIND_SQL = """
SELECT 1 FROM batches b
WHERE b.id = %(batch_id)s AND b.tenant_id = %(tenant_id)s AND b.generation >= %(generation)s
  AND (b.kind = 'diagnosis' OR NOT %(diagnosis)s)
  AND (%(file_id)s::uuid IS NULL
       OR EXISTS (SELECT FROM files f WHERE f.id = %(file_id)s AND f.batch_id = b.id))
"""
STORE_SQL = f"""
INSERT INTO external_events
    (tenant_id, batch_id, file_id, generation, workflow_id, event_id, type, data, trace_id)
SELECT %(tenant_id)s, %(batch_id)s::uuid, %(file_id)s::uuid, %(generation)s, %(workflow_id)s, %(event_id)s, %(type)s,
       %(data)s, %(trace_id)s
WHERE (SELECT count(*) FROM external_events WHERE workflow_id = %(workflow_id)s) < {MAX_EVENTS}
ON CONFLICT (workflow_id, event_id) DO NOTHING
RETURNING *
"""
READ_SQL = """
SELECT *, (type, data) = (%(type)s, %(data)s) AS same FROM external_events
WHERE workflow_id = %(workflow_id)s AND event_id = %(event_id)s
"""
LIST_SQL = """
SELECT *, count(*) OVER () AS total FROM external_events
WHERE workflow_id = %s ORDER BY id DESC LIMIT %s OFFSET %s
"""
COUNT_SQL = "SELECT count(*) AS total FROM external_events WHERE workflow_id = %s"
# of each workflow the oldest: the others come when it is settled. Whoever takes an event has it alone for a time.
TAKE_SQL = """
WITH due AS (
    SELECT id FROM external_events e
    WHERE state = 'stored' AND due_at <= now()
      AND NOT EXISTS (SELECT FROM external_events f
                      WHERE f.workflow_id = e.workflow_id AND f.state = 'stored' AND f.id < e.id)
    ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
)
UPDATE external_events e SET attempts = attempts + 1, due_at = now() + %s * interval '1 second'
FROM due WHERE e.id = due.id
RETURNING e.*
"""
SETTLE_SQL = """
UPDATE external_events SET state = %s, reason = %s, settled_at = now() WHERE id = %s AND state = 'stored'
"""
POSTPONE_SQL = """
UPDATE external_events SET reason = %s, due_at = now() + %s * interval '1 second' WHERE id = %s AND state = 'stored'
"""
# each generation has its workflow: one that has ended, or that a newer one has followed, never comes back
ENDED_SQL = """
SELECT CASE WHEN e.file_id IS NULL THEN b.generation > e.generation OR b.status = ANY(%s)
            ELSE f.generation > e.generation OR f.state = ANY(%s) END AS ended
FROM external_events e JOIN batches b ON b.id = e.batch_id LEFT JOIN files f ON f.id = e.file_id
WHERE e.id = %s
"""
# one read for everything, as an agent makes it before each of its steps; data as text, of which nothing is believed
NEWS_SQL = f"""
SELECT b.status, b.resumptions, b.limit_nanodollars, b.paused_scope, b.missing_nanodollars, b.updated_at,
       (SELECT jsonb_agg(jsonb_build_array(e.event_id, e.type, e.received_at,
                                           CASE WHEN octet_length(e.data::text) <= {MAX_STATE_DATA_BYTES}
                                                THEN e.data::text END) ORDER BY e.id)
        FROM external_events e
        WHERE e.workflow_id = %(workflow_id)s AND e.state <> 'undeliverable' AND e.event_id <> ALL(%(heard)s)) AS events
FROM batches b WHERE b.id = %(batch_id)s
"""
PRUNE_SQL = f"DELETE FROM external_events WHERE settled_at < now() - interval '{_KEPT_DAYS} days'"


class PostgresOutside:
    """What an agent hears of between two steps; the port `Outside`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def news(self, workflow: WorkflowRef, heard: Collection[str]) -> News | None:
        """How the batch stands, with the workflow's events but for those ids; `None` for one that is gone."""
        row = await self._postgres.row(
            NEWS_SQL, {"batch_id": workflow.batch_id, "workflow_id": str(workflow), "heard": list(heard)}
        )
        if row is None:
            return None
        state = BatchState(row["status"])
        pause = Pause(row["paused_scope"] or "", row["missing_nanodollars"] or 0)
        return News(
            batch_state=state,
            resumptions=row["resumptions"],
            limit_nanodollars=row["limit_nanodollars"],
            changed_at=row["updated_at"].astimezone(UTC).isoformat(),
            pause=pause if state is BatchState.PAUSED else None,
            events=tuple(
                HeardEvent(event_id, type_, data, received_at)
                for event_id, type_, received_at, data in row["events"] or ()
            ),
        )


class PostgresExternalEvents:
    """Events from outside; the port `ExternalEvents`, and what delivers them."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def store(
        self, tenant_id: str, workflow: WorkflowRef, event: ExternalEvent, trace_id: str
    ) -> tuple[StoredEvent, bool]:
        """The event, and whether it is new; a repetition is answered as it is.

        Raises `IdempotencyMismatch` for another event under the same id, `LimitExceeded` for too many, and
        `NotFound` for a workflow that is not the tenant's.
        """
        values = _values(tenant_id, workflow, event) | {"trace_id": trace_id}
        async with self._postgres.transaction() as connection:
            await _check_there(connection, tenant_id, workflow)
            stored = await (await connection.execute(STORE_SQL, values)).fetchone()
            if stored is not None:
                return _stored(stored), True
            found = await (await connection.execute(READ_SQL, values)).fetchone()
        if found is None:
            raise LimitExceeded(f"{workflow} has its {MAX_EVENTS:,} events already.", field="workflow_id")
        if not found["same"]:
            raise IdempotencyMismatch(
                f"event_id: {event.event_id} was another event of {workflow}; give this one an id of its own.",
                field="event_id",
            )
        return _stored(found), False

    async def list_of_workflow(
        self, tenant_id: str, workflow: WorkflowRef, page: int, page_size: int
    ) -> tuple[list[StoredEvent], int]:
        """One page of events, newest first, and how many there are; raises `NotFound`."""
        async with self._postgres.connection() as connection:
            await _check_there(connection, tenant_id, workflow)
            listed = await connection.execute(LIST_SQL, [str(workflow), page_size, (page - 1) * page_size])
            if rows := await listed.fetchall():
                return [_stored(row) for row in rows], rows[0]["total"]
            counted = await (await connection.execute(COUNT_SQL, [str(workflow)])).fetchone()
        return [], counted["total"] if counted else 0

    async def take(self, at_most: int, *, for_seconds: float) -> list[StoredEvent]:
        """Events that are due, each workflow's oldest; nobody else gets them within that time."""
        return [_stored(row) for row in await self._postgres.rows(TAKE_SQL, [at_most, for_seconds])]

    async def settle(self, event: StoredEvent, state: DeliveryState, reason: str = "") -> None:
        """It was delivered, or never will be."""
        await self._postgres.run(SETTLE_SQL, [state, reason, event.id])

    async def postpone(self, event: StoredEvent, reason: str, *, for_seconds: float) -> None:
        """It is due again after that time."""
        await self._postgres.run(POSTPONE_SQL, [reason, for_seconds, event.id])

    async def has_ended(self, event: StoredEvent) -> bool:
        """Whether what its workflow was to do is done, so that no run of it will come."""
        finals = [list(BATCH_MACHINE.final), list(FILE_MACHINE.final)]
        row = await self._postgres.row(ENDED_SQL, [*finals, event.id])
        return row is None or bool(row["ended"])

    async def prune(self) -> int:
        """Delete what was settled long ago; answers how many."""
        return await self._postgres.run(PRUNE_SQL)


async def _check_there(connection: Connection, tenant_id: str, workflow: WorkflowRef) -> None:
    found = await connection.execute(FIND_SQL, vars(workflow) | {"tenant_id": tenant_id})
    if await found.fetchone() is None:
        raise NotFound(f"There is no workflow {workflow}.", field="workflow_id")


def _values(tenant_id: str, workflow: WorkflowRef, event: ExternalEvent) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        **vars(workflow),
        "workflow_id": str(workflow),
        "event_id": event.event_id,
        "type": event.type,
        "data": Jsonb(event.data),
    }


def _stored(row: DictRow) -> StoredEvent:
    return StoredEvent(
        id=row["id"],
        workflow_id=row["workflow_id"],
        event=ExternalEvent(row["event_id"], row["type"], row["data"]),
        state=DeliveryState(row["state"]),
        reason=row["reason"],
        attempts=row["attempts"],
        received_at=row["received_at"],
        settled_at=row["settled_at"],
        trace_id=row["trace_id"],
    )

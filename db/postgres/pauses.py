"""Pauses for want of money: the row of the batch decides every race (B5.4)."""

from psycopg.rows import DictRow

from db.postgres.batches import BATCH_COLUMNS, batch_of, lock_batch, lock_batch_of, move_batch
from db.postgres.pool import Connection, Postgres
from domain.batch import Batch, Pause
from domain.errors import EpochSuperseded, IllegalTransition
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState, FileState

PAUSE_BATCH_SQL = """
UPDATE batches SET paused_from = %s, paused_scope = %s, missing_nanodollars = %s WHERE id = %s
"""
PAUSE_FILE_SQL = """
WITH before AS (
    SELECT id, batch_id, state FROM files
    WHERE id = %(file_id)s AND generation = %(generation)s AND state = ANY(%(origins)s) FOR UPDATE
), moved AS (
    UPDATE files SET state = 'paused', updated_at = now() FROM before WHERE files.id = before.id
)
INSERT INTO progress_events (batch_id, file_id, event_type, data)
SELECT batch_id, id, 'StatusChanged', jsonb_build_object(
    'machine', 'file', 'from', state, 'to', 'paused', 'scope', %(scope)s::text,
    'missing_nanodollars', %(missing_nanodollars)s::bigint) FROM before
"""
PAUSED_FROM_SQL = "SELECT paused_from FROM batches WHERE id = %s"
RESUME_SQL = """
UPDATE batches SET resumptions = resumptions + 1, paused_from = NULL, paused_scope = NULL,
                   missing_nanodollars = NULL, updated_at = now()
WHERE id = %s RETURNING resumptions
"""
SET_LIMIT_SQL = "UPDATE batches SET limit_nanodollars = %s, updated_at = now() WHERE id = %s"
TOLD_SQL = "UPDATE batches SET resumptions_told = greatest(resumptions_told, %s) WHERE id = %s"
UNTOLD_SQL = f"""
SELECT {BATCH_COLUMNS} FROM batches WHERE resumptions_told < resumptions AND NOT status = ANY(%s)
ORDER BY updated_at LIMIT 1000
"""

_FINAL_BATCH = sorted(BATCH_MACHINE.final)


class PostgresPauses:
    """Pauses and resumptions, each one transaction that locks the batch first."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def pause(self, batch_id: str, file_id: str, generation: int, pause: Pause) -> int:
        """Pause the file and its batch, unless the batch has been resumed since; how often that was."""
        async with self._postgres.transaction() as connection:
            batch = await _lock_generation(connection, batch_id, generation)
            if batch.resumptions > pause.resumptions:
                return batch.resumptions
            await _pause_batch(connection, batch, pause)
            amounts = {"scope": pause.scope, "missing_nanodollars": pause.missing_nanodollars}
            origins = FILE_MACHINE.origins_of(FileState.PAUSED)
            await connection.execute(
                PAUSE_FILE_SQL, {"file_id": file_id, "generation": generation, "origins": origins, **amounts}
            )
            return batch.resumptions

    async def pause_batch(self, batch_id: str, generation: int, pause: Pause) -> int:
        """Pause the batch as a whole, unless it has been resumed since; how often that was."""
        async with self._postgres.transaction() as connection:
            batch = await _lock_generation(connection, batch_id, generation)
            if batch.resumptions <= pause.resumptions:
                await _pause_batch(connection, batch, pause)
            return batch.resumptions

    async def resume(self, tenant_id: str, batch_id: str) -> int | None:
        """Return a paused batch to the state that it came from; how often it has been resumed.

        `None` where it is not paused.
        """
        async with self._postgres.transaction() as connection:
            batch = await lock_batch_of(connection, tenant_id, batch_id)
            return await _resume(connection, batch)

    async def set_limit(self, tenant_id: str, batch_id: str, limit_nanodollars: int | None) -> int | None:
        """Set the batch's limit and, where it is paused, resume it: one transaction; as `resume`."""
        async with self._postgres.transaction() as connection:
            batch = await lock_batch_of(connection, tenant_id, batch_id)
            if batch.state in BATCH_MACHINE.final:
                raise IllegalTransition(f"The batch is {batch.state}: its limit means nothing any more.")
            await connection.execute(SET_LIMIT_SQL, [limit_nanodollars, batch_id])
            return await _resume(connection, batch)

    async def note_resumed(self, batch_id: str, resumptions: int) -> None:
        """The workflow knows of that many resumptions."""
        async with self._postgres.transaction() as connection:
            await connection.execute(TOLD_SQL, [resumptions, batch_id])

    async def untold(self) -> list[Batch]:
        """Batches whose workflow has not said that it heard of their last resumption."""
        return [batch_of(row) for row in await self._postgres.rows(UNTOLD_SQL, [_FINAL_BATCH])]


async def _lock_generation(connection: Connection, batch_id: str, generation: int) -> Batch:
    batch = await lock_batch(connection, batch_id)
    if batch.generation != generation:
        raise EpochSuperseded(f"Generation {generation} of batch {batch_id} is over.")
    return batch


async def _pause_batch(connection: Connection, batch: Batch, pause: Pause) -> None:
    # the files that were in a call when the first one was refused follow it; the batch is paused already
    if batch.state is BatchState.PAUSED or not BATCH_MACHINE.allows(batch.state, BatchState.PAUSED):
        return
    await connection.execute(PAUSE_BATCH_SQL, [batch.state, pause.scope, pause.missing_nanodollars, batch.id])
    await move_batch(
        connection,
        batch,
        BatchState.PAUSED,
        scope=pause.scope,
        missing_nanodollars=pause.missing_nanodollars,
    )


async def _resume(connection: Connection, batch: Batch) -> int | None:
    if batch.state is not BatchState.PAUSED:
        return None
    origin = BatchState((await _row(connection, PAUSED_FROM_SQL, batch.id))["paused_from"])
    await move_batch(connection, batch, origin)
    return int((await _row(connection, RESUME_SQL, batch.id))["resumptions"])


async def _row(connection: Connection, statement: str, batch_id: str) -> DictRow:
    row = await (await connection.execute(statement, [batch_id])).fetchone()
    assert row is not None
    return row

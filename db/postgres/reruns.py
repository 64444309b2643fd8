"""Re-runs: the only way out of a final state, a new generation of a batch with some of its files (B5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.types.json import Jsonb

from db.postgres.batches import TELL_SQL, lock_batch, lock_batch_of
from db.postgres.pool import Connection, Postgres
from db.postgres.thread_history import following
from domain.batch import Batch, BatchKind, EventType
from domain.errors import IllegalTransition, LimitExceeded, NotFound, NothingToRerun
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState, FileState
from domain.threads import MAX_FORKED, ForkPlace

#: files whose checkpoints are looked at together
FILES_AT_ONCE = 500

# files without an ordinal are those of a batch that was cancelled before it was complete
FILES_TO_RERUN_SQL = """
SELECT id FROM files WHERE batch_id = %s AND state = ANY(%s) AND ordinal > 0 ORDER BY ordinal, id
"""
FILES_OF_BATCH_SQL = "SELECT id FROM files WHERE batch_id = %s AND id = ANY(%s::uuid[]) ORDER BY ordinal, id"
# By file: newest thread first, oldest checkpoint first. The tasks are there where they are the step's own.
CHECKPOINTS_SQL = """
SELECT t.file_id, c.thread_id, c.checkpoint_id, (c.metadata ->> 'step')::integer AS step, c.checkpoint,
       b.type AS tasks_type, b.blob AS tasks
FROM agent_threads t JOIN checkpoints c ON c.thread_id = t.thread_id AND c.checkpoint_ns = ''
LEFT JOIN checkpoint_blobs b ON (b.thread_id, b.checkpoint_ns, b.channel) = (c.thread_id, '', '__pregel_tasks')
    AND c.checkpoint -> 'updated_channels' ? b.channel AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version
WHERE t.file_id = ANY(%(file_ids)s) AND (%(checkpoint_id)s::text IS NULL OR c.checkpoint_id = %(checkpoint_id)s)
  AND (%(step)s::integer IS NULL OR (c.metadata ->> 'step')::integer = %(step)s)
ORDER BY t.file_id, t.created_at DESC, c.checkpoint_id
"""
RERUN_BATCH_SQL = """
UPDATE batches SET status = %(target)s, generation = %(generation)s, failure_code = NULL, paused_from = NULL,
                   paused_scope = NULL, missing_nanodollars = NULL, updated_at = now()
WHERE id = %(batch_id)s
"""
# whatever still works on an earlier generation owns its thread no more
SUPERSEDE_DIAGNOSES_SQL = "UPDATE agent_threads SET epoch = epoch + 1, updated_at = now() WHERE batch_id = %s"
RERUN_FILES_SQL = """
WITH chosen AS (
    SELECT * FROM unnest(%(file_ids)s::uuid[], %(thread_ids)s::text[], %(checkpoint_ids)s::text[])
        each(id, thread_id, checkpoint_id)
), before AS (
    SELECT f.id, f.state, chosen.thread_id, chosen.checkpoint_id FROM files f JOIN chosen USING (id)
    ORDER BY f.ordinal, f.id FOR UPDATE OF f
), superseded AS (
    UPDATE agent_threads SET epoch = epoch + 1, updated_at = now() FROM before WHERE file_id = before.id
), moved AS (
    UPDATE files SET state = %(target)s, generation = %(generation)s, workflow_id = NULL, run_id = NULL,
                     first_execution_run_id = NULL, failure_code = NULL, failure_message = NULL,
                     forked_thread_id = before.thread_id, forked_checkpoint_id = before.checkpoint_id,
                     updated_at = now()
    FROM before WHERE files.id = before.id
)
INSERT INTO progress_events (batch_id, file_id, event_type, data)
SELECT %(batch_id)s, id, 'StatusChanged', jsonb_build_object(
    'machine', 'file', 'from', state, 'to', %(target)s::text, 'generation', %(generation)s::integer) FROM before
"""

_UNFINISHED = (FileState.FAILED, FileState.CANCELLED)


@dataclass(frozen=True)
class _Chosen:
    """A file of the new generation, and where its thread begins: nowhere, or as a copy."""

    file_id: str
    thread_id: str | None = None
    checkpoint_id: str | None = None


class PostgresReruns:
    """Re-runs and forks, each one transaction that locks the batch first: of two at once, one wins."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def retry_failed(self, tenant_id: str, batch_id: str) -> Batch:
        """All failed and cancelled files again; the batch, scattering in its new generation."""
        async with self._postgres.transaction() as connection:
            batch = await _lock_final(connection, tenant_id, batch_id)
            file_ids = await _files_in(connection, batch_id, _UNFINISHED)
            if not file_ids and not _lacks_diagnosis(batch):
                raise _nothing_to_rerun(batch)
            return await _rerun(connection, batch, [_Chosen(each) for each in file_ids])

    async def fork(
        self, tenant_id: str, batch_id: str, place: ForkPlace, submission_ids: Sequence[str] | None = None
    ) -> Batch:
        """These files, all failed ones by default, each from its checkpoint at that place on."""
        async with self._postgres.transaction() as connection:
            batch = await _lock_final(connection, tenant_id, batch_id)
            if submission_ids is None:
                file_ids = await _files_in(connection, batch_id, (FileState.FAILED,))
            else:
                file_ids = await _files_of(connection, batch_id, submission_ids)
            if len(file_ids) > MAX_FORKED:
                raise LimitExceeded(
                    f"{len(file_ids):,} submissions: one fork takes at most {MAX_FORKED:,} (max_forked)."
                )
            if not file_ids:
                raise _nothing_to_rerun(batch)
            return await _rerun(connection, batch, await _fork_points(connection, file_ids, place))


def _lacks_diagnosis(batch: Batch) -> bool:
    """Whether all that is missing is the diagnosis: one that has it, and no file that failed, is completed."""
    return batch.opening.kind is BatchKind.DIAGNOSIS and batch.state is not BatchState.COMPLETED


def _nothing_to_rerun(batch: Batch) -> NothingToRerun:
    return NothingToRerun(f"The batch is {batch.state} and has no file to run again.", field="batch_id")


async def _lock_final(connection: Connection, tenant_id: str, batch_id: str) -> Batch:
    batch = await lock_batch_of(connection, tenant_id, batch_id)
    if batch.state not in BATCH_MACHINE.final:
        raise IllegalTransition(
            f"The batch is {batch.state} in generation {batch.generation}; only one that has ended is run again.",
            field="batch_id",
        )
    return batch


async def _files_in(connection: Connection, batch_id: str, states: Sequence[FileState]) -> list[str]:
    cursor = await connection.execute(FILES_TO_RERUN_SQL, [batch_id, list(states)])
    return [str(row["id"]) for row in await cursor.fetchall()]


async def _files_of(connection: Connection, batch_id: str, submission_ids: Sequence[str]) -> list[str]:
    cursor = await connection.execute(FILES_OF_BATCH_SQL, [batch_id, list(submission_ids)])
    found = [str(row["id"]) for row in await cursor.fetchall()]
    if unknown := sorted(set(submission_ids) - set(found)):
        raise NotFound(f"There is no submission {unknown[0]} in this batch.", field="submissions")
    return found


async def _fork_points(connection: Connection, file_ids: Sequence[str], place: ForkPlace) -> list[_Chosen]:
    """Where each file's thread is taken up; raises `NotFound` unless every one has such a checkpoint."""
    points: dict[str, _Chosen] = {}
    for first in range(0, len(file_ids), FILES_AT_ONCE):
        wanted = {"checkpoint_id": place.checkpoint_id, "step": place.step}
        cursor = await connection.execute(
            CHECKPOINTS_SQL, {"file_ids": list(file_ids[first : first + FILES_AT_ONCE]), **wanted}
        )
        for row in await cursor.fetchall():
            if place.node is None or place.node in following(row):
                file_id = str(row["file_id"])
                points.setdefault(file_id, _Chosen(file_id, row["thread_id"], row["checkpoint_id"]))
    if missing := [each for each in file_ids if each not in points]:
        raise NotFound(
            f"Submission {missing[0]} has no {place}, or it has been pruned "
            f"({len(missing)} of {len(file_ids)} lack it); nothing was changed.",
            field="submissions",
        )
    return list(points.values())


async def _rerun(connection: Connection, batch: Batch, chosen: Sequence[_Chosen]) -> Batch:
    generation, target = batch.generation + 1, BATCH_MACHINE.rerun
    moved = {"target": target, "generation": generation, "batch_id": batch.id}
    await connection.execute(RERUN_BATCH_SQL, moved)
    await connection.execute(SUPERSEDE_DIAGNOSES_SQL, [batch.id])
    told = {"machine": "batch", "from": batch.state, "to": target, "generation": generation}
    await connection.execute(TELL_SQL, [batch.id, None, EventType.STATUS_CHANGED, Jsonb(told)])
    await connection.execute(
        RERUN_FILES_SQL,
        {
            **moved,
            "target": FILE_MACHINE.rerun,
            "file_ids": [each.file_id for each in chosen],
            "thread_ids": [each.thread_id for each in chosen],
            "checkpoint_ids": [each.checkpoint_id for each in chosen],
        },
    )
    return await lock_batch(connection, batch.id)

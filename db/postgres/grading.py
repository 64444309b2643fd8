"""Submissions, assessments, results and the saga that makes an assessment official."""

from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from db.postgres.pool import Connection, Postgres
from domain.assessment import Assessment, assessment_to_document
from domain.batch import EventType
from domain.errors import CompensationFailed, EpochSuperseded, NotFound, SagaCompleted, SagaStepRefused
from domain.identity import saga_id
from domain.ports import AssessmentStart, Recorded, SubmissionRef
from domain.states import FILE_MACHINE, FileState

READER = "first"
STEPS = ("record_results", "cache_results", "ring_bell")

# Attempts and, after a reset, runs are ordered by when they were scheduled, not by who comes here first: one that
# stood still begins nothing behind the back of a newer one (X14). The beginning of a run's ends the older runs'.
BEGIN_SQL = """
WITH before AS (
    SELECT id, batch_id, state FROM files
    WHERE id = %(file_id)s AND generation = %(generation)s AND state = ANY(%(open)s)
      AND NOT EXISTS (
        SELECT FROM agent_threads newer WHERE newer.file_id = %(file_id)s AND newer.generation = %(generation)s
          AND newer.scheduled_at > coalesce(%(scheduled_at)s, clock_timestamp()))
    FOR UPDATE
), superseded AS (
    UPDATE agent_threads older SET epoch = older.epoch + 1, updated_at = now() FROM before
    WHERE (older.file_id, older.generation) = (before.id, %(generation)s) AND older.thread_id <> %(thread_id)s
), moved AS (
    UPDATE files SET state = 'running', workflow_id = %(workflow_id)s, run_id = %(thread_id)s,
                     first_execution_run_id = %(first_execution_run_id)s,
                     failure_code = NULL, failure_message = NULL, updated_at = now()
    FROM before WHERE files.id = before.id
), told AS (
    INSERT INTO progress_events (batch_id, file_id, event_type, data)
    SELECT batch_id, id, 'StatusChanged', jsonb_build_object('machine', 'file', 'from', state, 'to', 'running')
    FROM before WHERE state <> 'running'
)
INSERT INTO agent_threads AS known (thread_id, workflow_id, file_id, generation, scheduled_at)
SELECT %(thread_id)s, %(workflow_id)s, id, %(generation)s, coalesce(%(scheduled_at)s, clock_timestamp()) FROM before
ON CONFLICT (thread_id) DO UPDATE
SET epoch = known.epoch + 1, scheduled_at = EXCLUDED.scheduled_at, updated_at = now()
RETURNING epoch
"""
# A fork's thread begins with what the other one had saved up to the chosen checkpoint. What a step had written
# without finishing is left out after that one: the step runs again. Only values that are referred to are copied.
FORK_SQL = """
WITH fork AS (
    SELECT forked_thread_id AS source, forked_checkpoint_id AS last FROM files
    WHERE id = %(file_id)s AND forked_thread_id IS NOT NULL
      AND NOT EXISTS (SELECT FROM checkpoints WHERE thread_id = %(thread_id)s)
), copied AS (
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT %(thread_id)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints c JOIN fork ON c.thread_id = fork.source AND c.checkpoint_id <= fork.last
    RETURNING checkpoint_ns, checkpoint -> 'channel_versions' AS versions
), blobs_copied AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT DISTINCT %(thread_id)s, b.checkpoint_ns, b.channel, b.version, b.type, b.blob
    FROM fork JOIN checkpoint_blobs b ON b.thread_id = fork.source JOIN copied USING (checkpoint_ns)
    WHERE copied.versions ->> b.channel = b.version
), writes_copied AS (
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    SELECT %(thread_id)s, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    FROM checkpoint_writes w JOIN fork ON w.thread_id = fork.source AND w.checkpoint_id < fork.last
)
SELECT fork.source, fork.last, (SELECT count(*) FROM copied) AS copied FROM fork
"""
FORKED_SQL = """
UPDATE agent_threads SET forked_thread_id = %(source)s, forked_checkpoint_id = %(last)s WHERE thread_id = %(thread_id)s
"""
FIND_SQL = """
SELECT f.id, f.name, f.object_key, f.state, b.exam_id, b.rubric_version, t.secret
FROM files f JOIN batches b ON b.id = f.batch_id JOIN tenants t ON t.id = b.tenant_id WHERE f.id = %s
"""
PROPOSE_SQL = """
INSERT INTO assessments (submission_id, generation, reader, thread_id, epoch, document)
VALUES (%(file_id)s, %(generation)s, %(reader)s, fenced_thread(%(thread_id)s, %(epoch)s), %(epoch)s, %(document)s)
ON CONFLICT (submission_id, generation, reader) DO UPDATE
SET thread_id = EXCLUDED.thread_id, epoch = EXCLUDED.epoch, document = EXCLUDED.document, created_at = now()
"""
TELL_OF_FILE_SQL = """
INSERT INTO progress_events (batch_id, file_id, event_type, data)
SELECT batch_id, id, %s, %s FROM files WHERE id = %s
"""
LOCK_FILE_SQL = "SELECT state, run_id FROM files WHERE id = %s AND generation = %s FOR UPDATE"
PROPOSED_SQL = """
SELECT document, thread_id FROM assessments WHERE submission_id = %s AND generation = %s AND reader = %s
"""
SAGA_SQL = "SELECT steps, final_status FROM saga_transactions WHERE saga_id = %s"
BEGIN_SAGA_SQL = """
INSERT INTO saga_transactions (saga_id, steps, final_status, started_at) VALUES (%s, %s, 'pending', now())
ON CONFLICT (saga_id) DO NOTHING
"""
RECORD_RESULTS_SQL = """
INSERT INTO grading_results (submission_id, generation, question_id, position, score, max_score, result)
SELECT %(file_id)s, %(generation)s, q.value ->> 'question_id', q.ordinality,
       (q.value ->> 'score')::double precision, (q.value ->> 'max_score')::double precision, q.value
FROM jsonb_array_elements(%(questions)s) WITH ORDINALITY q
ON CONFLICT (submission_id, generation, question_id) DO UPDATE
SET score = EXCLUDED.score, max_score = EXCLUDED.max_score, result = EXCLUDED.result
"""
GRADED_SQL = """
UPDATE submissions SET status = 'graded', generation = %(generation)s, score = %(score)s,
                       max_score = %(max_score)s, needs_review = %(needs_review)s, updated_at = now()
WHERE id = %(file_id)s
"""
GRADED_BEFORE_SQL = "SELECT score, max_score, needs_review FROM submissions WHERE id = %s"
ERASE_RESULTS_SQL = "DELETE FROM grading_results WHERE submission_id = %s AND generation = %s"
# what an earlier generation had made official is official again: nothing but this saga is undone
RETRACT_SQL = """
WITH earlier AS (
    SELECT generation, round(sum(score)::numeric, 2)::double precision AS score,
           round(sum(max_score)::numeric, 2)::double precision AS max_score,
           bool_or(jsonb_array_length(result -> 'review_reasons') > 0) AS needs_review
    FROM grading_results WHERE submission_id = %(file_id)s AND generation < %(generation)s
    GROUP BY generation ORDER BY generation DESC LIMIT 1
)
UPDATE submissions SET status = CASE WHEN earlier.generation IS NULL THEN 'retracted' ELSE 'graded' END,
                       generation = coalesce(earlier.generation, submissions.generation), score = earlier.score,
                       max_score = earlier.max_score, needs_review = coalesce(earlier.needs_review, false),
                       updated_at = now()
FROM (SELECT) this LEFT JOIN earlier ON true
WHERE submissions.id = %(file_id)s AND submissions.generation = %(generation)s AND status = 'graded'
"""
COMPENSATED_SQL = """
INSERT INTO saga_transactions (saga_id, steps, final_status, started_at, completed_at, error_message)
VALUES (%(saga_id)s, %(steps)s, 'compensated', now(), now(), %(reason)s)
ON CONFLICT (saga_id) DO UPDATE
SET steps = EXCLUDED.steps, final_status = 'compensated', completed_at = now(), error_message = EXCLUDED.error_message
"""
FLAG_SAGA_SQL = """
INSERT INTO saga_transactions (saga_id, steps, final_status, started_at, error_message)
VALUES (%(saga_id)s, %(steps)s, 'needs_intervention', now(), %(reason)s)
ON CONFLICT (saga_id) DO UPDATE SET final_status = 'needs_intervention', error_message = EXCLUDED.error_message
-- one that got to its end, unheard of by its workflow, needs nobody
WHERE saga_transactions.final_status <> 'completed'
"""
SAGAS_SQL = """
SELECT saga_id, steps, final_status, started_at, completed_at, error_message FROM saga_transactions
WHERE %(status)s::text IS NULL OR final_status = %(status)s ORDER BY started_at DESC LIMIT %(count)s
"""
# a file completes with its saga only: a straggler's call after the compensation completes nothing
FINISH_SQL = """
WITH saga AS (
    UPDATE saga_transactions SET steps = %(steps)s, final_status = 'completed', completed_at = now()
    WHERE saga_id = %(saga_id)s AND final_status = 'pending'
    RETURNING saga_id
), moved AS (
    UPDATE files SET state = 'completed', updated_at = now()
    FROM saga WHERE id = %(file_id)s AND generation = %(generation)s AND state = 'running'
    RETURNING id, batch_id
)
INSERT INTO progress_events (batch_id, file_id, event_type, data)
SELECT batch_id, id, 'StatusChanged',
       jsonb_build_object('machine', 'file', 'from', 'running', 'to', 'completed') FROM moved
"""
END_FILE_SQL = """
WITH before AS (
    SELECT id, batch_id, state FROM files
    WHERE id = %(file_id)s AND generation = %(generation)s AND state = ANY(%(origins)s) FOR UPDATE
), moved AS (
    UPDATE files SET state = %(target)s, failure_code = %(code)s, failure_message = %(message)s, updated_at = now()
    FROM before WHERE files.id = before.id
)
INSERT INTO progress_events (batch_id, file_id, event_type, data)
SELECT batch_id, id, 'StatusChanged', jsonb_strip_nulls(jsonb_build_object(
    'machine', 'file', 'from', state, 'to', %(target)s::text, 'code', %(code)s::text)) FROM before
"""
RESULTS_SQL = """
SELECT r.result FROM grading_results r JOIN submissions s ON s.id = r.submission_id AND s.generation = r.generation
WHERE r.submission_id = %s ORDER BY r.position
"""

_OPEN = [*FILE_MACHINE.origins_of(FileState.RUNNING), FileState.RUNNING]


class PostgresThreads:
    """The agents' checkpoint threads and their epochs (G2.5)."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def begin(self, start: AssessmentStart) -> int | None:
        """Take the thread's next epoch and mark the file running, in one transaction.

        `None` when the file's generation has reached a final state, or has a newer attempt or run.
        """
        async with self._postgres.transaction() as connection:
            # first, and by itself: what waits here for another run's beginning must see what that one did
            await connection.execute(LOCK_FILE_SQL, [start.file_id, start.generation])
            cursor = await connection.execute(BEGIN_SQL, {**vars(start), "open": _OPEN})
            row = await cursor.fetchone()
            if row is not None:
                await self._fork(connection, start)
        return None if row is None else int(row["epoch"])

    async def _fork(self, connection: Connection, start: AssessmentStart) -> None:
        """Give a fork's thread what it begins with, unless it has begun."""
        cursor = await connection.execute(FORK_SQL, {"file_id": start.file_id, "thread_id": start.thread_id})
        fork = await cursor.fetchone()
        if fork is None:
            return
        if fork["copied"]:
            await connection.execute(FORKED_SQL, {**fork, "thread_id": start.thread_id})
        else:
            reason = f"Checkpoint {fork['last']}, where it was to go on, is not there any more."
            data = Jsonb({"reason": reason})
            await connection.execute(TELL_OF_FILE_SQL, [EventType.AGENT_RESTARTED, data, start.file_id])


class PostgresSubmissions:
    """Submissions and what readers propose about them."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def find(self, file_id: str) -> SubmissionRef:
        """Where the submission and its exam are; raises `NotFound`."""
        row = await self._postgres.row(FIND_SQL, [file_id])
        if row is None or row["exam_id"] is None:
            raise NotFound(f"There is no submission {file_id}.", field="file_id")
        return SubmissionRef(
            file_id=str(row["id"]),
            name=row["name"],
            object_key=row["object_key"],
            exam_id=str(row["exam_id"]),
            rubric_version=row["rubric_version"],
            state=FileState(row["state"]),
            tenant_secret=bytes(row["secret"]),
        )

    async def propose(
        self, file_id: str, generation: int, thread_id: str, epoch: int, assessment: Assessment
    ) -> None:
        """Store an assessment, not yet official; raises `EpochSuperseded` for an older epoch."""
        await self._postgres.run(
            PROPOSE_SQL,
            {
                "file_id": file_id,
                "generation": generation,
                "reader": READER,
                "thread_id": thread_id,
                "epoch": epoch,
                "document": Jsonb(assessment_to_document(assessment)),
            },
        )

    async def note_restart(self, file_id: str, reason: str) -> None:
        """Say in the file's history that its agent started afresh."""
        data = Jsonb({"reason": reason[:500]})
        await self._postgres.run(TELL_OF_FILE_SQL, [EventType.AGENT_RESTARTED, data, file_id])


class PostgresAssessments:
    """The persisting saga's steps in Postgres, each beside its opposite; all idempotent (G4)."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def record(self, file_id: str, generation: int, thread_id: str) -> Recorded:
        """Results, submission status, saga row and outbox event in one transaction."""
        async with self._postgres.transaction() as connection:
            cursor = await connection.execute(LOCK_FILE_SQL, [file_id, generation])
            file = await cursor.fetchone()
            cursor = await connection.execute(SAGA_SQL, [saga_id(file_id, generation)])
            if (saga := await cursor.fetchone()) is not None:
                return await self._recorded_before(connection, file_id, saga["final_status"])
            if file is None or file["state"] != FileState.RUNNING:
                raise SagaStepRefused(f"File {file_id} is not running in generation {generation}.")
            document = await self._proposed(connection, file_id, generation, thread_id)
            return await self._write(connection, file_id, generation, document)

    async def _recorded_before(self, connection: Connection, file_id: str, status: str) -> Recorded:
        if status == "compensated":
            raise SagaStepRefused(f"The saga of file {file_id} has been compensated.")
        cursor = await connection.execute(GRADED_BEFORE_SQL, [file_id])
        row = await cursor.fetchone()
        assert row is not None
        return Recorded(**row)

    async def _proposed(
        self, connection: Connection, file_id: str, generation: int, thread_id: str
    ) -> dict[str, Any]:
        cursor = await connection.execute(PROPOSED_SQL, [file_id, generation, READER])
        row = await cursor.fetchone()
        if row is None:
            raise SagaStepRefused(f"No assessment of file {file_id} has been proposed.")
        if row["thread_id"] != thread_id:
            raise EpochSuperseded(f"The assessment of file {file_id} is another run's.")
        document: dict[str, Any] = row["document"]
        return document

    async def _write(
        self, connection: Connection, file_id: str, generation: int, document: dict[str, Any]
    ) -> Recorded:
        questions = document["questions"]
        recorded = Recorded(
            score=round(sum(each["score"] for each in questions), 2),
            max_score=round(sum(each["max_score"] for each in questions), 2),
            needs_review=any(each["review_reasons"] for each in questions),
        )
        key = {"file_id": file_id, "generation": generation}
        steps = _steps("completed", "pending", "pending")
        await connection.execute(BEGIN_SAGA_SQL, [saga_id(file_id, generation), steps])
        await connection.execute(RECORD_RESULTS_SQL, {**key, "questions": Jsonb(questions)})
        await connection.execute(GRADED_SQL, {**key, **vars(recorded)})
        await connection.execute(TELL_OF_FILE_SQL, [EventType.FILE_ASSESSED, Jsonb(vars(recorded)), file_id])
        return recorded

    async def erase(self, file_id: str, generation: int, thread_id: str, reason: str) -> None:
        """Undo `record`, with an `AssessmentRetracted` event.

        Raises `SagaCompleted`, and `EpochSuperseded` for a run whose file has another by now.
        """
        async with self._postgres.transaction() as connection:
            file = await (await connection.execute(LOCK_FILE_SQL, [file_id, generation])).fetchone()
            if file is not None and file["run_id"] not in (None, thread_id):
                raise EpochSuperseded(f"File {file_id} has another run by now, whose results stay.")
            cursor = await connection.execute(SAGA_SQL, [saga_id(file_id, generation)])
            if (saga := await cursor.fetchone()) is not None and saga["final_status"] == "completed":
                # its file is completed, which is final: it keeps its results
                raise SagaCompleted(f"The saga of file {file_id} is completed; nothing is left to undo.")
            erased = await connection.execute(ERASE_RESULTS_SQL, [file_id, generation])
            retracted = await connection.execute(RETRACT_SQL, {"file_id": file_id, "generation": generation})
            # the saga's row stands even if nothing was recorded: a late `record` meets it and is refused
            await connection.execute(
                COMPENSATED_SQL,
                {
                    "saga_id": saga_id(file_id, generation),
                    "steps": _steps("compensated", "compensated", "compensated"),
                    "reason": reason[:1000],
                },
            )
            if erased.rowcount or retracted.rowcount:
                data = Jsonb({"reason": reason[:500]})
                await connection.execute(TELL_OF_FILE_SQL, [EventType.ASSESSMENT_RETRACTED, data, file_id])

    async def finish(self, file_id: str, generation: int) -> None:
        """The saga is completed and so is the file, in one statement."""
        await self._postgres.run(
            FINISH_SQL,
            {
                "file_id": file_id,
                "generation": generation,
                "saga_id": saga_id(file_id, generation),
                "steps": _steps("completed", "completed", "completed"),
            },
        )

    async def fail(self, file_id: str, generation: int, code: str, message: str) -> None:
        """The file ends `failed`, unless it has ended."""
        await self._end(file_id, generation, FileState.FAILED, code, message[:2000])

    async def flag_saga(self, file_id: str, generation: int, reason: str) -> None:
        """The saga and its file wait for a human, as a step could not be undone."""
        row = {
            "saga_id": saga_id(file_id, generation),
            "steps": _steps("failed", "failed", "failed"),
            "reason": reason[:1000],
        }
        await self._postgres.run(FLAG_SAGA_SQL, row)
        await self.flag(file_id, generation, CompensationFailed.code, reason)

    async def sagas(self, status: str | None, count: int) -> list[DictRow]:
        """The newest sagas, all or those of one final status."""
        return await self._postgres.rows(SAGAS_SQL, {"status": status, "count": count})

    async def flag(self, file_id: str, generation: int, code: str, message: str) -> None:
        """The file waits for a human, if it is running."""
        await self._end(file_id, generation, FileState.NEEDS_INTERVENTION, code, message[:2000])

    async def cancel(self, file_id: str, generation: int) -> None:
        """The file ends `cancelled`, unless it has ended."""
        await self._end(file_id, generation, FileState.CANCELLED, None, None)

    async def _end(
        self, file_id: str, generation: int, target: FileState, code: str | None, message: str | None
    ) -> None:
        await self._postgres.run(
            END_FILE_SQL,
            {
                "file_id": file_id,
                "generation": generation,
                "origins": FILE_MACHINE.origins_of(target),
                "target": target,
                "code": code,
                "message": message,
            },
        )


def _steps(*statuses: str) -> Jsonb:
    return Jsonb([{"name": name, "status": status} for name, status in zip(STEPS, statuses, strict=True)])

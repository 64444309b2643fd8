"""Diagnoses: their threads, what agents propose, and the saga that makes one official."""

from typing import Any

from psycopg.types.json import Jsonb

from db.postgres.batches import TELL_SQL, lock_batch
from db.postgres.documents import jsonb
from db.postgres.grading import BEGIN_SAGA_SQL, COMPENSATED_SQL, FLAG_SAGA_SQL, SAGA_SQL
from db.postgres.pool import Connection, Postgres
from domain.batch import EventType
from domain.diagnosis import Diagnosis, DiagnosisStart, RecordedDiagnosis
from domain.documents import from_plain
from domain.errors import EpochSuperseded, SagaCompleted, SagaStepRefused
from domain.identity import diagnosis_saga_id
from domain.states import BATCH_MACHINE, BatchState

STEPS = ("record_diagnosis", "publish_diagnosis")

# Attempts and, after a reset, runs are ordered by when they were scheduled (X14); as for submissions.
BEGIN_SQL = """
WITH superseded AS (
    UPDATE agent_threads older SET epoch = older.epoch + 1, updated_at = now()
    WHERE older.batch_id = %(batch_id)s AND older.generation = %(generation)s AND older.thread_id <> %(thread_id)s
)
INSERT INTO agent_threads AS known (thread_id, workflow_id, batch_id, generation, scheduled_at)
VALUES (%(thread_id)s, %(workflow_id)s, %(batch_id)s, %(generation)s, coalesce(%(scheduled_at)s, clock_timestamp()))
ON CONFLICT (thread_id) DO UPDATE
SET epoch = known.epoch + 1, scheduled_at = EXCLUDED.scheduled_at, updated_at = now()
RETURNING epoch
"""
NEWER_SQL = """
SELECT 1 AS one FROM agent_threads WHERE batch_id = %(batch_id)s AND generation = %(generation)s
    AND scheduled_at > coalesce(%(scheduled_at)s, clock_timestamp()) LIMIT 1
"""
# what repeats an earlier diagnosis is not repeated itself: the first one said it
OF_SIGNATURE_SQL = """
SELECT d.batch_id, d.document FROM ai_diagnoses d JOIN batches b ON b.id = d.batch_id
WHERE d.signature = %s AND d.model = %s AND b.tenant_id = %s AND coalesce(d.document ->> 'reused_from', '') = ''
ORDER BY d.created_at DESC LIMIT 1
"""
# asked for by the name that the batch gave; which model answered is in the document
PROPOSE_SQL = """
INSERT INTO ai_diagnoses (batch_id, generation, verdict, root_cause, risk_level, recommendations, signature, model,
                          thread_id, epoch, document)
SELECT b.id, %(generation)s, %(verdict)s, %(root_cause)s, %(risk_level)s, %(recommendations)s,
       coalesce(s.signature, ''), b.model, fenced_thread(%(thread_id)s, %(epoch)s), %(epoch)s, %(document)s
FROM batches b LEFT JOIN log_summaries s ON (s.batch_id, s.generation) = (b.id, %(generation)s)
WHERE b.id = %(batch_id)s
ON CONFLICT (batch_id, generation) DO UPDATE
SET verdict = EXCLUDED.verdict, root_cause = EXCLUDED.root_cause, risk_level = EXCLUDED.risk_level,
    recommendations = EXCLUDED.recommendations, signature = EXCLUDED.signature, model = EXCLUDED.model,
    thread_id = EXCLUDED.thread_id, epoch = EXCLUDED.epoch, document = EXCLUDED.document, created_at = now()
WHERE ai_diagnoses.recorded_at IS NULL
"""
PROPOSED_SQL = "SELECT thread_id, document FROM ai_diagnoses WHERE batch_id = %s AND generation = %s"
MAKE_OFFICIAL_SQL = "UPDATE ai_diagnoses SET recorded_at = now() WHERE batch_id = %s AND generation = %s"
RETRACT_SQL = """
UPDATE ai_diagnoses SET recorded_at = NULL WHERE batch_id = %s AND generation = %s AND recorded_at IS NOT NULL
"""
FINISH_SAGA_SQL = """
UPDATE saga_transactions SET steps = %s, final_status = 'completed', completed_at = now()
WHERE saga_id = %s AND final_status = 'pending'
"""
FAIL_SQL = """
WITH failed AS (
    UPDATE batches SET failure_code = %(code)s
    WHERE id = %(batch_id)s AND generation = %(generation)s AND status = ANY(%(open)s)
      AND failure_code IS DISTINCT FROM %(code)s
    RETURNING id
)
INSERT INTO progress_events (batch_id, event_type, data) SELECT id, %(event)s, %(told)s FROM failed
"""

_OPEN_BATCH = [state for state in BatchState if state not in BATCH_MACHINE.final]


class PostgresDiagnosisThreads:
    """The checkpoint threads of diagnoses, and their epochs (G2.5)."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def begin(self, start: DiagnosisStart) -> int | None:
        """Take the thread's next epoch, in one transaction.

        `None` when the batch's generation has reached a final state, or has a newer attempt or run.
        """
        async with self._postgres.transaction() as connection:
            batch = await lock_batch(connection, start.batch_id)
            if batch.generation != start.generation or batch.state in BATCH_MACHINE.final:
                return None
            if await (await connection.execute(NEWER_SQL, vars(start))).fetchone() is not None:
                return None
            row = await (await connection.execute(BEGIN_SQL, vars(start))).fetchone()
        assert row is not None
        return int(row["epoch"])


class PostgresDiagnoses:
    """Diagnoses, proposed and official."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def of_signature(self, tenant_id: str, signature: str, model: str) -> tuple[str, Diagnosis] | None:
        """The newest diagnosis of an equal case by that model, proposed ones included, with its batch's id.

        One that repeats an earlier one is none: what is repeated is what was said first.
        """
        row = await self._postgres.row(OF_SIGNATURE_SQL, [signature, model, tenant_id])
        return None if row is None else (str(row["batch_id"]), from_plain(Diagnosis, row["document"]))

    async def propose(
        self, batch_id: str, generation: int, thread_id: str, epoch: int, diagnosis: Diagnosis
    ) -> None:
        """Store a diagnosis, not yet official; raises `EpochSuperseded` for an older epoch."""
        row = {
            "batch_id": batch_id,
            "generation": generation,
            "verdict": diagnosis.verdict,
            "root_cause": _text(diagnosis.findings[0].title) if diagnosis.findings else None,
            "risk_level": diagnosis.risk_level,
            "recommendations": _text("\n".join(diagnosis.recommendations)),
            "thread_id": thread_id,
            "epoch": epoch,
            "document": jsonb(diagnosis),
        }
        await self._postgres.run(PROPOSE_SQL, row)

    async def note_restart(self, batch_id: str, reason: str) -> None:
        """Say in the batch's history that its agent started afresh."""
        data = Jsonb({"reason": reason[:500]})
        await self._postgres.run(TELL_SQL, [batch_id, None, EventType.AGENT_RESTARTED, data])

    # --- the saga's steps, each beside its opposite; all idempotent ---

    async def record(self, batch_id: str, generation: int, thread_id: str) -> RecordedDiagnosis:
        """The proposal is official: its mark, saga row and outbox event in one transaction."""
        async with self._postgres.transaction() as connection:
            batch = await lock_batch(connection, batch_id)
            saga = await _saga(connection, batch_id, generation)
            if saga is None and (batch.generation != generation or batch.state is not BatchState.DIAGNOSING):
                raise SagaStepRefused(f"Batch {batch_id} is not diagnosing in generation {generation}.")
            if saga == "compensated":
                raise SagaStepRefused(f"The saga of the diagnosis of batch {batch_id} has been compensated.")
            diagnosis = await _proposed(connection, batch_id, generation, thread_id)
            recorded = RecordedDiagnosis.of(diagnosis)
            if saga is None:
                steps = _steps("completed", "pending")
                await connection.execute(BEGIN_SAGA_SQL, [diagnosis_saga_id(batch_id, generation), steps])
                await connection.execute(MAKE_OFFICIAL_SQL, [batch_id, generation])
                told = Jsonb({"generation": generation, **vars(recorded)})
                await connection.execute(TELL_SQL, [batch_id, None, EventType.DIAGNOSIS_COMPLETED, told])
            return recorded

    async def retract(self, batch_id: str, generation: int, reason: str) -> None:
        """Undo `record`, with a `DiagnosisRetracted` event; raises `SagaCompleted`."""
        async with self._postgres.transaction() as connection:
            await lock_batch(connection, batch_id)
            if await _saga(connection, batch_id, generation) == "completed":
                raise SagaCompleted(f"The saga of the diagnosis of batch {batch_id} is completed.")
            retracted = await connection.execute(RETRACT_SQL, [batch_id, generation])
            # the saga's row stands even if nothing was recorded: a late `record` meets it and is refused
            row = {"saga_id": diagnosis_saga_id(batch_id, generation), "reason": reason[:1000]}
            await connection.execute(COMPENSATED_SQL, {**row, "steps": _steps("compensated", "compensated")})
            if retracted.rowcount:
                told = Jsonb({"generation": generation, "reason": reason[:500]})
                await connection.execute(TELL_SQL, [batch_id, None, EventType.DIAGNOSIS_RETRACTED, told])

    async def publish(self, batch_id: str, generation: int) -> None:
        """The saga is completed."""
        steps = _steps("completed", "completed")
        await self._postgres.run(FINISH_SAGA_SQL, [steps, diagnosis_saga_id(batch_id, generation)])

    async def flag_saga(self, batch_id: str, generation: int, reason: str) -> None:
        """The saga waits for a human, as a step could not be undone."""
        row = {"saga_id": diagnosis_saga_id(batch_id, generation), "reason": reason[:1000]}
        await self._postgres.run(FLAG_SAGA_SQL, {**row, "steps": _steps("failed", "failed")})

    async def fail(self, batch_id: str, generation: int, code: str, message: str) -> None:
        """The batch goes without a diagnosis in that generation: why, told once."""
        told = Jsonb({"generation": generation, "code": code, "message": message[:2000]})
        row = {"batch_id": batch_id, "generation": generation, "code": code, "open": _OPEN_BATCH}
        await self._postgres.run(FAIL_SQL, {**row, "event": EventType.DIAGNOSIS_FAILED, "told": told})


async def _saga(connection: Connection, batch_id: str, generation: int) -> str | None:
    cursor = await connection.execute(SAGA_SQL, [diagnosis_saga_id(batch_id, generation)])
    row = await cursor.fetchone()
    return None if row is None else str(row["final_status"])


async def _proposed(connection: Connection, batch_id: str, generation: int, thread_id: str) -> Diagnosis:
    row = await (await connection.execute(PROPOSED_SQL, [batch_id, generation])).fetchone()
    if row is None:
        raise SagaStepRefused(f"No diagnosis of batch {batch_id} has been proposed.")
    if row["thread_id"] != thread_id:
        raise EpochSuperseded(f"The diagnosis of batch {batch_id} is another run's.")
    return from_plain(Diagnosis, row["document"])


def _text(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _steps(*statuses: str) -> Jsonb:
    rows: list[dict[str, Any]] = [
        {"name": name, "status": status} for name, status in zip(STEPS, statuses, strict=True)
    ]
    return Jsonb(rows)

"""Overrides in Postgres: a human is a reader, whose assessment keeps what it replaced (G4.2)."""

from dataclasses import asdict
from datetime import UTC
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from db.postgres.grading import COMPENSATED_SQL, FLAG_SAGA_SQL, SAGA_SQL, TELL_OF_FILE_SQL
from db.postgres.pool import Connection, Postgres
from domain.assessment import question_result_from_document
from domain.batch import EventType
from domain.errors import IllegalTransition, NotFound, SagaCompleted, SagaStepRefused
from domain.identity import override_saga_id, saga_id
from domain.overrides import HUMAN, Override, StoredOverride, overridden, override_reader

STEPS = ("apply_override", "cache_override", "tell_override")

OFFICIAL_SQL = """
SELECT s.generation, s.status, r.result
FROM files f JOIN submissions s ON s.id = f.id
LEFT JOIN grading_results r
    ON (r.submission_id, r.generation, r.question_id) = (s.id, s.generation, %(question_id)s)
WHERE f.id = %(submission_id)s AND f.tenant_id = %(tenant_id)s
"""
# the file first, as everywhere
LOCK_SQL = """
SELECT 1 FROM files f JOIN submissions s ON s.id = f.id WHERE f.id = %(submission_id)s FOR UPDATE
"""
UNDERWAY_SQL = f"""
SELECT substr(a.reader, {len(HUMAN) + 2}) AS override_id FROM assessments a
JOIN saga_transactions t ON t.saga_id = a.submission_id::text || '/override/' || substr(a.reader, {len(HUMAN) + 2})
WHERE a.submission_id = %(submission_id)s AND a.reader LIKE '{HUMAN}/%%'
  AND t.final_status IN ('pending', 'needs_intervention')
"""
KEEP_SQL = """
INSERT INTO assessments (submission_id, generation, reader, thread_id, epoch, document)
VALUES (%(submission_id)s, %(generation)s, %(reader)s, %(reader)s, 1, %(document)s)
"""
BEGIN_SAGA_SQL = """
INSERT INTO saga_transactions (saga_id, steps, final_status, started_at) VALUES (%s, %s, 'pending', now())
"""
REPLACE_SQL = """
UPDATE grading_results SET result = %(new)s, score = (%(new)s::jsonb ->> 'score')::double precision
WHERE (submission_id, generation, question_id) = (%(submission_id)s, %(generation)s, %(question_id)s)
  AND result = %(old)s
"""
TOTAL_SQL = """
UPDATE submissions SET score = total.score, needs_review = total.needs_review, updated_at = now()
FROM (SELECT round(sum(score)::numeric, 2)::double precision AS score,
             bool_or(jsonb_array_length(result -> 'review_reasons') > 0) AS needs_review
      FROM grading_results WHERE (submission_id, generation) = (%(submission_id)s, %(generation)s)) total
WHERE id = %(submission_id)s AND generation = %(generation)s AND status = 'graded'
"""
KEPT_SQL = """
SELECT generation, document FROM assessments WHERE submission_id = %(submission_id)s AND reader = %(reader)s
"""
FINISH_SQL = """
UPDATE saga_transactions SET steps = %s, final_status = 'completed', completed_at = now()
WHERE saga_id = %s AND final_status = 'pending'
"""
LIST_SQL = f"""
SELECT a.generation, a.document, a.created_at, t.final_status FROM files f
LEFT JOIN assessments a ON a.submission_id = f.id AND a.reader LIKE '{HUMAN}/%%'
LEFT JOIN saga_transactions t ON t.saga_id = f.id::text || '/override/' || substr(a.reader, {len(HUMAN) + 2})
WHERE f.id = %s AND f.tenant_id = %s ORDER BY a.created_at DESC
"""


class PostgresOverrides:
    """The steps of an override's saga that are Postgres's, each beside its opposite."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def check(self, override: Override) -> None:
        """Whether it could be applied now.

        Raises `NotFound`, `IllegalTransition` for what is not graded (any more) or has another override under
        way, and `InvalidInput` with the field.
        """
        async with self._postgres.connection() as connection:
            await _read(connection, override)

    async def apply(self, override: Override) -> None:
        """Replace the official result, with its saga's row and an event, in one transaction; as `check`."""
        async with self._postgres.transaction() as connection:
            await connection.execute(LOCK_SQL, vars(override))
            saga = await _row(connection, SAGA_SQL, [_saga(override)])
            if saga is not None and saga["final_status"] == "compensated":
                raise SagaStepRefused(f"Override {override.override_id} has been retracted.")
            if saga is None:
                official = await _read(connection, override)
                await _apply(connection, override, official["generation"], official["result"])

    async def retract(self, override: Override, reason: str) -> None:
        """Put back what `apply` replaced; raises `SagaCompleted`."""
        async with self._postgres.transaction() as connection:
            await connection.execute(LOCK_SQL, vars(override))
            saga = await _row(connection, SAGA_SQL, [_saga(override)])
            if saga is not None and saga["final_status"] == "completed":
                raise SagaCompleted(f"Override {override.override_id} is completed; another one changes it.")
            if saga is not None and saga["final_status"] != "compensated":
                await _put_back(connection, override, reason)
            # the row stands even if nothing was applied: a late `apply` meets it and is refused
            steps, cause = _steps("compensated"), reason[:1000]
            compensated = {"saga_id": _saga(override), "steps": steps, "reason": cause}
            await connection.execute(COMPENSATED_SQL, compensated)

    async def finish(self, override: Override) -> None:
        """The saga is completed."""
        await self._postgres.run(FINISH_SQL, [_steps("completed"), _saga(override)])

    async def flag(self, override: Override, reason: str) -> None:
        """The saga waits for a human, as a step could not be undone."""
        row = {"saga_id": _saga(override), "steps": _steps("failed"), "reason": reason[:1000]}
        await self._postgres.run(FLAG_SAGA_SQL, row)

    async def list_of_submission(self, tenant_id: str, submission_id: str) -> list[StoredOverride]:
        """All that were ever applied, newest first; raises `NotFound`."""
        rows = await self._postgres.rows(LIST_SQL, [submission_id, tenant_id])
        if not rows:
            raise NotFound(f"There is no submission {submission_id}.", field="submission_id")
        return [_stored(row) for row in rows if row["document"] is not None]


async def _read(connection: Connection, override: Override) -> DictRow:
    """The official result, if the override can be applied to it."""
    official = await _row(connection, OFFICIAL_SQL, vars(override))
    if official is None:
        raise NotFound(f"There is no submission {override.submission_id}.", field="submission_id")
    persisted = await _row(connection, SAGA_SQL, [saga_id(override.submission_id, official["generation"])])
    if official["status"] != "graded" or persisted is None or persisted["final_status"] != "completed":
        raise IllegalTransition(
            f"Submission {override.submission_id} has no marks that could be overridden.",
            field="submission_id",
        )
    if official["result"] is None:
        raise NotFound(f"The submission has no question {override.question_id}.", field="question_id")
    overridden(question_result_from_document(official["result"]), override.points, override.reason)
    underway = await _row(connection, UNDERWAY_SQL, vars(override))
    if underway is not None and underway["override_id"] != override.override_id:
        raise IllegalTransition(
            f"Override {underway['override_id']} of this submission is under way; try again when it has ended.",
            field="submission_id",
        )
    return official


async def _apply(connection: Connection, override: Override, generation: int, old: dict[str, Any]) -> None:
    before = question_result_from_document(old)
    after = overridden(before, override.points, override.reason)
    new = asdict(after)
    document = {
        "override_id": override.override_id,
        "question_id": override.question_id,
        "reason": override.reason,
        "made_by": override.made_by,
        "before": old,
        "after": new,
    }
    place = _place(override, generation)
    await connection.execute(KEEP_SQL, {**place, "document": Jsonb(document)})
    await connection.execute(BEGIN_SAGA_SQL, [_saga(override), _steps("completed", "pending", "pending")])
    await connection.execute(REPLACE_SQL, {**place, "old": Jsonb(old), "new": Jsonb(new)})
    await connection.execute(TOTAL_SQL, place)
    told: dict[str, Any] = {"override_id": override.override_id, "question_id": override.question_id}
    told |= {"score_before": before.score, "score_after": after.score}
    await connection.execute(
        TELL_OF_FILE_SQL, [EventType.MARKS_OVERRIDDEN, Jsonb(told), override.submission_id]
    )


async def _put_back(connection: Connection, override: Override, reason: str) -> None:
    place = _place(override, 0)
    kept = await _row(connection, KEPT_SQL, place)
    assert kept is not None, "the saga's row is written with it"
    place["generation"], document = kept["generation"], kept["document"]
    old, new = Jsonb(document["before"]), Jsonb(document["after"])
    await connection.execute(REPLACE_SQL, {**place, "old": new, "new": old})
    await connection.execute(TOTAL_SQL, place)
    told = Jsonb({"override_id": override.override_id, "reason": reason[:500]})
    await connection.execute(TELL_OF_FILE_SQL, [EventType.OVERRIDE_RETRACTED, told, override.submission_id])


def _place(override: Override, generation: int) -> dict[str, Any]:
    return {
        "submission_id": override.submission_id,
        "question_id": override.question_id,
        "generation": generation,
        "reader": override_reader(override.override_id),
    }


def _saga(override: Override) -> str:
    return override_saga_id(override.submission_id, override.override_id)


def _steps(*statuses: str) -> Jsonb:
    """The steps with these statuses, or all with the only one."""
    stated = statuses if len(statuses) > 1 else statuses * len(STEPS)
    return Jsonb([{"name": name, "status": status} for name, status in zip(STEPS, stated, strict=True)])


def _stored(row: DictRow) -> StoredOverride:
    document = row["document"]
    return StoredOverride(
        override_id=document["override_id"],
        question_id=document["question_id"],
        generation=row["generation"],
        reason=document["reason"],
        made_by=document["made_by"],
        status=row["final_status"],
        score_before=document["before"]["score"],
        score_after=document["after"]["score"],
        created_at=row["created_at"].astimezone(UTC).isoformat(),
    )


async def _row(connection: Connection, sql: str, parameters: Any) -> DictRow | None:
    return await (await connection.execute(sql, parameters)).fetchone()

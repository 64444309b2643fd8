"""A batch's report, computed from rows."""

from datetime import UTC
from typing import Any

from db.postgres.grading import RESULTS_SQL
from db.postgres.pool import Postgres
from domain.batch import Counts
from domain.errors import NotFound

BATCH_SQL = """
SELECT b.id, b.tenant_id, b.name, b.status, b.kind, b.model, b.generation, b.total_files, b.created_at, b.updated_at,
       b.exam_id, b.rubric_version, e.title
FROM batches b LEFT JOIN exams e ON e.id = b.exam_id WHERE b.id = %s AND b.tenant_id = %s
"""
COUNTS_SQL = "SELECT state, count(*) AS files FROM files WHERE batch_id = %s GROUP BY state"
SUBMISSIONS_SQL = """
SELECT f.id, f.name, f.state, f.failure_code, f.failure_message, s.score, s.max_score, s.needs_review,
       (SELECT jsonb_object_agg(r.question_id, r.score ORDER BY r.position) FROM grading_results r
        WHERE r.submission_id = s.id AND r.generation = s.generation) AS questions,
       (SELECT coalesce(jsonb_agg(r.question_id || ': ' || reason.value ORDER BY r.position), '[]')
        FROM grading_results r, jsonb_array_elements_text(r.result -> 'review_reasons') reason
        WHERE r.submission_id = s.id AND r.generation = s.generation) AS review_reasons
FROM files f LEFT JOIN submissions s ON s.id = f.id
WHERE f.batch_id = %s ORDER BY f.name
"""
QUESTIONS_SQL = """
SELECT r.question_id, min(r.position) AS position, count(*) AS graded, avg(r.score) AS mean_score,
       max(r.max_score) AS max_score, bool_or((r.result ->> 'advisory')::boolean) AS advisory,
       sum((r.result ->> 'tokens_in')::bigint) AS tokens_in, sum((r.result ->> 'tokens_out')::bigint) AS tokens_out
FROM submissions s JOIN grading_results r ON r.submission_id = s.id AND r.generation = s.generation
WHERE s.batch_id = %s GROUP BY r.question_id ORDER BY position
"""
CRITERIA_SQL = """
SELECT r.question_id, c.value ->> 'criterion_id' AS criterion_id, count(*) AS graded,
       avg((c.value ->> 'points')::double precision) AS mean_points,
       max((c.value ->> 'max_points')::double precision) AS max_points
FROM submissions s JOIN grading_results r ON r.submission_id = s.id AND r.generation = s.generation,
     jsonb_array_elements(r.result -> 'criteria') c
WHERE s.batch_id = %s GROUP BY 1, 2
ORDER BY avg((c.value ->> 'points')::double precision / nullif((c.value ->> 'max_points')::double precision, 0)), 1, 2
"""


class PostgresResults:
    """The official results, by submission and by batch."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def of_submission(self, submission_id: str) -> list[dict[str, Any]]:
        """The submission's question results as plain data, in the exam's order."""
        return [row["result"] for row in await self._postgres.rows(RESULTS_SQL, [submission_id])]

    async def report(self, tenant_id: str, batch_id: str) -> dict[str, Any]:
        """The batch's report, computed from rows; raises `NotFound`."""
        # one snapshot for all parts: the counts equal the rows even while files are still finishing
        async with self._postgres.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            batch = await (await connection.execute(BATCH_SQL, [batch_id, tenant_id])).fetchone()
            if batch is None:
                raise NotFound(f"There is no batch {batch_id}.", field="batch_id")
            states = await (await connection.execute(COUNTS_SQL, [batch_id])).fetchall()
            submissions = await (await connection.execute(SUBMISSIONS_SQL, [batch_id])).fetchall()
            questions = await (await connection.execute(QUESTIONS_SQL, [batch_id])).fetchall()
            criteria = await (await connection.execute(CRITERIA_SQL, [batch_id])).fetchall()
        counts = Counts(**{row["state"]: row["files"] for row in states})
        return {
            "batch": _batch(batch),
            "counts": vars(counts),
            "total_files": counts.total,
            "needs_review": sum(1 for row in submissions if row["needs_review"]),
            "advisory": any(row["advisory"] for row in questions),
            "scores": _distribution([row["score"] for row in submissions if row["score"] is not None]),
            "questions": [_rounded({**row, "position": None}) for row in questions],
            "criteria_hardest_first": [_rounded(row) for row in criteria],
            "submissions": [_submission(row) for row in submissions],
        }


def _batch(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "batch_id": str(row["id"]),
        "tenant_id": row["tenant_id"],
        "name": row["name"],
        "kind": row["kind"],
        "status": row["status"],
        "model": row["model"],
        "generation": row["generation"],
        "exam_id": None if row["exam_id"] is None else str(row["exam_id"]),
        "exam_title": row["title"],
        "rubric_version": row["rubric_version"],
        "created_at": row["created_at"].astimezone(UTC).isoformat(),
        "updated_at": row["updated_at"].astimezone(UTC).isoformat(),
    }


def _submission(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "submission_id": str(row["id"]),
        "name": row["name"],
        "state": row["state"],
        "score": row["score"],
        "max_score": row["max_score"],
        "needs_review": bool(row["needs_review"]),
        "review_reasons": row["review_reasons"],
        "failure_code": row["failure_code"],
        "failure_message": row["failure_message"],
        "questions": row["questions"] or {},
    }


def _distribution(scores: list[float]) -> dict[str, float | int | None]:
    if not scores:
        return {"graded": 0, "mean": None, "median": None, "lowest": None, "highest": None}
    ordered = sorted(scores)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {
        "graded": len(ordered),
        "mean": round(sum(ordered) / len(ordered), 2),
        "median": round(median, 2),
        "lowest": ordered[0],
        "highest": ordered[-1],
    }


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    plain = {
        key: int(value) if key.startswith("tokens_") else value
        for key, value in row.items()
        if value is not None
    }
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in plain.items()}

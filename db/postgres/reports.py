"""A batch's report, computed from rows."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from db.postgres.grading import RESULTS_SQL
from db.postgres.pool import Connection, Postgres
from domain.batch import Counts
from domain.errors import NotFound
from domain.exam import QuestionType
from domain.states import BATCH_MACHINE

#: so many submissions that need a look are in the report; how many more there are is said beside them
QUEUE_LIMIT = 500
#: the longest quote, reason, prompt and description that a report repeats, in characters
TEXT_LIMIT = 1_000
#: with fewer submissions a question's discrimination is noise
DISCRIMINATION_FROM = 10
#: what a human should see before everything that is merely uncertain, most urgent first
URGENT = ("suspected_injection", "quote_not_in_answer", "cannot_assess")
BINS = 10

#: what a batch has cost, in any kind's report
COST_COLUMNS = """
       (SELECT spent_nanodollars FROM ledger_accounts
        WHERE (tenant_id, scope, subject) = (b.tenant_id, 'batch', b.id::text)) AS spent_nanodollars,
       (SELECT sum(open_nanodollars)::bigint FROM ledger_holds
        WHERE batch_id = b.id::text AND state = 'in_doubt') AS settling_nanodollars
"""
BATCH_SQL = f"""
SELECT b.id, b.tenant_id, b.name, b.status, b.kind, b.model, b.generation, b.total_files, b.created_at, b.updated_at,
       b.exam_id, b.rubric_version, e.title, e.language, {COST_COLUMNS}
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
# discrimination: the correlation with the rest of the exam, so that a question is not compared with itself
QUESTIONS_SQL = """
SELECT r.question_id, min(r.position) AS position, min(left(q.prompt, %(text_limit)s)) AS prompt, min(q.type) AS type,
       count(*) AS graded, avg(r.score) AS mean_score, max(r.max_score) AS max_score,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY r.score) AS median_score,
       avg((r.score >= r.max_score)::int)::double precision AS full_share,
       avg((r.score = 0)::int)::double precision AS zero_share,
       count(*) FILTER (WHERE jsonb_array_length(r.result -> 'review_reasons') > 0) AS needs_review,
       CASE WHEN count(*) >= %(discrimination_from)s THEN corr(r.score, s.score - r.score) END AS discrimination,
       bool_or((r.result ->> 'advisory')::boolean) AS advisory,
       sum((r.result ->> 'tokens_in')::bigint) AS tokens_in, sum((r.result ->> 'tokens_out')::bigint) AS tokens_out
FROM submissions s JOIN grading_results r ON r.submission_id = s.id AND r.generation = s.generation
JOIN batches b ON b.id = s.batch_id
LEFT JOIN questions q ON q.exam_id = b.exam_id AND q.question_id = r.question_id
WHERE s.batch_id = %(batch_id)s GROUP BY r.question_id ORDER BY position
"""
# by tenths of confidence, which add up to everything that the report says of criteria
CRITERIA_SQL = """
SELECT of_criteria.*, left(d.description, %(text_limit)s) AS description FROM (
    SELECT b.exam_id, b.rubric_version, r.question_id, c.criterion_id,
           least(width_bucket(c.confidence, 0, 1, %(bins)s), %(bins)s) AS tenth,
           count(*) AS graded, sum(c.points) AS points, max(c.max_points) AS max_points,
           sum(c.confidence) AS confidence, count(*) FILTER (WHERE c.cannot_assess) AS cannot_assess
    FROM submissions s JOIN grading_results r ON r.submission_id = s.id AND r.generation = s.generation
    JOIN batches b ON b.id = s.batch_id,
         jsonb_to_recordset(r.result -> 'criteria') c(criterion_id text, points double precision,
             max_points double precision, confidence double precision, cannot_assess boolean)
    WHERE s.batch_id = %(batch_id)s GROUP BY 1, 2, 3, 4, 5
) of_criteria
LEFT JOIN criteria d ON d.exam_id = of_criteria.exam_id AND d.version = of_criteria.rubric_version
                    AND d.question_id = of_criteria.question_id AND d.criterion_id = of_criteria.criterion_id
"""
QUEUE_SQL = """
SELECT s.id, f.name, s.score, s.max_score,
       min(coalesce(array_position(%(urgent)s::text[], split_part(reason.value, ':', 1)), 100)) AS urgency,
       min(sure.confidence) AS confidence
FROM submissions s JOIN files f ON f.id = s.id
LEFT JOIN grading_results r ON r.submission_id = s.id AND r.generation = s.generation
                           AND jsonb_array_length(r.result -> 'review_reasons') > 0
LEFT JOIN LATERAL jsonb_array_elements_text(r.result -> 'review_reasons') reason ON true
LEFT JOIN LATERAL (SELECT min((c.value ->> 'confidence')::double precision) AS confidence
                   FROM jsonb_array_elements(r.result -> 'criteria') c) sure ON true
WHERE s.batch_id = %(batch_id)s AND s.needs_review
GROUP BY s.id, f.name ORDER BY urgency, confidence NULLS LAST, f.name LIMIT %(queue_limit)s
"""
QUEUED_RESULTS_SQL = """
SELECT r.submission_id, r.result
FROM submissions s JOIN grading_results r ON r.submission_id = s.id AND r.generation = s.generation
WHERE s.id = ANY(%s) AND jsonb_array_length(r.result -> 'review_reasons') > 0 ORDER BY r.position
"""
# json keeps the order of its keys, which jsonb does not
MARKS_SQL = """
SELECT s.id, (
    SELECT json_object_agg(r.question_id || '/' || (c.value ->> 'criterion_id'), json_build_object(
               'points', c.value -> 'points', 'confidence', c.value -> 'confidence', 'quote', c.value -> 'quote'
           ) ORDER BY r.position, c.ordinality)
    FROM grading_results r, jsonb_array_elements(r.result -> 'criteria') WITH ORDINALITY c
    WHERE r.submission_id = s.id AND r.generation = s.generation) AS criteria
FROM batches b JOIN submissions s ON s.batch_id = b.id WHERE b.id = %s AND b.tenant_id = %s
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
            rows = await _read_rows(connection, batch_id)
        counts = Counts(**{row["state"]: row["files"] for row in rows["counts"]})
        submissions, questions = rows["submissions"], [_rounded(row) for row in rows["questions"]]
        scores = [row["score"] for row in submissions if row["score"] is not None]
        return {
            "batch": _batch(batch),
            "counts": vars(counts),
            "total_files": counts.total,
            "needs_review": sum(1 for row in submissions if row["needs_review"]),
            "advisory": any(row["advisory"] for row in questions),
            "scores": _scores(scores),
            "distribution": _distribution(submissions),
            "questions": questions,
            "criteria_hardest_first": _hardest_first(rows["criteria"]),
            "confidence": _confidence(rows["criteria"], questions),
            "review_reasons": _review_reasons(submissions),
            "review_queue": _review_queue(rows["queue"], rows["queued_results"]),
            "failures": _failures(submissions),
            "usage": _usage(batch, questions),
            "timing": timing(batch),
            "submissions": [_submission(row) for row in submissions],
        }

    async def criterion_marks(self, tenant_id: str, batch_id: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Each submission's points, confidence and quote by `question/criterion`, in the exam's order."""
        rows = await self._postgres.rows(MARKS_SQL, [batch_id, tenant_id])
        return {str(row["id"]): row["criteria"] or {} for row in rows}


async def _read_rows(connection: Connection, batch_id: str) -> dict[str, list[dict[str, Any]]]:
    parameters = {
        "batch_id": batch_id,
        "text_limit": TEXT_LIMIT,
        "discrimination_from": DISCRIMINATION_FROM,
        "bins": BINS,
        "urgent": list(URGENT),
        "queue_limit": QUEUE_LIMIT,
    }
    rows = {
        name: await (await connection.execute(sql, parameters)).fetchall()
        for name, sql in (("questions", QUESTIONS_SQL), ("criteria", CRITERIA_SQL), ("queue", QUEUE_SQL))
    }
    rows["counts"] = await (await connection.execute(COUNTS_SQL, [batch_id])).fetchall()
    rows["submissions"] = await (await connection.execute(SUBMISSIONS_SQL, [batch_id])).fetchall()
    queued = [row["id"] for row in rows["queue"]]
    rows["queued_results"] = await (await connection.execute(QUEUED_RESULTS_SQL, [queued])).fetchall()
    return rows


def _batch(row: Mapping[str, Any]) -> dict[str, Any]:
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
        "language": row["language"],
        "rubric_version": row["rubric_version"],
        "created_at": moment_text(row["created_at"]),
        "updated_at": moment_text(row["updated_at"]),
    }


def moment_text(moment: datetime) -> str:
    """RFC 3339, in UTC."""
    return moment.astimezone(UTC).isoformat()


def timing(batch: Mapping[str, Any]) -> dict[str, Any]:
    """From the batch's opening to its end, uploading included; no end while it runs."""
    ended = batch["status"] in BATCH_MACHINE.final
    seconds = (batch["updated_at"] - batch["created_at"]).total_seconds()
    return {
        "opened_at": moment_text(batch["created_at"]),
        "completed_at": moment_text(batch["updated_at"]) if ended else None,
        "duration_seconds": round(seconds, 1) if ended else None,
    }


def _submission(row: Mapping[str, Any]) -> dict[str, Any]:
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


def _scores(scores: Sequence[float]) -> dict[str, float | int | None]:
    if not scores:
        return {"graded": 0, "mean": None, "median": None, "lowest": None, "highest": None}
    return {
        "graded": len(scores),
        "mean": round(statistics.fmean(scores), 2),
        "median": round(statistics.median(scores), 2),
        "lowest": min(scores),
        "highest": max(scores),
    }


def _distribution(submissions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores by tenths of the maximum, and how they spread, in points."""
    graded = [row for row in submissions if row["score"] is not None]
    scores = [row["score"] for row in graded]
    shares = [row["score"] / row["max_score"] for row in graded if row["max_score"]]
    spread = statistics.stdev(scores) if len(scores) > 1 else None
    lower, _, upper = statistics.quantiles(scores, n=4, method="inclusive") if len(scores) > 1 else [None] * 3
    return {
        "bins": _bins(Counter(min(int(share * BINS), BINS - 1) for share in shares)),
        "standard_deviation": _round(spread),
        "lower_quartile": _round(lower),
        "upper_quartile": _round(upper),
    }


def _bins(counts: Mapping[int, int]) -> list[dict[str, Any]]:
    """All tenths from 0 to 1, the last one with its upper end."""
    return [{"from": n / BINS, "to": (n + 1) / BINS, "count": counts.get(n, 0)} for n in range(BINS)]


def _hardest_first(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    places: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        places[row["question_id"], row["criterion_id"]].append(row)
    criteria = [_criterion(*place, tenths) for place, tenths in places.items()]
    return sorted(criteria, key=lambda each: (each["mean_share"], each["question_id"], each["criterion_id"]))


def _criterion(question_id: str, criterion_id: str, tenths: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    graded = sum(row["graded"] for row in tenths)
    mean_points = sum(row["points"] for row in tenths) / graded
    max_points = max(row["max_points"] for row in tenths)
    return {
        "question_id": question_id,
        "criterion_id": criterion_id,
        "description": tenths[0]["description"] or "",
        "graded": graded,
        "mean_points": _round(mean_points),
        "max_points": max_points,
        "mean_share": _round(mean_points / max_points if max_points else 0.0),
        "mean_confidence": _round(sum(row["confidence"] for row in tenths) / graded),
        "cannot_assess": sum(row["cannot_assess"] for row in tenths),
    }


def _confidence(rows: Iterable[Mapping[str, Any]], questions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How sure the criteria of open questions are; rules are always sure and would drown them."""
    closed = {each["question_id"] for each in questions if each["type"] and QuestionType(each["type"]).closed}
    open_ = [row for row in rows if row["question_id"] not in closed]
    counts: Counter[int] = Counter()
    for row in open_:
        counts[row["tenth"] - 1] += row["graded"]
    total = sum(counts.values())
    mean = sum(row["confidence"] for row in open_) / total if total else None
    return {"criteria": total, "mean": _round(mean), "bins": _bins(counts)}


def _review_reasons(submissions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The kinds of reasons, the most frequent first, each with the questions and criteria it is about."""
    places: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    concerned: Counter[str] = Counter()
    for row in submissions:
        reasons = [_parted(reason) for reason in row["review_reasons"]]
        for kind, *place in reasons:
            places[kind][place[0], place[1]] += 1
        concerned.update({kind for kind, *_ in reasons})
    return [
        {
            "kind": kind,
            "count": found.total(),
            "submissions": concerned[kind],
            "places": [
                {"question_id": question_id, "criterion_id": criterion_id or None, "count": count}
                for (question_id, criterion_id), count in found.most_common()
            ],
        }
        for kind, found in sorted(places.items(), key=lambda each: (-each[1].total(), each[0]))
    ]


def _parted(reason: str) -> tuple[str, str, str]:
    """Kind, question and criterion of a reason such as `q6: low_confidence:c3`."""
    question_id, _, what = reason.partition(": ")
    kind, _, criterion_id = what.partition(":")
    return kind, question_id, criterion_id


def _review_queue(
    rows: Sequence[Mapping[str, Any]], results: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    flagged: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for each in results:
        flagged[each["submission_id"]].append(_flagged(each["result"]))
    return [
        {
            "submission_id": str(row["id"]),
            "name": row["name"],
            "score": row["score"],
            "max_score": row["max_score"],
            "urgent": row["urgency"] <= len(URGENT),
            "confidence": _round(row["confidence"]),
            "questions": flagged[row["id"]],
        }
        for row in rows
    ]


def _flagged(result: Mapping[str, Any]) -> dict[str, Any]:
    """A question's reasons with the criteria that they name; all of them where a reason names none."""
    reasons = result["review_reasons"]
    named = {reason.partition(":")[2] for reason in reasons}
    return {
        "question_id": result["question_id"],
        "score": result["score"],
        "max_score": result["max_score"],
        "reasons": reasons,
        "advisory": result.get("advisory", False),
        "criteria": [
            {**each, "reason": each["reason"][:TEXT_LIMIT], "quote": each["quote"][:TEXT_LIMIT]}
            for each in result["criteria"]
            if "" in named or each["criterion_id"] in named
        ],
    }


def _failures(submissions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many files failed by code, with the first one's message."""
    failed = [row for row in submissions if row["failure_code"] is not None]
    first = {row["failure_code"]: row["failure_message"] for row in reversed(failed)}
    counts = Counter(row["failure_code"] for row in failed)
    return [{"code": code, "count": count, "message": first[code]} for code, count in counts.most_common()]


def _usage(batch: Mapping[str, Any], questions: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens of the official results, and all that the ledger has charged for the batch."""
    spent = [(each["tokens_in"], each["tokens_out"]) for each in questions]
    return {
        "tokens_in": sum(tokens for tokens, _ in spent),
        "tokens_out": sum(tokens for _, tokens in spent),
        "cost_nanodollars": batch["spent_nanodollars"] or 0,
        "settling_nanodollars": batch["settling_nanodollars"] or 0,
    }


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: _round(value) for key, value in row.items() if key != "position"}
    return plain | {key: int(value or 0) for key, value in plain.items() if key.startswith("tokens_")}


def _round(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value

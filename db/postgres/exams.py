"""Exams, their questions and the versions of their rubrics."""

from collections import OrderedDict
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from db.postgres.pool import Connection, Postgres
from domain.errors import NotFound
from domain.exam import Criterion, Exam, GradedExample, Question, QuestionType

INSERT_EXAM_SQL = """
INSERT INTO exams (id, tenant_id, title, language) VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO NOTHING
"""
INSERT_QUESTION_SQL = """
INSERT INTO questions (exam_id, question_id, position, type, prompt, points) VALUES (%s, %s, %s, %s, %s, %s)
"""
INSERT_RUBRIC_SQL = """
INSERT INTO rubrics (exam_id, question_id, version, hash, content) VALUES (%s, %s, %s, %s, %s)
"""
INSERT_CRITERION_SQL = """
INSERT INTO criteria (exam_id, question_id, version, criterion_id, position, points, description)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
READ_EXAM_SQL = """
SELECT e.id, e.tenant_id, e.title, e.language, v.version,
       (SELECT jsonb_agg(jsonb_build_object(
                   'id', q.question_id, 'type', q.type, 'prompt', q.prompt, 'points', q.points,
                   'content', r.content,
                   'criteria', (SELECT jsonb_agg(jsonb_build_object(
                                           'id', c.criterion_id, 'points', c.points, 'description', c.description)
                                       ORDER BY c.position)
                                FROM criteria c
                                WHERE (c.exam_id, c.version, c.question_id) = (r.exam_id, r.version, r.question_id)))
               ORDER BY q.position)
        FROM questions q JOIN rubrics r USING (exam_id, question_id)
        WHERE q.exam_id = e.id AND r.version = v.version) AS questions
FROM exams e
CROSS JOIN LATERAL (
    SELECT coalesce(%(version)s::integer, max(version)) AS version FROM rubrics WHERE exam_id = e.id
) v
WHERE e.id = %(exam_id)s
"""
LIST_EXAMS_SQL = """
SELECT id, title, language, count(*) OVER () AS total FROM exams
WHERE tenant_id = %s ORDER BY created_at DESC, id LIMIT %s OFFSET %s
"""
COUNT_EXAMS_SQL = "SELECT count(*) AS total FROM exams WHERE tenant_id = %s"


_VERSIONS_KEPT = 100


class PostgresExams:
    """Exams with their versioned rubrics."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        # a version never changes, so it is read once and not for every submission
        self._versions: OrderedDict[tuple[str, int], Exam] = OrderedDict()

    async def create(self, tenant_id: str, exam: Exam, exam_id: str) -> Exam:
        """Store a new exam with rubric version 1 under that id; one that is there is answered as it is."""
        async with self._postgres.transaction() as connection:
            inserted = await connection.execute(
                INSERT_EXAM_SQL, [exam_id, tenant_id, exam.title, exam.language]
            )
            for position, question in enumerate(exam.questions if inserted.rowcount else ()):
                await _insert_question(connection, exam_id, position, question)
        return await self.read_of_tenant(tenant_id, exam_id)

    async def read(self, exam_id: str, rubric_version: int | None = None) -> Exam:
        """The exam at a rubric version, the newest by default; raises `NotFound`."""
        if rubric_version is None:
            return _exam(await self._row(exam_id, None))
        key = (exam_id, rubric_version)
        if key not in self._versions:
            self._versions[key] = _exam(await self._row(exam_id, rubric_version))
            if len(self._versions) > _VERSIONS_KEPT:
                self._versions.popitem(last=False)
        return self._versions[key]

    async def read_of_tenant(self, tenant_id: str, exam_id: str) -> Exam:
        """The tenant's exam at its newest version; raises `NotFound`."""
        row = await self._row(exam_id, None)
        if row["tenant_id"] != tenant_id:
            raise _no_exam(exam_id)
        return _exam(row)

    async def list_of_tenant(self, tenant_id: str, page: int, page_size: int) -> tuple[list[Exam], int]:
        """One page of exams without their questions, newest first, and how many there are."""
        rows = await self._postgres.rows(LIST_EXAMS_SQL, [tenant_id, page_size, (page - 1) * page_size])
        exams = [Exam(row["title"], (), row["language"], str(row["id"])) for row in rows]
        if rows:
            return exams, rows[0]["total"]
        counted = await self._postgres.row(COUNT_EXAMS_SQL, [tenant_id])
        return [], counted["total"] if counted else 0

    async def _row(self, exam_id: str, version: int | None) -> DictRow:
        row = await self._postgres.row(READ_EXAM_SQL, {"exam_id": exam_id, "version": version})
        if row is None or row["questions"] is None:
            raise _no_exam(exam_id)
        return row


def _no_exam(exam_id: str) -> NotFound:
    return NotFound(f"There is no exam {exam_id}.", field="exam_id")


async def _insert_question(connection: Connection, exam_id: str, position: int, question: Question) -> None:
    await connection.execute(
        INSERT_QUESTION_SQL,
        [exam_id, question.id, position, question.type, question.prompt, question.points],
    )
    content = {
        "answer": question.answer,
        "accept": list(question.accept),
        "tolerance": question.tolerance,
        "unit": question.unit,
        "reference": question.reference,
        # as lists: jsonb sorts the keys of an object
        "options": [list(each) for each in question.options],
        "guidelines": question.guidelines,
        "examples": [
            {
                "answer": each.answer,
                "points": each.points,
                "by_criterion": [list(one) for one in each.by_criterion],
            }
            for each in question.examples
        ],
    }
    await connection.execute(
        INSERT_RUBRIC_SQL, [exam_id, question.id, 1, question.rubric_hash(), Jsonb(content)]
    )
    for place, criterion in enumerate(question.criteria):
        await connection.execute(
            INSERT_CRITERION_SQL,
            [exam_id, question.id, 1, criterion.id, place, criterion.points, criterion.description],
        )


def _exam(row: DictRow) -> Exam:
    return Exam(
        title=row["title"],
        questions=tuple(_question(each) for each in row["questions"]),
        language=row["language"],
        id=str(row["id"]),
        rubric_version=row["version"],
    )


def _question(document: dict[str, Any]) -> Question:
    content = document["content"]
    return Question(
        id=document["id"],
        type=QuestionType(document["type"]),
        prompt=document["prompt"],
        # jsonb writes 1.0 as 1, and the rubric's hash tells them apart
        points=float(document["points"]),
        criteria=tuple(
            Criterion(each["id"], float(each["points"]), each["description"]) for each in document["criteria"]
        ),
        answer=content["answer"],
        accept=tuple(content["accept"]),
        tolerance=float(content["tolerance"]),
        unit=content["unit"],
        reference=content["reference"],
        # rows that are older than these fields do not have them
        options=tuple((letter, text) for letter, text in content.get("options", [])),
        guidelines=content.get("guidelines", ""),
        examples=tuple(_example(each) for each in content.get("examples", [])),
    )


def _example(document: dict[str, Any]) -> GradedExample:
    by_criterion = tuple((criterion_id, float(points)) for criterion_id, points in document["by_criterion"])
    return GradedExample(document["answer"], float(document["points"]), by_criterion)

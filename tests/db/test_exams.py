"""Exams in Postgres: what was stored is what is read, down to the hash of the rubric."""

import json
import math
from uuid import uuid4

import pytest

from db.postgres.exams import PostgresExams
from db.postgres.pool import Postgres
from db.postgres.tenants import PostgresKeys
from domain.exam import Exam, read_exam
from tests.builders import EXAM

#: numbers whose text jsonb, or a careless reader, would change
POINTS = [1, 1.0, 0.1, 1 / 3, 0.1 + 0.2, 1e-7, 5e-324, 123.456789, -0.0, 0]


def whole_exam(tolerance: object = 0.5) -> Exam:
    """An exam that has everything that an exam can have."""
    criteria = [{"id": f"c{n}", "points": points or 1, "description": "."} for n, points in enumerate(POINTS)]
    marks = {f"c{n}": points for n, points in enumerate(POINTS)}
    questions = [
        {
            "id": "q1",
            "type": "multiple_choice",
            "prompt": "Which?",
            "points": 1,
            "options": {"C": "3.10", "B": "Zwei", "A": "一"},
            "answer": "A, C",
            "accept": ["B"],
        },
        {
            "id": "q2",
            "type": "numeric",
            "prompt": "?",
            "points": 1 / 3,
            "answer": "20",
            "tolerance": tolerance,
            "unit": "ms",
        },
        {
            "id": "q3",
            "type": "essay",
            "prompt": "?",
            "points": 200,
            "criteria": [*criteria, {"id": "rest", "points": 200, "description": "."}],
            "reference": ".",
            "guidelines": "宽松 – be kind.",
            "examples": [
                {"answer": "By criterion.", "points": {**marks, "rest": 0.3}},
                *({"answer": f"In all {points}.", "points": points} for points in POINTS),
            ],
        },
    ]
    return read_exam({"title": "Whole", "questions": questions})


@pytest.mark.parametrize("tolerance", [0, -0.0, 2**53, 1e-320, "2%", "0.1%", 1e15, math.pi])
async def test_an_exam_and_the_hashes_of_its_rubrics_survive_being_stored(
    postgres: Postgres, tolerance: object
) -> None:
    await PostgresKeys(postgres).ensure("local", "Local", "test", "assay_stage_local")
    exam = whole_exam(tolerance)
    stored = await PostgresExams(postgres).create("local", exam, str(uuid4()))
    assert stored.questions == exam.questions
    hashes = [question.rubric_hash() for question in exam.questions]
    # equal numbers are not enough: the hash is over their text, and 1 is not 1.0 there
    assert [question.rubric_hash() for question in stored.questions] == hashes
    rows = await postgres.rows(
        "SELECT hash FROM rubrics JOIN questions USING (exam_id, question_id)"
        " WHERE exam_id = %s ORDER BY position",
        [stored.id],
    )
    assert [row["hash"] for row in rows] == hashes


async def test_a_rubric_from_before_options_guidelines_and_examples_is_read_as_it_was(
    postgres: Postgres,
) -> None:
    await PostgresKeys(postgres).ensure("local", "Local", "test", "assay_stage_local")
    exam, exam_id = read_exam(EXAM), str(uuid4())
    async with postgres.transaction() as connection:
        await connection.execute("INSERT INTO exams VALUES (%s, 'local', %s, 'en')", [exam_id, exam.title])
        for position, each in enumerate(exam.questions):
            key = [exam_id, each.id]
            old = {
                name: getattr(each, name) for name in ("answer", "accept", "tolerance", "unit", "reference")
            }
            await connection.execute(
                "INSERT INTO questions VALUES (%s, %s, %s, %s, %s, %s)",
                [*key, position, each.type, each.prompt, each.points],
            )
            await connection.execute(
                "INSERT INTO rubrics VALUES (%s, %s, 1, %s, %s)", [*key, each.rubric_hash(), json.dumps(old)]
            )
            for place, one in enumerate(each.criteria):
                await connection.execute(
                    "INSERT INTO criteria VALUES (%s, %s, 1, %s, %s, %s, %s)",
                    [*key, one.id, place, one.points, one.description],
                )
    read = await PostgresExams(postgres).read(exam_id)
    assert read.questions == exam.questions
    assert [each.rubric_hash() for each in read.questions] == [each.rubric_hash() for each in exam.questions]

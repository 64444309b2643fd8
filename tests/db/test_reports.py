"""The report's sums are the rows'."""

import asyncio

import pytest

from db.postgres.batches import PostgresBatchRuns
from db.postgres.grading import PostgresAssessments, PostgresSubmissions, PostgresThreads
from db.postgres.pool import Postgres
from db.postgres.reports import PostgresResults
from domain.errors import NotFound
from domain.exam import Exam
from tests.db.stage import a_start, an_assessment, scattered_files

SHARES = (1.0, 0.5, 0.25, 0.0)


async def grade(postgres: Postgres, exam: Exam, file_id: str, share: float, *, finish: bool = True) -> None:
    start = a_start(file_id)
    epoch = await PostgresThreads(postgres).begin(start)
    assert epoch is not None
    review = ("low_confidence:c1",) if share == 0.25 else ()
    found = an_assessment(exam, share, review)
    await PostgresSubmissions(postgres).propose(file_id, 1, start.thread_id, epoch, found)
    await PostgresAssessments(postgres).record(file_id, 1, start.thread_id)
    if finish:
        await PostgresAssessments(postgres).finish(file_id, 1)


async def test_the_sums_of_a_report_equal_its_rows(postgres: Postgres, exam: Exam) -> None:
    batch, files = await scattered_files(postgres, 6, exam)
    for file_id, share in zip(files, SHARES, strict=False):
        await grade(postgres, exam, file_id, share)
    # one that fails, and one whose results are retracted
    await PostgresThreads(postgres).begin(a_start(files[4]))
    await PostgresAssessments(postgres).fail(files[4], 1, "broken", "It broke.")
    await grade(postgres, exam, files[5], 1.0, finish=False)
    await PostgresAssessments(postgres).erase(files[5], 1, "undone")
    report = await PostgresResults(postgres).report("local", batch.id)
    rows = report["submissions"]
    graded = [row for row in rows if row["score"] is not None]
    assert len(rows) == report["total_files"] == sum(report["counts"].values()) == 6
    counts = {state: count for state, count in report["counts"].items() if count}
    assert counts == {"completed": 4, "failed": 1, "running": 1}
    assert [row["score"] for row in graded] == [4.0, 2.0, 1.0, 0.0]
    for row in graded:
        assert sum(row["questions"].values()) == row["score"]
        assert row["max_score"] == exam.max_points
    scores = report["scores"]
    assert scores == {"graded": 4, "mean": 1.75, "median": 1.5, "lowest": 0.0, "highest": 4.0}
    for question in report["questions"]:
        of_rows = [row["questions"][question["question_id"]] for row in graded]
        assert question["graded"] == len(of_rows)
        assert question["mean_score"] == pytest.approx(sum(of_rows) / len(of_rows), abs=0.001)
    assert report["needs_review"] == sum(row["needs_review"] for row in rows) == 1
    assert graded[2]["review_reasons"] == ["q1: low_confidence:c1", "q2: low_confidence:c1"]
    assert rows[4]["failure_code"] == "broken"
    assert (rows[5]["score"], rows[5]["questions"]) == (None, {})


async def test_a_report_is_of_one_moment_while_files_end(postgres: Postgres, exam: Exam) -> None:
    batch, files = await scattered_files(postgres, 8, exam)
    grading = asyncio.gather(*(grade(postgres, exam, each, 1.0) for each in files))
    while not grading.done():
        report = await PostgresResults(postgres).report("local", batch.id)
        states = [row["state"] for row in report["submissions"]]
        assert report["counts"] == {state: states.count(state) for state in report["counts"]}
        assert report["scores"]["graded"] == sum(row["score"] is not None for row in report["submissions"])
        for question in report["questions"]:
            assert question["graded"] == report["scores"]["graded"]
    await grading
    assert (await PostgresBatchRuns(postgres).open_barrier(batch.id)).completed == 8


async def test_a_report_of_nothing_graded_has_no_scores(postgres: Postgres, exam: Exam) -> None:
    batch, _ = await scattered_files(postgres, 2, exam)
    report = await PostgresResults(postgres).report("local", batch.id)
    assert report["scores"] == {"graded": 0, "mean": None, "median": None, "lowest": None, "highest": None}
    assert (report["questions"], report["criteria_hardest_first"]) == ([], [])
    with pytest.raises(NotFound):
        await PostgresResults(postgres).report("local", exam.id)


async def test_the_results_of_a_submission_are_in_the_exams_order(postgres: Postgres, exam: Exam) -> None:
    _, (file_id,) = await scattered_files(postgres, 1, exam)
    assert await PostgresResults(postgres).of_submission(file_id) == []
    await grade(postgres, exam, file_id, 0.5)
    results = await PostgresResults(postgres).of_submission(file_id)
    assert [each["question_id"] for each in results] == [question.id for question in exam.questions]

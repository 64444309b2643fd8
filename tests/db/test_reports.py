"""The report's sums are the rows'."""

import asyncio
import statistics
from dataclasses import replace

import pytest

from db.postgres import reports
from db.postgres.batches import PostgresBatchRuns
from db.postgres.grading import PostgresAssessments, PostgresSubmissions, PostgresThreads
from db.postgres.pool import Postgres
from db.postgres.reports import TEXT_LIMIT, PostgresResults
from domain.assessment import Assessment
from domain.errors import NotFound
from domain.exam import Exam
from tests.db.stage import a_start, an_assessment, scattered_files

SHARES = (1.0, 0.5, 0.25, 0.0)


async def grade(postgres: Postgres, exam: Exam, file_id: str, share: float, *, finish: bool = True) -> str:
    """Answers the thread."""
    start = a_start(file_id)
    epoch = await PostgresThreads(postgres).begin(start)
    assert epoch is not None
    review = ("low_confidence:c1",) if share == 0.25 else ()
    found = an_assessment(exam, share, review)
    await PostgresSubmissions(postgres).propose(file_id, 1, start.thread_id, epoch, found)
    await PostgresAssessments(postgres).record(file_id, 1, start.thread_id)
    if finish:
        await PostgresAssessments(postgres).finish(file_id, 1)
    return start.thread_id


async def test_the_sums_of_a_report_equal_its_rows(postgres: Postgres, exam: Exam) -> None:
    batch, files = await scattered_files(postgres, 6, exam)
    for file_id, share in zip(files, SHARES, strict=False):
        await grade(postgres, exam, file_id, share)
    # one that fails, and one whose results are retracted
    await PostgresThreads(postgres).begin(a_start(files[4]))
    await PostgresAssessments(postgres).fail(files[4], 1, "broken", "It broke.")
    thread_id = await grade(postgres, exam, files[5], 1.0, finish=False)
    await PostgresAssessments(postgres).erase(files[5], 1, thread_id, "undone")
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


async def test_the_distribution_and_the_questions_say_what_the_rows_say(
    postgres: Postgres, exam: Exam
) -> None:
    batch, files = await scattered_files(postgres, 12, exam)
    shares = [0.0, *(n / 10 for n in range(1, 11)), 1.0]
    for file_id, share in zip(files, shares, strict=True):
        await grade(postgres, exam, file_id, share)

    report = await PostgresResults(postgres).report("local", batch.id)
    scores = [row["score"] for row in report["submissions"]]

    distribution = report["distribution"]
    assert [each["count"] for each in distribution["bins"]] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 3]
    assert distribution["standard_deviation"] == round(statistics.stdev(scores), 3)
    lower, _, upper = statistics.quantiles(scores, n=4, method="inclusive")
    assert (distribution["lower_quartile"], distribution["upper_quartile"]) == (
        round(lower, 3),
        round(upper, 3),
    )
    for question in report["questions"]:
        points = [row["questions"][question["question_id"]] for row in report["submissions"]]
        rest = [score - own for score, own in zip(scores, points, strict=True)]
        assert question["median_score"] == pytest.approx(statistics.median(points), abs=0.001)
        assert question["full_share"] == pytest.approx(2 / 12, abs=0.001)
        assert question["zero_share"] == pytest.approx(1 / 12, abs=0.001)
        assert question["discrimination"] == pytest.approx(statistics.correlation(points, rest), abs=0.001)
        assert question["prompt"] == exam.question(question["question_id"]).prompt
    for each in report["criteria_hardest_first"]:
        assert each["mean_share"] == pytest.approx(sum(shares) / 12, abs=0.001)
        assert each["description"]
    # only the open question's criteria: rules are always sure
    assert report["confidence"]["criteria"] == 24
    assert [each["count"] for each in report["confidence"]["bins"]] == [0] * 9 + [24]


async def test_few_submissions_say_nothing_of_discrimination(postgres: Postgres, exam: Exam) -> None:
    batch, files = await scattered_files(postgres, 2, exam)
    await grade(postgres, exam, files[0], 1.0)
    report = await PostgresResults(postgres).report("local", batch.id)
    assert {question["discrimination"] for question in report["questions"]} == {None}
    assert report["distribution"]["standard_deviation"] is None


def flagged(exam: Exam, *reasons: str, confidence: float = 0.4) -> Assessment:
    """The open question needs a look for these reasons."""
    first, second = an_assessment(exam, 0.5).questions
    criteria = tuple(replace(each, confidence=confidence, quote="q" * 5_000) for each in second.criteria)
    second = replace(second, review_reasons=reasons, criteria=criteria)
    return replace(an_assessment(exam), questions=(first, second))


async def record(postgres: Postgres, file_id: str, found: Assessment) -> None:
    start = a_start(file_id)
    epoch = await PostgresThreads(postgres).begin(start)
    assert epoch is not None
    await PostgresSubmissions(postgres).propose(file_id, 1, start.thread_id, epoch, found)
    await PostgresAssessments(postgres).record(file_id, 1, start.thread_id)


async def test_the_most_urgent_is_looked_at_first_and_then_the_least_certain(
    postgres: Postgres, exam: Exam
) -> None:
    batch, files = await scattered_files(postgres, 6, exam)
    found = [
        flagged(exam, "low_confidence:c1", confidence=0.4),
        flagged(exam, "low_confidence:c2", "low_confidence:c1", confidence=0.1),
        flagged(exam, "cannot_assess:c1", confidence=0.9),
        flagged(exam, "quote_not_in_answer:c2", confidence=0.9),
        flagged(exam, "low_confidence:c1", "suspected_injection", confidence=1.0),
        an_assessment(exam),
    ]
    for file_id, each in zip(files, found, strict=True):
        await record(postgres, file_id, each)

    report = await PostgresResults(postgres).report("local", batch.id)
    queue = report["review_queue"]

    assert [each["submission_id"] for each in queue] == [files[n] for n in (4, 3, 2, 1, 0)]
    assert [each["urgent"] for each in queue] == [True, True, True, False, False]
    assert [each["confidence"] for each in queue] == [1.0, 0.9, 0.9, 0.1, 0.4]
    concerned = [[mark["criterion_id"] for mark in each["questions"][0]["criteria"]] for each in queue]
    # a reason that names no criterion is about all of them
    assert concerned == [["c1", "c2"], ["c2"], ["c1"], ["c1", "c2"], ["c1"]]
    assert {len(mark["quote"]) for each in queue for mark in each["questions"][0]["criteria"]} == {TEXT_LIMIT}
    kinds = {each["kind"]: (each["count"], each["submissions"]) for each in report["review_reasons"]}
    assert kinds == {
        "low_confidence": (4, 3),
        "cannot_assess": (1, 1),
        "quote_not_in_answer": (1, 1),
        "suspected_injection": (1, 1),
    }
    assert report["review_reasons"][0]["places"][0] == {
        "question_id": "q2",
        "criterion_id": "c1",
        "count": 3,
    }
    assert [each["needs_review"] for each in report["questions"]] == [0, 5]


async def test_the_queue_has_a_stated_end(
    postgres: Postgres, exam: Exam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "QUEUE_LIMIT", 2)
    batch, files = await scattered_files(postgres, 3, exam)
    for file_id in files:
        await record(postgres, file_id, flagged(exam, "low_confidence:c1"))
    report = await PostgresResults(postgres).report("local", batch.id)
    assert (len(report["review_queue"]), report["needs_review"]) == (2, 3)


async def test_failures_are_counted_by_code(postgres: Postgres, exam: Exam) -> None:
    batch, files = await scattered_files(postgres, 3, exam)
    for file_id, code in zip(files, ("broken", "torn", "broken"), strict=True):
        await PostgresThreads(postgres).begin(a_start(file_id))
        await PostgresAssessments(postgres).fail(file_id, 1, code, f"{file_id} is {code}.")
    report = await PostgresResults(postgres).report("local", batch.id)
    assert report["failures"] == [
        {"code": "broken", "count": 2, "message": f"{files[0]} is broken."},
        {"code": "torn", "count": 1, "message": f"{files[1]} is torn."},
    ]


async def test_criterion_marks_are_the_tenants_own_and_in_the_exams_order(
    postgres: Postgres, exam: Exam
) -> None:
    batch, files = await scattered_files(postgres, 2, exam)
    await grade(postgres, exam, files[0], 0.5)
    marks = await PostgresResults(postgres).criterion_marks("local", batch.id)
    places = [f"{question.id}/{each.id}" for question in exam.questions for each in question.criteria]
    assert list(marks[files[0]]) == places
    assert marks[files[0]]["q2/c1"] == {"points": 1.0, "confidence": 1.0, "quote": ""}
    assert marks[files[1]] == {}
    assert await PostgresResults(postgres).criterion_marks("stranger", batch.id) == {}


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

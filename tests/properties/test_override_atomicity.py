"""Property 9: a human's marks are official everywhere, or nowhere."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.overrides import OverrideActivities, RetractInput
from db.postgres.grading import PostgresAssessments
from db.postgres.overrides import PostgresOverrides
from db.postgres.pool import Postgres
from db.postgres.reports import PostgresResults
from db.redis.cache import RedisReportCache, RedisResultCache
from db.redis.connection import RedisLink
from db.redis.progress import RedisBell
from domain.errors import PostgresUnavailable
from domain.exam import Exam
from domain.identity import override_saga_id
from domain.overrides import Override
from runtime.embedded import Addresses
from tests.db.stage import RunningFile, a_connection, opened_postgres, proposed_file, stored_exam
from tests.properties.test_compensation import ANY, FAULT_SQL, TRIGGER_SQL, Fault, Struck
from workflows.saga import Saga

STEPS = ("apply_override", "cache_override", "tell_override")
#: the tables that the saga writes
TABLES = ("saga_transactions", "grading_results", "submissions", "assessments", "progress_events")
FAILURES = (Struck, PostgresUnavailable, psycopg.errors.RaiseException)

OFFICIAL_SQL = """
SELECT s.score, s.max_score, s.needs_review, s.status,
       (SELECT jsonb_agg(r.result ORDER BY r.position) FROM grading_results r
        WHERE (r.submission_id, r.generation) = (s.id, s.generation)) AS results
FROM submissions s WHERE s.id = %s
"""
ENDED_SQL = """
SELECT (SELECT final_status FROM saga_transactions WHERE saga_id = %(saga_id)s) AS saga,
       (SELECT count(*) FILTER (WHERE event_type = 'MarksOverridden')
             - count(*) FILTER (WHERE event_type = 'OverrideRetracted')
        FROM progress_events WHERE data ->> 'override_id' = %(override_id)s) AS told
"""


@dataclass(frozen=True)
class Case:
    """Which question is marked how, which step fails how, and what becomes of its undoing."""

    question: int
    share: float
    step: str | None
    fault: Fault
    #: of the compensations' calls, in order; then they succeed
    undoing: Sequence[Fault]
    #: each compensation that succeeds is made so many times more
    repeated: int
    cached: bool


CASES = st.builds(
    Case,
    st.integers(0, 1),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([None, *STEPS]),
    ANY.filter(lambda fault: fault.table != "files"),
    st.lists(ANY.filter(lambda fault: fault.table != "files"), max_size=3),
    st.integers(0, 2),
    st.booleans(),
)


@dataclass
class Bench:
    """The saga's activities over real stores, and one graded submission."""

    postgres: Postgres = field(repr=False)
    link: RedisLink = field(repr=False)
    exam: Exam = field(repr=False)
    file: RunningFile

    @property
    def activities(self) -> OverrideActivities:
        return OverrideActivities(
            overrides=PostgresOverrides(self.postgres),
            results=PostgresResults(self.postgres),
            cache=RedisResultCache(self.link),
            reports=RedisReportCache(self.link),
            bell=RedisBell(self.link),
        )

    def override(self, case: Case) -> Override:
        question = self.exam.questions[case.question]
        return Override(
            override_id=str(uuid4()),
            tenant_id="local",
            batch_id=self.file.batch_id,
            submission_id=self.file.file_id,
            question_id=question.id,
            reason="Seen by a human.",
            made_by="a key",
            points={each.id: each.points * case.share for each in question.criteria},
        )

    async def official(self) -> dict[str, Any]:
        row = await self.postgres.row(OFFICIAL_SQL, [self.file.file_id])
        assert row is not None
        return row

    async def served(self) -> list[dict[str, Any]] | None:
        ids = [question.id for question in self.exam.questions]
        return await RedisResultCache(self.link).read(self.file.file_id, ids)

    async def warm(self, case: Case) -> None:
        """Cache what is official, results and report, or nothing."""
        results, reports = RedisResultCache(self.link), RedisReportCache(self.link)
        mark = await results.mark(self.file.file_id)
        if case.cached:
            official = await self.official()
            await results.write(self.file.file_id, official["results"], mark)
        mark_of_report = await reports.mark(self.file.batch_id)
        await reports.write(self.file.batch_id, await self.report(), mark=mark_of_report)

    async def report(self) -> dict[str, Any]:
        return await PostgresResults(self.postgres).report("local", self.file.batch_id)

    async def ended(self, override: Override) -> dict[str, Any]:
        saga_id = override_saga_id(override.submission_id, override.override_id)
        row = await self.postgres.row(ENDED_SQL, {"saga_id": saga_id, "override_id": override.override_id})
        assert row is not None
        return row

    async def befall(self, fault: Fault | None, call: Callable[[], Awaitable[object]]) -> None:
        """Make the call, and let the fault strike it."""
        if fault is None:
            await call()
        elif fault.when == "inside":
            await self.postgres.run("INSERT INTO fault VALUES (%s, %s)", [fault.kind, fault.table])
            try:
                await call()
            finally:
                await self.postgres.run("DELETE FROM fault")
        else:
            if fault.when == "after":
                await call()
            raise Struck


@pytest.fixture
async def bench(database_url: str, addresses: Addresses) -> AsyncIterator[Bench]:
    link = RedisLink.to(addresses.redis_url, max_connections=10, timeout_seconds=5)
    async with opened_postgres(database_url) as postgres, await a_connection(database_url) as owner:
        exam = await stored_exam(postgres)
        file = await proposed_file(postgres, exam)
        assessments = PostgresAssessments(postgres)
        await assessments.record(file.file_id, 1, file.thread_id)
        await assessments.finish(file.file_id, 1)
        await owner.set_autocommit(True)
        await owner.execute(FAULT_SQL.encode())
        for table in TABLES:
            await owner.execute(TRIGGER_SQL.format(table).encode())
        yield Bench(postgres, link, exam, file)
    await link.close()


@settings(max_examples=100)
@given(case=CASES)
async def test_an_override_is_official_everywhere_or_nowhere(bench: Bench, case: Case) -> None:
    """
    **功能: architecture-deep-integration, 属性 9: 审核覆盖事务原子性**
    **验证: 需求 4.4**

    Whatever fails at whichever step, and however often a compensation fails or is repeated: either the
    human's marks are official, cached or absent, and told; or everything is as it was, and that is told.
    """
    await bench.warm(case)
    before, override = await bench.official(), bench.override(case)
    undone = await _is_undone(bench, case, override)
    now, served, ended = await bench.official(), await bench.served(), await bench.ended(override)
    cached_report = await RedisReportCache(bench.link).read(bench.file.batch_id)
    assert served in (None, now["results"])
    if undone:
        assert now == before
        assert ended == {"saga": "compensated", "told": 0}
        # what fails before the first step took effect has changed nothing
        assert cached_report is None or cached_report["submissions"] == (await bench.report())["submissions"]
        return
    assert ended == {"saga": "completed", "told": 1}
    assert cached_report is None
    question = bench.exam.questions[case.question]
    marked = now["results"][case.question]
    assert marked["specialist"] == "human"
    assert marked["score"] == pytest.approx(question.points * case.share)
    assert {each["reason"] for each in marked["criteria"]} == {"Seen by a human."}
    assert now["score"] == pytest.approx(sum(each["score"] for each in now["results"]))
    (row,) = (await bench.report())["submissions"]
    assert row["score"] == now["score"]
    newest, *_ = await PostgresOverrides(bench.postgres).list_of_submission("local", bench.file.file_id)
    assert newest.score_before == before["results"][case.question]["score"], "the old mark is kept"


async def _is_undone(bench: Bench, case: Case, override: Override) -> bool:
    """The saga's steps in order, undone when one fails; whether one has."""
    saga, faults, activities = Saga(), list(case.undoing), bench.activities
    retraction = RetractInput(override, "a fault")
    undoing: dict[str, Callable[[], Awaitable[object]]] = {
        "apply_override": lambda: activities.retract_override(retraction),
        "cache_override": lambda: activities.void_override(override),
        "tell_override": lambda: activities.tell_retraction(override),
    }
    for name in STEPS:
        step = _call(activities, name, override)
        struck = bench.befall(case.fault if name == case.step else None, step)
        try:
            await saga.step(struck, undo=_undo(bench, undoing[name], faults, case.repeated))
        except FAILURES:
            if (await bench.ended(override))["saga"] == "completed":
                await step()  # past undoing: the workflow's retry finds it done
                continue
            for _ in case.undoing:
                with suppress(*FAILURES):
                    await saga.compensate()
            await saga.compensate()
            return True
    return False


def _call(activities: OverrideActivities, name: str, override: Override) -> Callable[[], Awaitable[object]]:
    return lambda: getattr(activities, name)(override)


def _undo(
    bench: Bench, call: Callable[[], Awaitable[object]], faults: list[Fault], repeated: int
) -> Callable[[], Awaitable[object]]:
    async def undo() -> None:
        await bench.befall(faults.pop(0) if faults else None, call)
        for _ in range(repeated):
            await call()

    return undo

"""Property 8: a saga that fails leaves no trace of itself, in the cache as in the tables."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.persist import PersistActivities, PersistInput
from db.postgres.grading import PostgresAssessments, PostgresSubmissions, PostgresThreads
from db.postgres.pool import Postgres
from db.postgres.reports import PostgresResults
from db.redis.barrier import RedisBarrier
from db.redis.cache import RedisResultCache
from db.redis.connection import RedisLink
from db.redis.progress import RedisBell
from domain.errors import PostgresUnavailable
from domain.exam import Exam
from domain.identity import saga_id
from runtime.embedded import Addresses
from tests.db.stage import (
    RunningFile,
    a_connection,
    a_start,
    an_assessment,
    opened_postgres,
    proposed_file,
    stored_exam,
)
from workflows.saga import Saga

STEPS = ("record_results", "cache_results", "ring_bell")
UNDOING = ("erase_results", "evict_results", "ring_retraction")
#: the tables that the saga writes
TABLES = ("saga_transactions", "grading_results", "submissions", "files", "progress_events")

# In front of a table's first write: refused, or the connection is lost. The transaction is the saga's own.
FAULT_SQL = """
CREATE TABLE fault (kind text NOT NULL, struck text NOT NULL);
CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    planned fault;
BEGIN
    SELECT * INTO planned FROM fault WHERE struck = TG_TABLE_NAME;
    IF planned.kind = 'refused' THEN
        RAISE EXCEPTION 'a fault at %', TG_TABLE_NAME;
    ELSIF planned.kind = 'cut' THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
    RETURN NULL;
END $$;
"""
TRIGGER_SQL = """
CREATE TRIGGER strikes AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH STATEMENT EXECUTE FUNCTION strike();
"""
# what readers see of a submission
SEEN_SQL = """
SELECT s.generation, s.status, s.score, s.max_score, s.needs_review,
       (SELECT jsonb_agg(r.result ORDER BY r.position) FROM grading_results r
        WHERE r.submission_id = s.id AND r.generation = s.generation) AS results
FROM submissions s WHERE s.id = %s
"""
ENDED_SQL = """
SELECT f.state, (SELECT final_status FROM saga_transactions WHERE saga_id = %(saga_id)s) AS saga,
       (SELECT count(*) FROM grading_results r
        WHERE r.submission_id = f.id AND r.generation = f.generation) AS results,
       (SELECT count(*) FILTER (WHERE event_type = 'FileAssessed')
             - count(*) FILTER (WHERE event_type = 'AssessmentRetracted')
        FROM progress_events e WHERE e.file_id = f.id) AS told
FROM files f WHERE f.id = %(file_id)s
"""
RERUN_SQL = "UPDATE files SET generation = 2, state = 'queued' WHERE id = %s"


@dataclass(frozen=True)
class Fault:
    """What befalls one call: before it, after it has taken effect, or inside its transaction."""

    when: str
    kind: str = ""
    table: str = ""


INSIDE = st.builds(Fault, st.just("inside"), st.sampled_from(["refused", "cut"]), st.sampled_from(TABLES))
ANY = st.one_of(st.just(Fault("before")), st.just(Fault("after")), INSIDE)


@dataclass(frozen=True)
class Case:
    """How far the saga comes, what becomes of its undoing, and what was there before."""

    step: str
    fault: Fault
    #: of the compensations' calls, in order; then they succeed
    undoing: Sequence[Fault]
    #: each compensation that succeeds is made so many times more
    repeated: int
    older: bool
    older_is_cached: bool


CASES = st.builds(
    Case,
    st.sampled_from(STEPS),
    ANY,
    st.lists(ANY, max_size=3),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)


class Struck(Exception):
    """A fault outside of every transaction."""


@dataclass
class Bench:
    """The saga's activities over real stores, with faults to order."""

    postgres: Postgres = field(repr=False)
    link: RedisLink = field(repr=False)
    exam: Exam = field(repr=False)

    @property
    def activities(self) -> PersistActivities:
        return PersistActivities(
            assessments=PostgresAssessments(self.postgres),
            results=PostgresResults(self.postgres),
            cache=RedisResultCache(self.link),
            barrier=RedisBarrier(self.link),
            bell=RedisBell(self.link),
        )

    async def file(self, case: Case) -> tuple[RunningFile, int]:
        """A file whose assessment waits, in its first generation or after a graded one, and which it is."""
        file = await proposed_file(self.postgres, self.exam)
        if not case.older:
            return file, 1
        for step in STEPS:
            await getattr(self.activities, step)(_input(file, 1))
        if not case.older_is_cached:
            await self.activities.evict_results(_input(file, 1))
        await self.postgres.run(RERUN_SQL, [file.file_id])
        start = a_start(file.file_id, generation=2)
        epoch = await PostgresThreads(self.postgres).begin(start)
        assert epoch is not None
        await PostgresSubmissions(self.postgres).propose(
            file.file_id,
            2,
            start.thread_id,
            epoch,
            an_assessment(self.exam, share=0.5, review=["low_confidence"]),
        )
        return RunningFile(file.batch_id, file.file_id, start.thread_id, epoch), 2

    async def seen(self, file: RunningFile) -> dict[str, Any] | None:
        return await self.postgres.row(SEEN_SQL, [file.file_id])

    async def cached(self, file: RunningFile) -> list[list[dict[str, Any]] | None]:
        cache = RedisResultCache(self.link)
        return [await cache.read(file.file_id, [question.id]) for question in self.exam.questions]

    async def ended(self, file: RunningFile, generation: int) -> dict[str, Any] | None:
        wanted = {"file_id": file.file_id, "saga_id": saga_id(file.file_id, generation)}
        return await self.postgres.row(ENDED_SQL, wanted)

    async def completed(self, argument: PersistInput) -> bool:
        """Whether the saga is, although its last step did not get to say so."""
        query = "SELECT final_status AS status FROM saga_transactions WHERE saga_id = %s"
        row = await self.postgres.row(query, [saga_id(argument.file_id, argument.generation)])
        return row is not None and row["status"] == "completed"

    async def befall(self, fault: Fault | None, call: Callable[[], Awaitable[object]]) -> None:
        """Make the call, and let the fault strike it."""
        if fault is None:
            await call()
            return
        if fault.when == "inside":
            await self.postgres.run("INSERT INTO fault VALUES (%s, %s)", [fault.kind, fault.table])
            try:
                await call()
            finally:
                await self.postgres.run("DELETE FROM fault")
            return
        if fault.when == "after":
            await call()
        raise Struck


@pytest.fixture
async def bench(database_url: str, addresses: Addresses) -> AsyncIterator[Bench]:
    link = RedisLink.to(addresses.redis_url, max_connections=10, timeout_seconds=5)
    async with opened_postgres(database_url) as postgres, await a_connection(database_url) as owner:
        await owner.set_autocommit(True)
        await owner.execute(FAULT_SQL.encode())
        for table in TABLES:
            await owner.execute(TRIGGER_SQL.format(table).encode())
        yield Bench(postgres, link, await stored_exam(postgres))
    await link.close()


def _input(file: RunningFile, generation: int) -> PersistInput:
    return PersistInput("local", file.batch_id, file.file_id, generation, file.thread_id, reason="a fault")


#: what a fault looks like to the workflow
FAILURES = (Struck, PostgresUnavailable, psycopg.errors.RaiseException)


@settings(max_examples=100)
@given(case=CASES)
async def test_a_saga_that_fails_leaves_everything_as_it_was(bench: Bench, case: Case) -> None:
    """
    **功能: architecture-deep-integration, 属性 8: 补偿操作正确性**
    **验证: 需求 4.2**

    Whatever fails at whichever step, and however often a compensation fails or is repeated: entries in the
    cache are gone or the older ones, and so are results and submission.
    """
    file, generation = await bench.file(case)
    before, cached_before = await bench.seen(file), await bench.cached(file)
    failed = await _run(bench, case, _input(file, generation))
    ended = await bench.ended(file, generation)
    assert ended is not None
    if not failed:
        # a fault inside struck a table that this step does not write
        assert ended == {"state": "completed", "saga": "completed", "results": 2, "told": generation}
        assert all(await bench.cached(file))
        return
    assert ended == {"state": "running", "saga": "compensated", "results": 0, "told": generation - 1}
    now = await bench.seen(file)
    if case.older:
        assert now == before
    else:
        assert now is not None
        assert (now["score"], now["max_score"], now["results"]) == (None, None, None)
        assert now["status"] in ("pending", "retracted")
    for entry, older in zip(await bench.cached(file), cached_before, strict=True):
        assert entry in (None, older)


async def _run(bench: Bench, case: Case, argument: PersistInput) -> bool:
    """The saga's steps in order, undone when one fails; whether one has."""
    saga, faults = Saga(), list(case.undoing)
    for name, undoing in zip(STEPS, UNDOING, strict=True):
        step = bench.befall(case.fault if name == case.step else None, _call(bench, name, argument))
        try:
            await saga.step(step, undo=_undo(bench, undoing, argument, faults, case.repeated))
        except FAILURES:
            if await bench.completed(argument):
                # past undoing: the workflow's retry finds it done
                await _call(bench, name, argument)()
                continue
            await _compensate(saga, case.undoing)
            return True
    return False


def _call(bench: Bench, name: str, argument: PersistInput) -> Callable[[], Awaitable[object]]:
    return lambda: getattr(bench.activities, name)(argument)


def _undo(
    bench: Bench, name: str, argument: PersistInput, faults: list[Fault], repeated: int
) -> Callable[[], Awaitable[object]]:
    async def undo() -> None:
        call = _call(bench, name, argument)
        await bench.befall(faults.pop(0) if faults else None, call)
        for _ in range(repeated):
            await call()

    return undo


async def _compensate(saga: Saga, faults: Sequence[Fault]) -> None:
    """As the workflow: what cannot be undone is tried again, here as often as there are faults."""
    for _ in range(len(faults)):
        with suppress(*FAILURES):
            await saga.compensate()
    await saga.compensate()

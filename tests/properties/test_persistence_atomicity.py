"""Property 4: results and status are one write, wherever the fault strikes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.postgres.grading import PostgresAssessments
from db.postgres.pool import Postgres
from domain.errors import AssayError, EpochSuperseded, PostgresUnavailable, SagaStepRefused
from domain.exam import Exam
from tests.db.stage import (
    RunningFile,
    a_connection,
    opened_postgres,
    proposed_file,
    stored_exam,
    waiting_for_a_lock,
)

_TABLES = ("saga_transactions", "grading_results", "submissions", "progress_events")
#: before and after each write of `record`; the upsert of the results counts as an insert and an update
_MOMENTS = 10
#: the advisory lock at which the triggers below wait
_GATE = 4242

FAULTS_SQL = """
CREATE TABLE fault (kind text NOT NULL, moment integer NOT NULL);
CREATE SEQUENCE moments;
CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_at bigint := nextval('moments');
    planned fault;
BEGIN
    SELECT * INTO planned FROM fault WHERE moment = now_at;
    IF planned.kind = 'error' THEN
        RAISE EXCEPTION 'a fault at moment %', now_at;
    ELSIF planned.kind = 'death' THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    ELSIF planned.kind IN ('cut', 'cancel') THEN
        PERFORM pg_advisory_xact_lock(4242);
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION strike_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM fault WHERE kind = 'commit') THEN
        RAISE EXCEPTION 'a fault at the commit';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON submissions DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION strike_at_commit();
"""
TRIGGER_SQL = """
CREATE TRIGGER {when}_{table} {when} INSERT OR UPDATE OR DELETE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION strike();
"""

# everything that `record` writes, in one snapshot
WRITTEN_SQL = """
SELECT s.status, s.score,
       (SELECT count(*) FROM grading_results r WHERE r.submission_id = s.id) AS results,
       (SELECT sum(score) FROM grading_results r WHERE r.submission_id = s.id) AS points,
       (SELECT final_status FROM saga_transactions WHERE saga_id = s.id || '/g1/persist') AS saga,
       (SELECT count(*) FROM progress_events e WHERE e.file_id = s.id AND event_type = 'FileAssessed') AS told
FROM submissions s WHERE s.id = %s
"""
NOTHING = {"status": "pending", "score": None, "results": 0, "points": None, "saga": None, "told": 0}
EVERYTHING = {"status": "graded", "score": 4.0, "results": 2, "points": 4.0, "saga": "pending", "told": 1}


@dataclass
class Bench:
    """A database with faults to order, and a gate to hold a transaction at."""

    postgres: Postgres = field(repr=False)
    exam: Exam = field(repr=False)
    gate: psycopg.AsyncConnection[Any] = field(repr=False)

    @property
    def assessments(self) -> PostgresAssessments:
        return PostgresAssessments(self.postgres)

    async def written(self, file: RunningFile) -> dict[str, Any] | None:
        return await self.postgres.row(WRITTEN_SQL, [file.file_id])

    async def plan(self, kind: str, moment: int) -> None:
        """Let a fault of this kind strike at this moment of the next transaction."""
        await self.heal()
        await self.postgres.run("INSERT INTO fault VALUES (%s, %s)", [kind, moment])
        await self.postgres.row("SELECT setval('moments', 1, false)")

    async def heal(self) -> None:
        await self.postgres.run("DELETE FROM fault")

    async def record(self, file: RunningFile) -> object:
        return await self.assessments.record(file.file_id, 1, file.thread_id)

    async def interrupted(self, file: RunningFile, kind: str, moment: int) -> None:
        """`record` held at the moment, and cut off or cancelled there."""
        await self.gate.execute("SELECT pg_advisory_lock(%s)", [_GATE])
        task = asyncio.create_task(self.record(file))
        try:
            pid = await waiting_for_a_lock(self.postgres)
            if kind == "cut":
                await self.postgres.row("SELECT pg_terminate_backend(%s)", [pid])
                with pytest.raises(PostgresUnavailable):
                    await task
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        finally:
            await self.gate.execute("SELECT pg_advisory_unlock(%s)", [_GATE])


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with opened_postgres(database_url) as postgres, await a_connection(database_url) as gate:
        await gate.set_autocommit(True)
        await gate.execute(FAULTS_SQL.encode())
        for table, when in product(_TABLES, ("before", "after")):
            await gate.execute(TRIGGER_SQL.format(table=table, when=when).encode())
        yield Bench(postgres, await stored_exam(postgres), gate)


@settings(max_examples=100)
@given(
    kind=st.sampled_from(["error", "death", "cut", "cancel", "commit"]),
    moment=st.integers(1, _MOMENTS),
)
async def test_results_and_status_are_written_together_or_not_at_all(
    bench: Bench, kind: str, moment: int
) -> None:
    """
    **功能: architecture-deep-integration, 属性 4: 持久化事务原子性**
    **验证: 需求 2.2, 2.3**

    Results and submission status are written together or not at all.
    """
    file = await proposed_file(bench.postgres, bench.exam)
    assert await bench.written(file) == NOTHING
    await bench.plan(kind, moment)
    if kind in ("cut", "cancel"):
        await bench.interrupted(file, kind, moment)
    else:
        with pytest.raises((AssayError, psycopg.errors.RaiseException)):
            await bench.record(file)
    assert await bench.written(file) == NOTHING
    await bench.heal()
    await bench.record(file)
    assert await bench.written(file) == EVERYTHING


async def test_the_faults_strike_every_write_of_record(bench: Bench) -> None:
    file = await proposed_file(bench.postgres, bench.exam)
    await bench.plan("none", 0)
    await bench.record(file)
    row = await bench.postgres.row("SELECT last_value FROM moments")
    assert row == {"last_value": _MOMENTS}


@settings(max_examples=100)
@given(steps=st.lists(st.sampled_from(["record", "erase", "finish", "fail", "cancel"]), max_size=7))
async def test_steps_and_compensations_in_any_order_leave_nothing_half(
    bench: Bench, steps: list[str]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 4: 持久化事务原子性**
    **验证: 需求 2.2, 2.3**

    Whatever order and repetition of steps and compensations: the saga is completed with all its
    results or compensated with none, and a file that ended is not contradicted by its saga.
    """
    file = await proposed_file(bench.postgres, bench.exam)
    await bench.heal()
    calls = {
        "record": lambda: bench.record(file),
        "erase": lambda: bench.assessments.erase(file.file_id, 1, file.thread_id, "tried"),
        "finish": lambda: bench.assessments.finish(file.file_id, 1),
        "fail": lambda: bench.assessments.fail(file.file_id, 1, "broken", "It broke."),
        "cancel": lambda: bench.assessments.cancel(file.file_id, 1),
    }
    was = await _whole(bench, file)
    for step in steps:
        try:
            await calls[step]()
        except SagaStepRefused:
            # refused is unchanged
            assert was == await _whole(bench, file)
        now = await _whole(bench, file)
        # a repetition at once changes nothing, whether it is refused or not
        with contextlib.suppress(SagaStepRefused):
            await calls[step]()
        assert await _whole(bench, file) == now
        if was["saga"] == "compensated":
            assert now["saga"] == "compensated"
            assert now["results"] == 0
        was = now


async def _whole(bench: Bench, file: RunningFile) -> dict[str, Any]:
    written = await bench.written(file)
    row = await bench.postgres.row(
        "SELECT state, (SELECT count(*) FROM progress_events WHERE batch_id = f.batch_id) AS events"
        " FROM files f WHERE id = %s",
        [file.file_id],
    )
    assert written is not None
    assert row is not None
    graded = written["status"] == "graded"
    assert graded == (written["results"] == 2) == (written["saga"] in ("pending", "completed"))
    assert not graded or written["score"] == written["points"] == 4.0
    assert graded or written["results"] == 0
    assert written["score"] is None or graded
    if row["state"] == "completed":
        assert written["saga"] == "completed", "a file completed without its results"
    return {**written, **row}


async def test_a_compensated_saga_refuses_a_late_record(bench: Bench) -> None:
    file = await proposed_file(bench.postgres, bench.exam)
    await bench.assessments.erase(file.file_id, 1, file.thread_id, "too slow")
    with pytest.raises(SagaStepRefused, match="compensated"):
        await bench.record(file)
    assert await bench.written(file) == NOTHING | {"saga": "compensated"}


async def test_an_old_generation_is_erased_without_touching_the_new_one(bench: Bench) -> None:
    file = await proposed_file(bench.postgres, bench.exam)
    await bench.record(file)
    # a re-run: the same submission is graded in generation 2
    await bench.postgres.run(
        "UPDATE grading_results SET generation = 2 WHERE submission_id = %s", [file.file_id]
    )
    await bench.postgres.run("UPDATE submissions SET generation = 2 WHERE id = %s", [file.file_id])
    await bench.assessments.erase(file.file_id, 1, file.thread_id, "a straggler")
    written = await bench.written(file)
    assert written is not None
    assert (written["status"], written["results"]) == ("graded", 2)


async def test_two_records_at_once_write_once(bench: Bench) -> None:
    file = await proposed_file(bench.postgres, bench.exam)
    first, second = await asyncio.gather(bench.record(file), bench.record(file))
    assert first == second
    assert await bench.written(file) == EVERYTHING


async def test_a_run_that_another_one_has_followed_erases_nothing(bench: Bench) -> None:
    file = await proposed_file(bench.postgres, bench.exam)
    await bench.record(file)
    before = await bench.written(file)
    with pytest.raises(EpochSuperseded):
        await bench.assessments.erase(file.file_id, 1, "the run before the reset", "a straggler")
    assert await bench.written(file) == before

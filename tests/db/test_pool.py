"""The Postgres pool: bounded, never waiting for ever, healed without a restart."""

import asyncio
import time

import psycopg
import pytest

from db.postgres.batches import PostgresBatches, PostgresBatchRuns
from db.postgres.grading import PostgresAssessments
from db.postgres.pool import Postgres, open_pool
from domain.batch import BatchKind, BatchOpening
from domain.errors import NotFound, PoolExhausted, PostgresUnavailable
from domain.exam import Exam
from domain.states import BatchState
from tests.db.stage import (
    a_connection,
    add_files,
    opened_postgres,
    pending_batch,
    running_file,
    until,
    waiting_for_a_lock,
)

KILL_SQL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = %s AND pid <> pg_backend_pid()
"""
ASLEEP_SQL = """
SELECT 1 AS one FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'
"""


async def test_an_exhausted_pool_is_said_within_the_acquire_timeout(session_database_url: str) -> None:
    async with opened_postgres(session_database_url, max_size=2, acquire_timeout_seconds=0.2) as small:
        async with small.connection(), small.connection():
            began = time.monotonic()
            with pytest.raises(PoolExhausted):
                await small.ping()
            assert time.monotonic() - began < 4
        await small.ping()


async def test_a_full_queue_is_refused_at_once(session_database_url: str) -> None:
    async with opened_postgres(
        session_database_url, max_size=1, acquire_timeout_seconds=30, queue_limit=1
    ) as small:
        async with small.connection():
            waiting = asyncio.create_task(small.ping())
            await until(lambda: _queued(small, 1))
            with pytest.raises(PoolExhausted):
                await small.ping()
        await waiting


async def _queued(postgres: Postgres, count: int) -> bool:
    return postgres.pool.get_stats().get("requests_waiting", 0) == count


async def test_connections_come_back_whatever_happens_in_the_block(session_database_url: str) -> None:
    async with opened_postgres(session_database_url, max_size=2) as small:
        for _ in range(3):
            with pytest.raises(psycopg.errors.UndefinedTable):
                await small.row("SELECT * FROM nowhere")
            with pytest.raises(ZeroDivisionError):
                async with small.transaction():
                    raise ZeroDivisionError
            sleeping = asyncio.create_task(small.row("SELECT pg_sleep(60)"))
            await until(lambda: small.row(ASLEEP_SQL))
            sleeping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeping
        await asyncio.gather(*(small.ping() for _ in range(10)))
        assert small.pool.get_stats()["pool_size"] <= 2


@pytest.mark.parametrize("checked", [True, False])
async def test_killed_connections_are_replaced_without_a_restart(
    session_database_url: str, checked: bool
) -> None:
    name = f"killed-{checked}"
    async with opened_postgres(session_database_url, max_size=3, check_on_acquire=checked, name=name) as pool:
        await asyncio.gather(*(pool.row("SELECT pg_sleep(0.01)") for _ in range(3)))
        async with opened_postgres(session_database_url) as other:
            await other.rows(KILL_SQL, [name])
            # a backend says that it ends before it is gone
            await until(lambda: _are_gone(other, name))
        if checked:
            # the caller that cannot retry notices nothing
            await asyncio.gather(*(pool.ping() for _ in range(3)))
        else:
            await until(lambda: _answers(pool))
        assert await pool.row("SELECT 1 AS one") == {"one": 1}


async def _are_gone(postgres: Postgres, name: str) -> bool:
    left = await postgres.row("SELECT 1 AS one FROM pg_stat_activity WHERE application_name = %s", [name])
    return left is None


async def _answers(postgres: Postgres) -> bool:
    try:
        await postgres.ping()
    except PostgresUnavailable:
        return False
    return True


async def test_a_connection_cut_in_mid_statement_is_unavailability(postgres: Postgres, exam: Exam) -> None:
    file = await running_file(postgres, exam)
    async with postgres.transaction() as holding:
        await holding.execute("SELECT 1 FROM files WHERE id = %s FOR UPDATE", [file.file_id])
        failing = asyncio.create_task(PostgresAssessments(postgres).cancel(file.file_id, 1))
        pid = await waiting_for_a_lock(postgres)
        await postgres.row("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(PostgresUnavailable) as raised:
            await failing
    assert raised.value.retryable


async def test_a_closed_pool_is_unavailability(session_database_url: str) -> None:
    async with opened_postgres(session_database_url) as closed:
        pass
    with pytest.raises(PostgresUnavailable):
        await closed.ping()


async def test_a_server_that_is_away_does_not_hold_its_callers(session_database_url: str) -> None:
    nowhere = session_database_url.rpartition("@")[0] + "@127.0.0.1:1/nowhere"
    pool = open_pool(nowhere, min_size=0, max_size=1, acquire_timeout_seconds=0.2, check_on_acquire=False)
    await pool.open(wait=False)
    with pytest.raises(PostgresUnavailable):
        await Postgres(pool).ping()
    await pool.close()


@pytest.mark.parametrize("text", ["nonsense", "", "00000000-0000-0000-0000-00000000000g", "1; DROP"])
async def test_what_is_no_id_is_not_found(postgres: Postgres, text: str) -> None:
    with pytest.raises(NotFound):
        await PostgresBatches(postgres).read("local", text)


async def test_a_batch_is_ended_while_its_files_write_events(
    postgres: Postgres, exam: Exam, session_database_url: str
) -> None:
    """The batch's lock must not wait for a file's, and the file's event for the batch's: a deadlock."""
    file = await running_file(postgres, exam)
    async with await a_connection(session_database_url) as saga:
        await saga.execute("SELECT 1 FROM files WHERE id = %s FOR UPDATE", [file.file_id])
        ending = asyncio.create_task(
            PostgresBatchRuns(postgres).end_early(file.batch_id, BatchState.CANCELLED, None)
        )
        await waiting_for_a_lock(postgres)
        await saga.execute("SET lock_timeout = '500ms'")
        await saga.execute(
            "INSERT INTO progress_events (batch_id, event_type) VALUES (%s, 'FileAssessed')", [file.batch_id]
        )
        await saga.commit()
    assert (await ending).cancelled == 1


async def test_windows_and_a_cancellation_at_once_do_not_deadlock(postgres: Postgres, exam: Exam) -> None:
    runs = PostgresBatchRuns(postgres)
    for _ in range(5):
        batch = await pending_batch(postgres, exam)
        # names in one order and ordinals in the other than the rows'
        await add_files(postgres, batch, [f"{n:03}" for n in reversed(range(40))])
        await PostgresBatches(postgres).complete("local", batch.id)
        await runs.begin_scattering(batch.id)
        await asyncio.gather(
            runs.queue_window(batch.id, 1, 40),
            runs.queue_window(batch.id, 1, 20),
            runs.end_early(batch.id, BatchState.CANCELLED, None),
        )
        counts = await runs.end_early(batch.id, BatchState.CANCELLED, None)
        assert counts.cancelled == 40


async def test_an_opening_is_repeated_under_its_id_without_a_second_batch(
    postgres: Postgres, exam: Exam
) -> None:
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam)
    opening = BatchOpening(BatchKind.GRADING, exam_id=exam.id)
    again = await asyncio.gather(*(batches.open("local", opening, "0" * 32, batch.id) for _ in range(3)))
    assert again == [batch] * 3
    told = await postgres.rows("SELECT 1 AS one FROM progress_events WHERE batch_id = %s", [batch.id])
    assert len(told) == 1

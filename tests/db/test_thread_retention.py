"""Threads are kept whole, then their last checkpoint, then nothing; never less of what is still wanted."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from db.postgres.checkpoints import FencedPostgresSaver
from db.postgres.pool import Postgres
from db.postgres.threads import PostgresThreadRetention, Retention
from runtime.resources import SystemClock
from tests.db.purse import HeldClock
from tests.db.stage import RunningFile, opened_postgres, running_file

RETENTION = Retention(history_days=7, latest_days=30)


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(database_url) as opened:
        yield opened


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock(SystemClock().now())


async def thread_of(postgres: Postgres, checkpoints: int = 3) -> RunningFile:
    """A running file whose agent has saved so many checkpoints, each with a value of its own."""
    file = await running_file(postgres)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    config = {"configurable": {"thread_id": file.thread_id, "checkpoint_ns": ""}}
    for number in range(checkpoints):
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"results": [number]}
        checkpoint["channel_versions"] = {"results": str(number)}
        config = await saver.aput(config, checkpoint, {"step": number}, {"results": str(number)})
        await saver.aput_writes(config, [("results", [number])], "task")
    return file


async def end(postgres: Postgres, file: RunningFile, state: str = "completed") -> None:
    await postgres.run("UPDATE files SET state = %s WHERE id = %s", [state, file.file_id])
    await postgres.run("UPDATE batches SET status = 'completed' WHERE id = %s", [file.batch_id])


async def left(postgres: Postgres, file: RunningFile) -> tuple[int, int, int, str]:
    row = await postgres.row(
        """SELECT (SELECT count(*) FROM checkpoints WHERE thread_id = %(id)s) AS checkpoints,
                  (SELECT count(*) FROM checkpoint_blobs WHERE thread_id = %(id)s) AS blobs,
                  (SELECT count(*) FROM checkpoint_writes WHERE thread_id = %(id)s) AS writes,
                  (SELECT kept FROM agent_threads WHERE thread_id = %(id)s) AS kept""",
        {"id": file.thread_id},
    )
    assert row is not None
    return row["checkpoints"], row["blobs"], row["writes"], row["kept"]


async def test_a_thread_is_whole_then_its_last_checkpoint_then_gone(
    postgres: Postgres, clock: HeldClock
) -> None:
    file, retention = await thread_of(postgres), PostgresThreadRetention(postgres, clock, RETENTION)
    await end(postgres, file)
    clock.pass_(timedelta(days=6).total_seconds())
    assert await retention.prune() == 0
    assert await left(postgres, file) == (3, 3, 3, "history")
    clock.pass_(timedelta(days=2).total_seconds())
    assert await retention.prune() == 1
    assert await retention.prune() == 0
    assert await left(postgres, file) == (1, 1, 1, "latest")
    last = await FencedPostgresSaver(postgres.pool, file.epoch).aget_tuple(
        {"configurable": {"thread_id": file.thread_id}}
    )
    assert last is not None
    assert last.checkpoint["channel_values"] == {"results": [2]}
    clock.pass_(timedelta(days=30).total_seconds())
    assert await retention.prune() == 1
    assert await retention.prune() == 0
    assert await left(postgres, file) == (0, 0, 0, "nothing")


async def test_failed_files_and_open_batches_keep_everything(postgres: Postgres, clock: HeldClock) -> None:
    failed, running = await thread_of(postgres), await thread_of(postgres)
    await end(postgres, failed, "failed")
    clock.pass_(timedelta(days=400).total_seconds())
    assert await PostgresThreadRetention(postgres, clock, RETENTION).prune() == 0
    assert await left(postgres, failed) == await left(postgres, running) == (3, 3, 3, "history")


async def test_a_thread_that_is_long_over_goes_in_one_step(postgres: Postgres, clock: HeldClock) -> None:
    file = await thread_of(postgres)
    await end(postgres, file)
    clock.pass_(timedelta(days=400).total_seconds())
    assert await PostgresThreadRetention(postgres, clock, RETENTION).prune() == 1
    assert await left(postgres, file) == (0, 0, 0, "nothing")


async def test_the_thread_of_a_diagnosis_is_kept_until_its_batch_has_ended(
    postgres: Postgres, clock: HeldClock
) -> None:
    file = await thread_of(postgres)
    await postgres.run(
        "UPDATE agent_threads SET file_id = NULL, batch_id = %s WHERE thread_id = %s",
        [file.batch_id, file.thread_id],
    )
    retention = PostgresThreadRetention(postgres, clock, RETENTION)
    clock.pass_(timedelta(days=31).total_seconds())
    assert await retention.prune() == 0, "it may be paused, and go on"
    await postgres.run("UPDATE batches SET status = 'completed' WHERE id = %s", [file.batch_id])
    await postgres.run("UPDATE batches SET updated_at = now() WHERE id = %s", [file.batch_id])
    assert await retention.prune() == 1
    assert await left(postgres, file) == (0, 0, 0, "nothing")

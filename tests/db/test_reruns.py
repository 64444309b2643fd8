"""Re-runs and forks in Postgres: what they copy, what they refuse, how large ones are cut into windows."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from db.postgres.batches import PostgresBatches, PostgresBatchRuns
from db.postgres.checkpoints import FencedPostgresSaver
from db.postgres.grading import PostgresAssessments, PostgresThreads
from db.postgres.pool import Postgres
from db.postgres.reruns import PostgresReruns
from db.postgres.thread_history import PostgresThreadHistory
from db.postgres.threads import PostgresThreadRetention, Retention
from domain.batch import Batch
from domain.errors import EpochSuperseded, InvalidInput, NotFound, NothingToRerun
from domain.ports import AssessmentStart, Stretch
from domain.states import BatchState, FileState
from domain.threads import ForkPlace
from runtime.resources import SystemClock
from tests.db.purse import HeldClock
from tests.db.stage import RunningFile, a_start, events_of, opened_postgres, running_file, scattered_files


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(database_url) as opened:
        yield opened


async def failed_file(postgres: Postgres, steps: int = 3) -> tuple[RunningFile, list[str]]:
    """A file that failed after so many steps, in a batch that has ended; its checkpoints, oldest first."""
    file = await running_file(postgres)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    config = {"configurable": {"thread_id": file.thread_id, "checkpoint_ns": ""}}
    ids = []
    for number in range(steps):
        checkpoint = empty_checkpoint()
        values = {"results": {"q1": number}, "answer": "the same", f"branch:to:node-{number}": None}
        checkpoint["channel_values"] = values
        versions = {
            "results": f"{number:06x}.a",
            "answer": "000000.a",
            f"branch:to:node-{number}": f"{number:06x}.b",
        }
        checkpoint["channel_versions"] = versions
        changed = versions if number == 0 else {"results": versions["results"]}
        config = await saver.aput(config, checkpoint, {"step": number}, changed)
        await saver.aput_writes(config, [("results", {"q1": number + 1})], f"task-{number}")
        ids.append(checkpoint["id"])
    await PostgresAssessments(postgres).fail(file.file_id, 1, "broken", "It broke.")
    await PostgresBatchRuns(postgres).end_early(file.batch_id, BatchState.FAILED, None)
    return file, ids


def again(file: RunningFile, generation: int = 2) -> AssessmentStart:
    return a_start(file.file_id, generation=generation)


async def stored(postgres: Postgres, thread_id: str, table: str) -> list[str]:
    column = {"checkpoint_blobs": "channel || ' ' || version", "checkpoint_writes": "task_id"}.get(
        table, "checkpoint_id"
    )
    rows = await postgres.rows(
        f"SELECT {column} AS name FROM {table} WHERE thread_id = %s ORDER BY 1",  # noqa: S608  # ours
        [thread_id],
    )
    return [row["name"] for row in rows]


async def test_a_fork_copies_what_led_to_its_checkpoint_and_nothing_more(postgres: Postgres) -> None:
    file, ids = await failed_file(postgres)
    await PostgresReruns(postgres).fork("local", file.batch_id, ForkPlace(step=1))
    start = again(file)
    assert await PostgresThreads(postgres).begin(start) == 1
    assert await stored(postgres, start.thread_id, "checkpoints") == ids[:2]
    assert await stored(postgres, start.thread_id, "checkpoint_blobs") == [
        "results 000000.a",
        "results 000001.a",
    ]
    # what the step after the chosen checkpoint had written is left out: it runs again
    assert await stored(postgres, start.thread_id, "checkpoint_writes") == ["task-0"]
    newest = await FencedPostgresSaver(postgres.pool, 1).aget_tuple(
        {"configurable": {"thread_id": start.thread_id}}
    )
    assert newest is not None
    assert newest.checkpoint["channel_values"]["results"] == {"q1": 1}
    assert newest.pending_writes == []
    thread = await postgres.row(
        "SELECT forked_thread_id, forked_checkpoint_id FROM agent_threads WHERE thread_id = %s",
        [start.thread_id],
    )
    assert thread == {"forked_thread_id": file.thread_id, "forked_checkpoint_id": ids[1]}
    listed = {
        each.thread_id: each.forked_thread_id
        for each in await PostgresThreadHistory(postgres).checkpoints(file.file_id)
    }
    assert listed == {start.thread_id: file.thread_id, file.thread_id: None}
    # the next attempt finds the thread begun, and what it has saved since is not touched
    await postgres.run(
        "DELETE FROM checkpoints WHERE checkpoint_id = %s AND thread_id = %s", [ids[0], start.thread_id]
    )
    assert await PostgresThreads(postgres).begin(start) == 2
    assert await stored(postgres, start.thread_id, "checkpoints") == ids[1:2]


async def test_the_next_rerun_forgets_where_the_last_one_was_forked(postgres: Postgres) -> None:
    file, _ = await failed_file(postgres)
    reruns = PostgresReruns(postgres)
    await reruns.fork("local", file.batch_id, ForkPlace(node="node-1"))
    await PostgresBatchRuns(postgres).end_early(file.batch_id, BatchState.FAILED, None, generation=2)
    await reruns.retry_failed("local", file.batch_id)
    start = again(file, generation=3)
    await PostgresThreads(postgres).begin(start)
    assert await stored(postgres, start.thread_id, "checkpoints") == []


async def test_an_earlier_generation_owns_no_thread_and_ends_no_batch(postgres: Postgres) -> None:
    file, _ = await failed_file(postgres)
    await PostgresReruns(postgres).retry_failed("local", file.batch_id)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    with pytest.raises(EpochSuperseded):
        await saver.adelete_thread(file.thread_id)
    before = await PostgresBatches(postgres).submission("local", file.file_id)
    saga = PostgresAssessments(postgres)
    assert await PostgresThreads(postgres).begin(a_start(file.file_id, file.thread_id)) is None
    await saga.fail(file.file_id, 1, "late", "Too late.")
    await saga.cancel(file.file_id, 1)
    await PostgresBatchRuns(postgres).end_early(file.batch_id, BatchState.FAILED, "late", generation=1)
    assert await PostgresBatches(postgres).submission("local", file.file_id) == before
    assert (await PostgresBatches(postgres).read("local", file.batch_id)).state is BatchState.SCATTERING


async def test_a_pruned_checkpoint_is_refused_when_it_is_asked_for(postgres: Postgres) -> None:
    file, ids = await failed_file(postgres)
    # failed files keep everything: only one that was graded since is pruned
    await postgres.run("UPDATE files SET state = 'completed' WHERE id = %s", [file.file_id])
    clock = HeldClock(SystemClock().now())
    clock.pass_(timedelta(days=8).total_seconds())
    await PostgresThreadRetention(postgres, clock, Retention(history_days=7, latest_days=30)).prune()
    history, reruns = PostgresThreadHistory(postgres), PostgresReruns(postgres)
    before = await PostgresBatches(postgres).read("local", file.batch_id)
    with pytest.raises(NotFound, match="pruned"):
        await history.read(file.file_id, ids[0])
    with pytest.raises(NotFound, match="pruned"):
        await reruns.fork("local", file.batch_id, ForkPlace(step=0), [file.file_id])
    assert await PostgresBatches(postgres).read("local", file.batch_id) == before
    (left,) = await history.checkpoints(file.file_id)
    assert (left.checkpoint_id, left.nodes, left.next_nodes) == (ids[2], (), ("node-2",))
    place = ForkPlace(checkpoint_id=ids[2])
    assert (await reruns.fork("local", file.batch_id, place, [file.file_id])).generation == 2


async def test_a_fork_whose_checkpoint_is_gone_all_the_same_starts_afresh_and_says_so(
    postgres: Postgres,
) -> None:
    file, _ = await failed_file(postgres)
    await PostgresReruns(postgres).fork("local", file.batch_id, ForkPlace(step=1))
    await postgres.run("DELETE FROM checkpoints")
    assert await PostgresThreads(postgres).begin(again(file)) == 1
    events = await events_of(postgres, file.batch_id)
    assert "AgentRestarted" in [each["event_type"] for each in events]


@pytest.mark.parametrize("stated", [{}, {"step": 1, "node": "x"}, {"checkpoint_id": "x", "step": 0}])
def test_a_place_is_stated_in_one_way(stated: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        ForkPlace(**stated)  # type: ignore[arg-type]  # that is the point


async def ended(postgres: Postgres, files: int, failed: list[int]) -> Batch:
    """A batch of so many files, of which those with these ordinals failed."""
    batch, _ = await scattered_files(postgres, files)
    await postgres.run("UPDATE files SET state = 'completed' WHERE batch_id = %s", [batch.id])
    await postgres.run(
        "UPDATE files SET state = 'failed' WHERE batch_id = %s AND ordinal = ANY(%s)", [batch.id, failed]
    )
    await postgres.run("UPDATE batches SET status = 'partial' WHERE id = %s", [batch.id])
    return batch


async def test_what_has_ended_makes_no_windows_of_its_own(postgres: Postgres) -> None:
    batch = await ended(postgres, 12, [3, 4, 9, 10, 11])
    await PostgresReruns(postgres).retry_failed("local", batch.id)
    runs = PostgresBatchRuns(postgres)
    planned = await runs.stretches(batch.id, 2)
    assert planned == [
        Stretch(1, 8, 2, {"completed": 6}),
        Stretch(9, 10, 2, {}),
        Stretch(11, 12, 1, {"completed": 1}),
    ]
    window = await runs.queue_window(batch.id, 1, 8)
    assert (len(window.file_ids), window.ended) == (2, {"completed": 6})
    # a reset plans the same windows, however far their files are
    await PostgresAssessments(postgres).cancel(window.file_ids[0], 2)
    assert [(each.first, each.last, each.again) for each in await runs.stretches(batch.id, 2)] == [
        (each.first, each.last, each.again) for each in planned
    ]


async def test_a_file_that_is_gone_on_with_keeps_its_marks_until_it_has_new_ones(postgres: Postgres) -> None:
    file, _ = await failed_file(postgres)
    await postgres.run("UPDATE files SET state = 'completed' WHERE id = %s", [file.file_id])
    await postgres.run("UPDATE submissions SET status = 'graded', score = 3 WHERE id = %s", [file.file_id])
    await PostgresReruns(postgres).fork("local", file.batch_id, ForkPlace(step=0), [file.file_id])
    kept = await PostgresBatches(postgres).submission("local", file.file_id)
    assert (kept.state, kept.generation, kept.score) == (FileState.QUEUED, 2, 3)


async def test_a_batch_of_nothing_but_graded_files_has_nothing_to_run_again(postgres: Postgres) -> None:
    batch = await ended(postgres, 2, [])
    before = await PostgresBatches(postgres).read("local", batch.id)
    with pytest.raises(NothingToRerun):
        await PostgresReruns(postgres).retry_failed("local", batch.id)
    assert await PostgresBatches(postgres).read("local", batch.id) == before

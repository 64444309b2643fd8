"""Properties 16, 17 and 18: what a checkpoint stores, how it comes back, how often a save is tried."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint

from db.postgres.checkpoints import RETRY_SECONDS, FencedPostgresSaver
from db.postgres.pool import Postgres
from domain.errors import CheckpointNotSaved, PostgresUnavailable
from domain.exam import Exam
from tests.db.stage import RunningFile, a_start, opened_postgres, running_file, stored_exam
from tests.properties.drawing import drawn

MEBIBYTE = 1024**2
CHANNELS = ("plan", "results", "notes", "stage")

#: compresses well, so that it costs the tests little
LARGE = st.integers(0, 9).map(lambda digit: str(digit) * (MEBIBYTE + 1))
SMALL = st.text("abcß光", max_size=40) | st.lists(st.integers(0, 99), max_size=5) | st.none()
VALUE = st.one_of(SMALL, SMALL, SMALL, st.text("xyz", min_size=300, max_size=400), LARGE)
#: what each step of a run changes
STEPS = st.lists(st.dictionaries(st.sampled_from(CHANNELS), VALUE, max_size=3), min_size=1, max_size=5)

Steps = list[dict[str, Any]]
SEEN_SQL = """
SELECT checkpoint_id, is_compressed, is_delta, base_checkpoint_id, data_size_bytes
FROM langgraph_checkpoints WHERE thread_id = %s ORDER BY checkpoint_id
"""


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(database_url) as opened:
        yield opened


@pytest.fixture
async def exam(postgres: Postgres) -> Exam:
    return await stored_exam(postgres)


class Thread:
    """One run's thread: its steps as they are saved, and what each of them was."""

    def __init__(self, saver: FencedPostgresSaver, thread_id: str) -> None:
        self.saver = saver
        self.thread_id = thread_id
        self.saved: list[Checkpoint] = []
        self.changed: list[dict[str, Any]] = []
        self._config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}

    async def save(self, steps: Steps) -> None:
        values: dict[str, Any] = {}
        versions: dict[str, Any] = {}
        for number, changed in enumerate(steps):
            values = {**values, **changed}
            new = {name: self.saver.get_next_version(versions.get(name), None) for name in changed}
            versions = {**versions, **new}
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"], checkpoint["channel_versions"] = values, versions
            self._config = await self.saver.aput(self._config, checkpoint, {"step": number}, new)
            self.saved.append(checkpoint)
            self.changed.append(changed)


async def thread_of(postgres: Postgres, file: RunningFile, steps: Steps) -> Thread:
    """A thread of a run of its own, which has saved these steps."""
    thread = Thread(FencedPostgresSaver(postgres.pool, 1), a_start(file.file_id).thread_id)
    await postgres.run(
        "INSERT INTO agent_threads (thread_id, workflow_id) VALUES (%s, 'property')", [thread.thread_id]
    )
    await thread.save(steps)
    return thread


async def test_a_small_change_stores_a_delta_and_a_large_value_is_compressed(
    postgres: Postgres, exam: Exam
) -> None:
    """
    **功能: architecture-deep-integration, 属性 16: 检查点存储效率**
    **验证: 需求 9.1, 9.3**

    A checkpoint stores what changed and refers to the rest; over 1 MiB is compressed; both restore exactly.
    """
    file = await running_file(postgres, exam)

    async def prove(steps: Steps) -> None:
        thread = await thread_of(postgres, file, steps)
        seen = await postgres.rows(SEEN_SQL, [thread.thread_id])
        earlier: dict[str, Any] = {}
        for number, (row, checkpoint) in enumerate(zip(seen, thread.saved, strict=True)):
            kept = set(earlier) - set(thread.changed[number])
            assert row["is_delta"] == bool(kept)
            assert row["base_checkpoint_id"] == (thread.saved[number - 1]["id"] if kept else None)
            values = checkpoint["channel_values"]
            large = [name for name, value in values.items() if len(str(value)) > MEBIBYTE]
            assert row["is_compressed"] == bool(large)
            # what did not change is not stored again, and what is large is stored small
            stored = sum(len(str(value)) for name, value in values.items() if name not in {*kept, *large})
            assert row["data_size_bytes"] < 8 * stored + 20_000
            earlier = values
        found = await thread.saver.aget_tuple({"configurable": {"thread_id": thread.thread_id}})
        assert found is not None
        assert found.checkpoint["channel_values"] == thread.saved[-1]["channel_values"]

    await asyncio.gather(*(prove(each) for each in drawn(STEPS)))


async def test_a_historical_checkpoint_restores_the_state_as_it_was_saved(
    postgres: Postgres, exam: Exam
) -> None:
    """
    **功能: architecture-deep-integration, 属性 17: 历史检查点恢复**
    **验证: 需求 9.2**

    Each checkpoint of a thread can be read as it was, whatever was saved after it, and in a copy of it, too.
    """
    file = await running_file(postgres, exam)

    async def prove(steps: Steps) -> None:
        thread = await thread_of(postgres, file, steps)
        copy = await thread_of(postgres, file, [])
        await copy.saver.acopy_thread(thread.thread_id, copy.thread_id)
        for each in (thread, copy):
            for checkpoint in thread.saved:
                place = {
                    "thread_id": each.thread_id,
                    "checkpoint_ns": "",
                    "checkpoint_id": checkpoint["id"],
                }
                found = await each.saver.aget_tuple({"configurable": place})
                assert found is not None
                assert found.checkpoint["channel_values"] == checkpoint["channel_values"]
                assert found.checkpoint["channel_versions"] == checkpoint["channel_versions"]

    await asyncio.gather(*(prove(each) for each in drawn(STEPS)))


class FailingSaver(FencedPostgresSaver):
    """A saver to which Postgres does not answer the first times."""

    def __init__(self, postgres: Postgres, failures: int) -> None:
        super().__init__(postgres.pool, 1, retry_seconds=[0.0] * len(RETRY_SECONDS))
        self.failures = failures
        self.tries = 0

    async def _execute(self, sql: str, parameters: dict[str, Any]) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise PostgresUnavailable("The connection was cut.")
        await super()._execute(sql, parameters)


async def test_a_save_is_tried_three_times_more_and_then_given_up(postgres: Postgres, exam: Exam) -> None:
    """
    **功能: architecture-deep-integration, 属性 18: 检查点保存重试**
    **验证: 需求 9.4**

    A failing save is tried at most three times more; after that it is a condition for a human.
    """
    file = await running_file(postgres, exam)

    async def prove(case: tuple[int, Steps]) -> None:
        failures, steps = case
        thread = await thread_of(postgres, file, [])
        saver = thread.saver = FailingSaver(postgres, failures)
        try:
            await thread.save(steps[:1])
        except CheckpointNotSaved:
            assert failures > len(RETRY_SECONDS)
            assert saver.tries == len(RETRY_SECONDS) + 1
            assert thread.saved == []
        else:
            assert failures <= len(RETRY_SECONDS)
            assert saver.tries == failures + 1
        found = await saver.aget_tuple({"configurable": {"thread_id": thread.thread_id}})
        assert (found is None) == (failures > len(RETRY_SECONDS))

    await asyncio.gather(*(prove(each) for each in drawn(st.tuples(st.integers(0, 6), STEPS))))


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["next", "fork"]), min_size=1, max_size=30))
def test_versions_grow_as_text_and_two_forks_never_share_one(moves: list[str]) -> None:
    saver = FencedPostgresSaver.__new__(FencedPostgresSaver)
    version, seen = saver.get_next_version(None, None), set()
    for move in moves:
        following = saver.get_next_version(version, None)
        assert following > version
        assert following not in seen
        seen.add(following)
        if move == "next":
            version = following

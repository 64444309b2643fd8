"""Checkpoints are read without LangGraph, as plain data only; what is damaged is told, not believed."""

import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.types import Send

from db.postgres.checkpoint_values import COMPRESSED
from db.postgres.checkpoints import FencedPostgresSaver
from db.postgres.pool import Postgres
from db.postgres.thread_history import PostgresThreadHistory
from domain.errors import NotFound
from domain.threads import SavedState, changes_between
from tests.db.stage import RunningFile, opened_postgres, running_file


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(database_url) as opened:
        yield opened


async def saved(postgres: Postgres, values: dict[str, Any], **fields: Any) -> tuple[RunningFile, str]:
    """A running file with one checkpoint of these values; answers its id, too."""
    file = await running_file(postgres)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    config = {"configurable": {"thread_id": file.thread_id, "checkpoint_ns": ""}}
    checkpoint = empty_checkpoint() | fields
    checkpoint["channel_values"] = values
    checkpoint["channel_versions"] = dict.fromkeys(values, "000001.a")
    config = await saver.aput(config, checkpoint, {"step": 1}, checkpoint["channel_versions"])
    await saver.aput_writes(config, [("results", {"q2": 1}), ("__error__", ValueError("no"))], "task")
    return file, checkpoint["id"]


async def test_every_plain_value_is_read_as_it_was_saved(postgres: Postgres) -> None:
    values = {
        "small": 1, "none": None, "text": "word " * 100,
        "results": {"q1": {"points": 2.5, "reasons": ["a", None]}},
        "large": {"q1": "分" * 600_000},
    }  # fmt: skip
    file, checkpoint_id = await saved(postgres, values)
    history = PostgresThreadHistory(postgres)
    (listed,) = await history.checkpoints(file.file_id)
    assert (listed.checkpoint_id, listed.step, listed.is_compressed) == (checkpoint_id, 1, True)
    summary, state = await history.read(file.file_id, checkpoint_id, file.thread_id)
    assert summary == listed
    assert state.values == values
    assert [(each.channel, each.value) for each in state.pending] == [("results", {"q2": 1})]
    assert state.unreadable == {}
    rows = await postgres.rows("SELECT type FROM checkpoint_blobs WHERE channel = 'large'")
    assert rows[0]["type"].endswith(COMPRESSED)
    for other in ((checkpoint_id, "another thread"), ("another checkpoint", None)):
        with pytest.raises(NotFound):
            await history.read(file.file_id, *other)


async def test_the_tasks_to_come_are_told_by_their_nodes(postgres: Postgres) -> None:
    tasks = [Send("short_answer", {"question_id": "q1"}), Send("code", {"question_id": "q2"})]
    values = {"__pregel_tasks": tasks, "branch:to:check": None}
    file, _ = await saved(postgres, values, updated_channels=["__pregel_tasks"])
    (listed,) = await PostgresThreadHistory(postgres).checkpoints(file.file_id)
    assert listed.next_nodes == ("check", "code", "short_answer")


async def test_no_stored_bytes_make_an_object(postgres: Postgres) -> None:
    file, checkpoint_id = await saved(
        postgres, {"when": datetime.now(UTC), "raw": b"\xff", "inner": {"raw": b"\xff"}, "good": {"q1": 1}}
    )
    _, state = await PostgresThreadHistory(postgres).read(file.file_id, checkpoint_id)
    assert state.values == {"good": {"q1": 1}}
    assert state.unreadable.keys() == {"when", "raw", "inner"}
    assert all("no plain data" in reason for reason in state.unreadable.values())


async def test_a_damaged_value_is_told_and_the_others_are_shown(postgres: Postgres) -> None:
    file, checkpoint_id = await saved(postgres, {"results": {"q1": 1}, "plan": {"q1": "essay"}})
    await postgres.run(
        "UPDATE checkpoint_blobs SET blob = overlay(blob PLACING '\\x00' FROM 6) WHERE channel = 'results'"
    )
    _, state = await PostgresThreadHistory(postgres).read(file.file_id, checkpoint_id)
    assert state.values == {"plan": {"q1": "essay"}}
    assert "checksum" in state.unreadable["results"]


async def test_a_file_without_a_thread_has_no_history(postgres: Postgres) -> None:
    assert await PostgresThreadHistory(postgres).checkpoints("0197c1de-1111-7000-8000-000000000000") == []


def test_reading_history_imports_no_langgraph() -> None:
    modules = "db.postgres.thread_history, db.postgres.reruns, db.postgres.grading, api.threads, api.reruns"
    code = f"import sys, {modules}; sys.exit(any(name.startswith('langgraph') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_states_differ_by_channel_and_question() -> None:
    before = SavedState({"plan": {"q1": "essay"}, "results": {"q1": 1, "q2": 2}, "model": "a", "old": 1})
    after = SavedState({"plan": {"q1": "essay"}, "results": {"q2": 3, "q3": 4}, "model": "b", "new": None})
    told = [
        (each.channel, each.key, each.change, each.before, each.after)
        for each in changes_between(before, after)
    ]
    assert told == [
        ("model", None, "changed", "a", "b"),
        ("new", None, "added", None, None),
        ("old", None, "removed", 1, None),
        ("results", "q1", "removed", 1, None),
        ("results", "q2", "changed", 2, 3),
        ("results", "q3", "added", None, 4),
    ]
    assert changes_between(before, before) == []

"""Property 2: an agent tells where it is after every step, and is never silent for long."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import docx
import psutil
import psycopg
from hypothesis import strategies as st

from db.redis.connection import RedisLink
from domain.batch import StoredFile
from gateway.scripted import Rule, Script
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.db.stage import own_valkey
from tests.properties.drawing import drawn
from tests.workflows import plant
from tests.workflows.heartbeats import Attempt, Listener, longest_gap_seconds, watched_at_the_server

FILES, QUESTIONS = 16, 3
#: heartbeats come four times in it: room for a machine on which a process waits a second for its turn
TIMEOUT_SECONDS = 6.0
#: longer than the timeout: without heartbeats the attempt would be taken for dead
HANG_SECONDS = 6.8
#: how long Redis, Postgres and the child that reads a document stand still: longer than half the timeout
STILL_SECONDS = 3.4
READER = "activities.intake.confined"


@dataclass(frozen=True)
class Case:
    """One file: whether a child reads it, and how long each of its model calls takes."""

    document: bool
    hang_seconds: tuple[float, ...]


CASES = st.builds(
    Case, st.booleans(), st.tuples(*[st.sampled_from([0.0, 0.1, 0.5, 2.0]) for _ in range(QUESTIONS)])
)


async def test_every_step_is_told_and_no_silence_is_longer_than_half_the_timeout(
    resources: Resources, database_url: str, tmp_path: Path, example: Callable[[], None]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 2: Activity 心跳进度报告**
    **验证: 需求 1.2**

    Node, percentage, checkpoint and time of every step; with slow models, readers, Redis and Postgres too.
    """
    first, *cases = drawn(CASES, FILES)
    cases = [replace(first, hang_seconds=(HANG_SECONDS, 0.0, 0.0)), *cases]
    listener = Listener()
    resources = plant.with_worker_settings(resources, heartbeat_timeout_seconds=TIMEOUT_SECONDS)
    async with a_valkey_that_stands_still(resources, tmp_path) as (slow, stand_still):
        batch = await open_batch(
            slow,
            {_name(number, case): _content(case) for number, case in enumerate(cases)},
            exam=plant.exam_of(QUESTIONS),
            max_concurrent=FILES,
        )
        files = await plant.files_of(slow, batch)
        model = plant.WatchedModel(Script(rules=tuple(_rules(files, cases))))
        workers = plant.orchestration(slow), plant.cognition(listener.heard_by(slow), model)
        handles = [plant.child_of(slow, file) for file in files[:4]]
        async with plant.running(*workers), watched_at_the_server(*handles) as heard:
            async with no_agent_begins_or_saves(database_url):
                await plant.start(slow, batch)
                await asyncio.sleep(STILL_SECONDS)
            # most of the agents now end, and show it
            await asyncio.gather(a_reader_stands_still(), stand_still())
            (ended,) = await plant.all_ended(slow, batch)
        assert ended.state == "completed"
        for file in await plant.files_of(slow, batch):
            (attempt,) = listener.of(plant.child_of(slow, file).id)
            assert attempt.longest_gap_seconds <= TIMEOUT_SECONDS / 2, file.name
            for _ in await told_steps(slow, file, attempt):
                example()
    for times in heard.values():
        assert longest_gap_seconds(times) <= TIMEOUT_SECONDS / 2
    longest = max(heard.values(), key=len)
    assert longest[-1] - longest[0] > TIMEOUT_SECONDS, "the server has not seen the call that hangs"


async def told_steps(resources: Resources, file: StoredFile, attempt: Attempt) -> list[Any]:
    """The steps of the file's agent, each of which was told: durable checkpoints, and questions finished."""
    checkpoints = await resources.postgres.rows(
        "SELECT checkpoint_id FROM checkpoints WHERE thread_id = %s AND (metadata ->> 'step')::int > 0",
        [file.run_id],
    )
    saved = {row["checkpoint_id"] for row in checkpoints}
    told = [state for state in attempt.states if state["node"]]
    assert saved == {state["checkpoint_id"] for state in told} - {""}
    percentages = [state["percentage"] for state in told]
    assert percentages == sorted(percentages)
    finished = {round(100 * number / (QUESTIONS + 1), 1) for number in range(1, QUESTIONS + 1)}
    assert set(percentages) == {0.0, *finished, 100.0}
    for state in told:
        assert state["thread_id"] == file.run_id
        assert datetime.fromisoformat(state["updated_at"]).utcoffset() is not None
    return [*saved, *finished]


def _name(number: int, case: Case) -> str:
    return f"student-{number:03}.{'docx' if case.document else 'json'}"


def _content(case: Case) -> bytes:
    if not case.document:
        return a_submission(plant.answers_to(QUESTIONS))
    document, written = docx.Document(), io.BytesIO()
    for question, answer in plant.answers_to(QUESTIONS).items():
        document.add_heading(question)
        document.add_paragraph(answer)
    document.save(written)
    return written.getvalue()


def _rules(files: list[StoredFile], cases: list[Case]) -> list[Rule]:
    return [
        rule
        for file, case in zip(files, cases, strict=True)
        for number, seconds in enumerate(case.hang_seconds, start=1)
        for rule in plant.rules_for(file.id, Rule(f"q{number}", hang_seconds=seconds))
    ]


# --- what stands still ---


@asynccontextmanager
async def a_valkey_that_stands_still(resources: Resources, folder: Path) -> AsyncIterator[Any]:
    """Resources with a Valkey of their own, and what makes it stand still for a while."""
    async with own_valkey(folder / "valkey") as server:
        link = RedisLink.to(server.url, max_connections=50, timeout_seconds=5)

        async def stand_still() -> None:
            await _stopped(psutil.Process(server.child.pid))

        try:
            yield replace(resources, redis=link), stand_still
        finally:
            await link.close()


async def a_reader_stands_still() -> None:
    """The first child that reads a document."""
    async with asyncio.timeout(60):
        while not (readers := [each for each in psutil.Process().children() if _reads(each)]):
            await asyncio.sleep(0.01)
    await _stopped(readers[0])


def _reads(process: psutil.Process) -> bool:
    try:
        return READER in process.cmdline()
    except psutil.NoSuchProcess:
        return False


@asynccontextmanager
async def no_agent_begins_or_saves(database_url: str) -> AsyncIterator[None]:
    """Postgres keeps everyone waiting who begins or saves."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("LOCK TABLE agent_threads, checkpoints IN EXCLUSIVE MODE")
        yield


async def _stopped(process: psutil.Process) -> None:
    process.suspend()
    try:
        await asyncio.sleep(STILL_SECONDS)
    finally:
        process.resume()

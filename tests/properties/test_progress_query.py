"""Property 20: whoever asks a workflow for its progress is answered, rightly."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import pytest
from hypothesis import strategies as st

from domain.batch import AgentState, Batch, Progress
from domain.states import BatchState
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, open_batch
from tests.properties.drawing import drawn
from tests.workflows.plant import (
    WatchedModel,
    all_ended,
    answers_to,
    child_of,
    cognition,
    exam_of,
    files_of,
    handle_of,
    orchestration,
    running,
    start,
)
from workflows.batch import BatchWorkflow
from workflows.grading import GradingWorkflow

BATCHES = 20
FILES = 5


@dataclass(frozen=True)
class Case:
    """One file: whether it can be read, and whether its model call hangs."""

    readable: bool
    hangs: bool


CASES = st.builds(Case, st.sampled_from([True, True, True, False]), st.booleans())
LIMITS = st.integers(1, FILES)


@pytest.mark.timeout(600)
async def test_progress_is_answered_while_running_and_after_the_end(
    resources: Resources, example: Callable[[], None]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 20: 工作流进度查询**
    **验证: 需求 10.2**

    Stage, percentage and time are there at every moment; counts add up, and at quiet ones equal Postgres.
    """
    cases, limits = drawn(CASES, BATCHES * FILES), drawn(LIMITS, BATCHES)
    batches = [
        await _open(resources, cases[index * FILES : (index + 1) * FILES], limit)
        for index, limit in enumerate(limits)
    ]
    files = [await files_of(resources, batch) for batch in batches]
    by_file = {file.id: case for file, case in zip(chain.from_iterable(files), cases, strict=True)}
    hanging = {id_ for id_, case in by_file.items() if case.hangs and case.readable}
    model = WatchedModel(holds=lambda call: call.step.file_id in hanging)
    async with running(orchestration(resources), cognition(resources, model)):
        await start(resources, *batches)
        held = [
            min(limit, sum(file.id in hanging for file in each))
            for limit, each in zip(limits, files, strict=True)
        ]
        await model.is_holding(sum(held))
        await asyncio.gather(*(_agrees(resources, batch) for batch in batches))
        for state in (await _states(resources, batches)).values():
            _check_agent(state)
        model.released.set()
        ended = await all_ended(resources, *batches)
        for progress in await asyncio.gather(*(_agrees(resources, batch) for batch in ended)):
            assert progress.percentage == 100.0
        for file_id, state in (await _states(resources, batches)).items():
            _check_agent(state)
            assert (state.percentage == 100) == by_file[file_id].readable
            example()


async def _open(resources: Resources, cases: list[Case], limit: int) -> Batch:
    content = a_submission(answers_to(1))
    return await open_batch(
        resources,
        {f"{n}.json": content if case.readable else b"\xff\x00{" for n, case in enumerate(cases)},
        exam=exam_of(1),
        max_concurrent=limit,
    )


async def _states(resources: Resources, batches: list[Batch]) -> dict[str, AgentState]:
    """What the workflows of all files that have begun answer."""
    begun = [file for batch in batches for file in await files_of(resources, batch) if file.run_id]
    asked = (child_of(resources, file).query(GradingWorkflow.progress) for file in begun)
    return {file.id: state for file, state in zip(begun, await asyncio.gather(*asked), strict=True)}


async def _agrees(resources: Resources, batch: Batch) -> Progress:
    """Ask both until they agree, which they must after the reports' interval; each answer is sound."""
    stores, handle = services(resources).batches, handle_of(resources, batch)
    deadline = time.monotonic() + 60
    while True:
        asked, stored = await handle.query(BatchWorkflow.progress), await stores.progress(batch.id)
        for each in (asked, stored):
            _check_progress(each, batch)
        if (asked.stage, asked.percentage, asked.counts) == (stored.stage, stored.percentage, stored.counts):
            return asked
        assert time.monotonic() < deadline, (asked, stored)
        await asyncio.sleep(0.1)


def _check_progress(progress: Progress, batch: Batch) -> None:
    assert progress.batch_id == batch.id
    assert progress.stage in list(BatchState)
    assert 0 <= progress.percentage <= 100
    assert progress.counts.total == batch.total_files
    assert min(vars(progress.counts).values()) >= 0
    _check_time(progress.updated_at)


def _check_agent(state: AgentState) -> None:
    assert state.stage
    assert 0 <= state.percentage <= 100
    _check_time(state.updated_at)


def _check_time(text: str) -> None:
    assert datetime.fromisoformat(text).utcoffset() is not None

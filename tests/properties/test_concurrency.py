"""Property 21: never more than `max_concurrent` children at once, and the share is used to the end."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.history.v1 import HistoryEvent as Event

from domain.batch import MAX_CONCURRENT, MAX_FILES, Batch
from domain.identity import window_workflow_id
from domain.timings import WINDOW_FILES
from gateway.scripted import Script
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.properties.drawing import drawn
from tests.workflows.plant import (
    WatchedModel,
    all_ended,
    answers_to,
    cognition,
    exam_of,
    files_of,
    history,
    names,
    of_type,
    orchestration,
    running,
)
from workflows.batch import BatchInput, BatchWorkflow, divide, plan_windows
from workflows.options import WINDOWS_AT_ONCE

#: batches of all the examples that run side by side
AT_ONCE = 50


@dataclass(frozen=True)
class Case:
    """A batch's size, and how it is cut."""

    files: int
    max_concurrent: int
    window_files: int


CASES = st.builds(Case, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))


@pytest.mark.timeout(600)
async def test_a_batch_never_runs_more_children_than_it_may(
    resources: Resources, example: Callable[[], None]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 21: 批量子工作流并发控制**
    **验证: 需求 10.3**

    Neither the model nor the windows' histories ever see more than max_concurrent files at once.
    """
    model = WatchedModel(Script(latency_seconds=0.05))
    cases = drawn(CASES)
    async with running(orchestration(resources), cognition(resources, model)):
        for first in range(0, len(cases), AT_ONCE):
            for case, batch in await _run(resources, cases[first : first + AT_ONCE]):
                files = {file.id for file in await files_of(resources, batch)}
                at_the_model = model.peak(files)
                in_history = _peak(await _windows(resources, batch, case))
                assert batch.state == "completed", case
                assert 1 <= at_the_model <= case.max_concurrent, case
                assert in_history <= case.max_concurrent, case
                assert in_history >= min(case.max_concurrent, case.files, case.window_files), case
                example()


async def _run(resources: Resources, cases: Sequence[Case]) -> list[tuple[Case, Batch]]:
    batches: list[Batch] = []
    for case in cases:
        batch = await open_batch(
            resources,
            {name: a_submission(answers_to(1)) for name in names(case.files)},
            exam=exam_of(1),
            max_concurrent=case.max_concurrent,
        )
        await resources.temporal.start_workflow(
            BatchWorkflow.run,
            _input(resources, batch, case),
            id=f"batch/{batch.id}",
            task_queue=resources.settings.temporal.orchestration_queue,
        )
        batches.append(batch)
    return list(zip(cases, await all_ended(resources, *batches), strict=True))


def _input(resources: Resources, batch: Batch, case: Case) -> BatchInput:
    return BatchInput(
        tenant_id="local",
        batch_id=batch.id,
        kind="grading",
        total_files=case.files,
        max_concurrent=case.max_concurrent,
        model="scripted",
        window_files=case.window_files,
        cognition_queue=resources.settings.temporal.cognition_queue,
        timings=resources.settings.worker.timings(),
    )


async def _windows(resources: Resources, batch: Batch, case: Case) -> list[Event]:
    """Every start and every end of a child of the batch's windows, in the server's order of time."""
    windows = -(-case.files // case.window_files)
    events: list[Event] = []
    for index in range(windows):
        handle = resources.temporal.get_workflow_handle(window_workflow_id(batch.id, 1, index))
        past = await history(handle)
        started = of_type(past, "START_CHILD_WORKFLOW_EXECUTION_INITIATED")
        ended = of_type(past, "CHILD_WORKFLOW_EXECUTION_COMPLETED")
        assert len(started) == len(ended)
        events += [*started, *ended]
    assert len(events) == 2 * case.files
    return sorted(events, key=lambda event: event.event_time.ToNanoseconds())


def _peak(events: Sequence[Event]) -> int:
    now = peak = 0
    for event in events:
        now += 1 if of_type([event], "START_CHILD_WORKFLOW_EXECUTION_INITIATED") else -1
        peak = max(peak, now)
    return peak


@given(st.integers(1, MAX_FILES), st.integers(1, WINDOW_FILES))
def test_windows_cover_every_ordinal_once(files: int, window_files: int) -> None:
    """
    **功能: architecture-deep-integration, 属性 21: 批量子工作流并发控制**
    **验证: 需求 10.3**

    Windows follow each other without gap or overlap, hold at most their limit, and differ by one file.
    """
    batch = BatchInput("local", "b", "grading", files, 10, "scripted", window_files=window_files)
    windows = plan_windows(batch)
    assert [window.index for window in windows] == list(range(len(windows)))
    assert windows[0].first == 1
    assert windows[-1].last == files
    for before, after in pairwise(windows):
        assert after.first == before.last + 1
    sizes = [window.files for window in windows]
    assert 1 <= min(sizes) <= max(sizes) <= min(window_files, WINDOW_FILES)
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, MAX_CONCURRENT), st.integers(1, 1000))
def test_the_lanes_of_a_batch_share_all_it_may_run(max_concurrent: int, windows: int) -> None:
    """
    **功能: architecture-deep-integration, 属性 21: 批量子工作流并发控制**
    **验证: 需求 10.3**

    Every lane has a share, and the shares add up.
    """
    lanes = min(WINDOWS_AT_ONCE, windows, max_concurrent)
    shares = divide(max_concurrent, lanes)
    assert sum(shares) == max_concurrent
    assert min(shares) >= 1
    assert len(Counter(shares)) <= 2
    assert max(shares) - min(shares) <= 1

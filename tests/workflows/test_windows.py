"""Windows share what a batch may run at once, and use it to the end."""

import asyncio

from domain.completion import CompletionRequest
from domain.identity import window_workflow_id
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.workflows.plant import (
    WatchedModel,
    all_ended,
    answers_to,
    cognition,
    exam_of,
    files_of,
    names,
    orchestration,
    running,
    start,
    with_worker_settings,
)
from workflows.batch import BatchInput, WindowInput, WindowWorkflow


async def test_the_last_window_inherits_the_shares_of_the_others(resources: Resources) -> None:
    resources = with_worker_settings(resources, window_files=6)
    batch = await open_batch(
        resources,
        {name: a_submission(answers_to(1)) for name in names(12)},
        exam=exam_of(1),
        max_concurrent=4,
    )
    second_half = {file.id for file in (await files_of(resources, batch))[6:]}
    model = WatchedModel(holds=lambda call: call.step.file_id in second_half)
    async with running(orchestration(resources), cognition(resources, model)):
        await start(resources, batch)
        await model.is_holding(4, within_seconds=20)
        model.released.set()
        (ended,) = await all_ended(resources, batch)
    assert ended.state == "completed"
    assert model.peak({file.id for file in await files_of(resources, batch)}) == 4


async def test_a_share_that_comes_before_the_files_are_queued_is_kept(resources: Resources) -> None:
    batch = await open_batch(
        resources, {name: a_submission(answers_to(1)) for name in names(5)}, exam=exam_of(1), max_concurrent=3
    )
    model = WatchedModel(holds=_all)
    window = WindowInput(
        BatchInput(
            tenant_id="local",
            batch_id=batch.id,
            kind="grading",
            total_files=5,
            max_concurrent=3,
            model="scripted",
            cognition_queue=resources.settings.temporal.cognition_queue,
            timings=resources.settings.worker.timings(),
        ),
        index=0,
        first=1,
        last=5,
        share=1,
        report_every=5,
    )
    async with running(orchestration(resources), cognition(resources, model)):
        handle = await resources.temporal.start_workflow(
            WindowWorkflow.run,
            window,
            id=window_workflow_id(batch.id, 1, 0),
            task_queue=resources.settings.temporal.orchestration_queue,
            start_signal="grow",
            start_signal_args=[2],
        )
        await model.is_holding(3, within_seconds=10)
        model.released.set()
        report = await asyncio.wait_for(handle.result(), 60)
    assert report.ended == {"completed": 5}


def _all(_: CompletionRequest) -> bool:
    return True

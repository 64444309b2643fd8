"""Cancelled, terminated and reset: every file ends, finished ones stay, results are exact."""

import asyncio
import contextlib
from typing import Any

from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle

from domain.batch import Batch
from runtime.resources import Resources
from runtime.server import services
from tests.workflows.plant import (
    WatchedModel,
    all_ended,
    child_of,
    cognition,
    file_events,
    files_of,
    half_done,
    handle_of,
    orchestration,
    reset,
    running,
)
from workflows.batch import BatchWorkflow


async def states(resources: Resources, batch: Batch) -> list[str]:
    """The files' states in the order of their ordinals."""
    return [str(file.state) for file in await files_of(resources, batch)]


async def status(handle: WorkflowHandle[Any, Any]) -> WorkflowExecutionStatus | None:
    """Temporal's word on the workflow's newest run."""
    return (await handle.describe()).status


async def test_cancelling_a_batch_ends_what_has_not_ended(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        await services(resources).orchestrator.cancel_batch(batch)
        (ended,) = await all_ended(resources, batch)
        files = await files_of(resources, batch)
        assert ended.state == "cancelled"
        assert [file.state for file in files] == ["completed"] * 2 + ["cancelled"] * 4
        assert await status(handle_of(resources, batch)) is WorkflowExecutionStatus.CANCELED
        children = [await status(child_of(resources, file)) for file in files[:4]]
        assert children == [WorkflowExecutionStatus.COMPLETED] * 2 + [WorkflowExecutionStatus.CANCELED] * 2
    assert all(file.run_id is None for file in files[4:]), "a queued file never starts"
    assert model.held.total() == 0, "the hanging calls were given up"


async def test_terminating_a_batch_lets_its_children_end(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        await handle_of(resources, batch).terminate("by hand")
        running_files = (await files_of(resources, batch))[2:4]
        for file in running_files:
            with contextlib.suppress(WorkflowFailureError):
                await asyncio.wait_for(child_of(resources, file).result(), 60)
            assert await status(child_of(resources, file)) is WorkflowExecutionStatus.CANCELED
    assert (await states(resources, batch))[:4] == ["completed"] * 2 + ["cancelled"] * 2


async def test_a_child_that_is_terminated_fails_its_file_alone(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        victim = (await files_of(resources, batch))[2]
        await child_of(resources, victim).terminate("by hand")
        # the attempt that nobody waits for stops at its next heartbeat
        model.released.set()
        (ended,) = await all_ended(resources, batch)
    assert ended.state == "partial"
    assert await states(resources, batch) == ["completed"] * 2 + ["failed"] + ["completed"] * 3
    assert (await files_of(resources, batch))[2].failure_code == "terminated_error"


async def test_a_child_that_is_cancelled_by_hand_ends_its_file_alone(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        victim = (await files_of(resources, batch))[2]
        await child_of(resources, victim).cancel()
        with contextlib.suppress(WorkflowFailureError):
            await asyncio.wait_for(child_of(resources, victim).result(), 60)
        await agree(resources, batch)
        model.released.set()
        (ended,) = await all_ended(resources, batch)
    assert ended.state == "partial"
    assert await states(resources, batch) == ["completed"] * 2 + ["cancelled"] + ["completed"] * 3


async def agree(resources: Resources, batch: Batch) -> None:
    """Wait until the workflow and Postgres tell the same counts: they do at every quiet moment."""
    handle, stores = handle_of(resources, batch), services(resources).batches
    async with asyncio.timeout(60):
        while (await handle.query(BatchWorkflow.progress)).counts != (await stores.progress(batch.id)).counts:
            await asyncio.sleep(0.1)


async def test_a_child_that_is_reset_gives_its_new_result(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        before = (await files_of(resources, batch))[2]
        await reset(resources, child_of(resources, before))
        model.released.set()
        (ended,) = await all_ended(resources, batch)
        after = (await files_of(resources, batch))[2]
        described = await child_of(resources, before).describe()
    assert ended.state == "completed"
    await check_exact(resources, batch)
    assert after.run_id == described.run_id != before.run_id, "a reset is a new thread"


async def test_a_batch_that_is_reset_waits_for_the_children_it_finds(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        await reset(resources, handle_of(resources, batch))
        await asyncio.sleep(1)
        model.released.set()
        (ended,) = await all_ended(resources, batch)
    assert (ended.state, await states(resources, batch)) == ("completed", ["completed"] * 6)
    await check_exact(resources, batch)


async def check_exact(resources: Resources, batch: Batch) -> None:
    """Every file has full marks, and was assessed once."""
    assert [file.score for file in await files_of(resources, batch)] == [3.0] * batch.total_files
    told = [kind for _, kind, _ in await file_events(resources, batch)]
    assert told.count("FileAssessed") == batch.total_files
    progress = await services(resources).batches.progress(batch.id)
    assert (progress.counts.completed, progress.counts.total) == (batch.total_files, batch.total_files)

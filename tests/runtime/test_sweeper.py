"""Batches without a workflow: started if they never had one, ended if theirs was closed by hand."""

import pytest

from db.postgres.batches import PostgresBatches, PostgresBatchRuns
from db.postgres.pauses import PostgresPauses
from domain.batch import Batch
from domain.identity import batch_workflow_id
from domain.states import BatchState
from runtime.orchestrator import TemporalOrchestrator
from runtime.resources import Resources
from runtime.sweeper import WORKFLOW_CLOSED, BatchSweeper
from tests.builders import a_submission, open_batch


@pytest.fixture
def orchestrator(resources: Resources) -> TemporalOrchestrator:
    """Over queues that nobody serves: a workflow that is started waits."""
    settings = resources.settings
    return TemporalOrchestrator(resources.temporal, settings.temporal, settings.worker)


@pytest.fixture
def sweeper(resources: Resources, orchestrator: TemporalOrchestrator) -> BatchSweeper:
    """Patient with no batch."""
    pauses = PostgresPauses(resources.postgres)
    return BatchSweeper(PostgresBatchRuns(resources.postgres), pauses, orchestrator, quiet_seconds=0)


async def a_batch(resources: Resources) -> Batch:
    return await open_batch(resources, {"a.json": a_submission(), "b.json": a_submission()})


async def read(resources: Resources, batch: Batch) -> Batch:
    return await PostgresBatches(resources.postgres).read("local", batch.id)


async def test_a_batch_that_never_got_its_workflow_is_started(
    resources: Resources, orchestrator: TemporalOrchestrator, sweeper: BatchSweeper
) -> None:
    batch = await a_batch(resources)
    await sweeper.sweep_once()
    await sweeper.sweep_once()
    assert await orchestrator.batch_runs(batch)
    assert (await read(resources, batch)).state is BatchState.UPLOADED


async def test_a_batch_whose_workflow_was_terminated_ends_failed_with_all_its_files(
    resources: Resources, orchestrator: TemporalOrchestrator, sweeper: BatchSweeper
) -> None:
    batch = await a_batch(resources)
    await orchestrator.start_batch(batch)
    await PostgresBatchRuns(resources.postgres).begin_scattering(batch.id)
    workflow_id = batch_workflow_id(batch.id, batch.generation)
    await resources.temporal.get_workflow_handle(workflow_id).terminate("by hand")
    await sweeper.sweep_once()
    ended = await read(resources, batch)
    assert (ended.state, ended.failure_code) == (BatchState.FAILED, WORKFLOW_CLOSED)
    progress = await PostgresBatches(resources.postgres).progress(batch.id)
    assert progress.counts.cancelled == progress.counts.total == 2


async def test_a_running_and_a_pending_batch_are_left_alone(
    resources: Resources, orchestrator: TemporalOrchestrator, sweeper: BatchSweeper
) -> None:
    running = await a_batch(resources)
    await orchestrator.start_batch(running)
    pending = await open_batch(resources, {"a.json": a_submission()}, complete=False)
    await sweeper.sweep_once()
    assert (await read(resources, running)).state is BatchState.UPLOADED
    assert (await read(resources, pending)).state is BatchState.PENDING

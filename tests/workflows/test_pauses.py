"""A batch that runs out of money pauses, keeps its work, and goes on when the limit is raised (B5.4)."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest

from db.postgres.pauses import PostgresPauses
from domain.batch import Batch, Counts
from domain.completion import CompletionReply, CompletionRequest
from domain.errors import BudgetExhausted, IllegalTransition
from domain.states import BatchState, FileState
from gateway.scripted import ScriptedModel
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, open_batch
from tests.workflows import plant
from workflows.batch import BatchWorkflow


@dataclass
class MeteredModel:
    """A scripted model that is paid by the call, and refuses the call that its limit does not cover."""

    limit: int
    paid: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    upstream: ScriptedModel = field(default_factory=ScriptedModel)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The scripted reply, or the refusal."""
        if self.paid.total() >= self.limit:
            self.refused += 1
            raise BudgetExhausted(
                "The limit of the batch refuses.", scope="batch", missing_nanodollars=1_500_000
            )
        self.paid[request.key] += 1
        return await self.upstream.complete(request)


async def class_of(resources: Resources, files: int, *, max_concurrent: int) -> Batch:
    return await open_batch(
        resources,
        {name: a_submission(plant.answers_to(1)) for name in plant.names(files)},
        exam=plant.exam_of(1),
        max_concurrent=max_concurrent,
    )


async def state_of(resources: Resources, batch: Batch) -> BatchState:
    return (await services(resources).batches.read("local", batch.id)).state


async def is_paused(resources: Resources, batch: Batch, pauses: int | None = None) -> Counts:
    """Wait until the batch is paused, nothing runs in it, and Postgres and Temporal say the same."""
    stored = told = None
    for _ in range(600):
        stored = await services(resources).batches.progress(batch.id)
        told = await plant.handle_of(resources, batch).query(BatchWorkflow.progress)
        if (
            stored.stage == told.stage == BatchState.PAUSED
            and pauses in (None, stored.pause.resumptions + 1)
            and stored.counts.running == 0
            and stored.counts == told.counts
        ):
            assert stored.counts.paused
            return stored.counts
        await asyncio.sleep(0.05)
    pytest.fail(f"not quiet: {stored} and {told}")


async def raise_limit(resources: Resources, batch: Batch, nanodollars: int) -> None:
    resumptions = await PostgresPauses(resources.postgres).set_limit("local", batch.id, nanodollars)
    assert resumptions is not None
    await services(resources).orchestrator.resume_batch(batch, resumptions)


async def has_paid(model: MeteredModel, calls: int) -> None:
    async with asyncio.timeout(60):
        while model.paid.total() != calls:
            await asyncio.sleep(0.05)


async def test_a_batch_pauses_when_a_limit_refuses_and_goes_on_when_it_is_raised(
    resources: Resources,
) -> None:
    model = MeteredModel(limit=3)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        batch = await class_of(resources, 8, max_concurrent=2)
        await plant.start(resources, batch)
        counts = await is_paused(resources, batch)
        assert counts.completed == 3
        assert counts.queued == 8 - 3 - counts.paused, "nothing new starts"
        progress = await services(resources).batches.progress(batch.id)
        assert progress.pause is not None
        assert (progress.pause.scope, progress.pause.missing_nanodollars) == ("batch", 1_500_000)
        runs = {file.id: file.run_id for file in await plant.files_of(resources, batch) if file.run_id}

        model.limit = 8
        await raise_limit(resources, batch, 8)
        (ended,) = await plant.all_ended(resources, batch)

    assert ended.state is BatchState.COMPLETED
    assert set(model.paid.values()) == {1}, "no answer is paid for twice"
    files = await plant.files_of(resources, batch)
    assert {file.id: file.run_id for file in files if file.id in runs} == runs, "a paused child keeps its run"
    events = [data for _, kind, data in await plant.file_events(resources, batch) if kind == "StatusChanged"]
    moves = Counter((data["from"], data["to"]) for data in events)
    assert moves["running", "paused"] == moves["paused", "running"] == counts.paused
    assert moves["running", "completed"] == 8


async def test_a_limit_that_is_raised_too_little_pauses_the_batch_again(resources: Resources) -> None:
    model = MeteredModel(limit=1)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        batch = await class_of(resources, 4, max_concurrent=1)
        await plant.start(resources, batch)
        for limit in (2, 3):
            await is_paused(resources, batch)
            model.limit = limit
            await raise_limit(resources, batch, limit)
            await has_paid(model, limit)
        await is_paused(resources, batch)
        model.limit = 4
        await raise_limit(resources, batch, 4)
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    assert model.paid.total() == 4


async def test_all_windows_of_a_batch_pause_together(resources: Resources) -> None:
    model = MeteredModel(limit=5)
    small = plant.with_worker_settings(resources, window_files=3)
    async with plant.running(plant.orchestration(small), plant.cognition(small, model)):
        batch = await class_of(small, 14, max_concurrent=4)
        await plant.start(small, batch)
        await is_paused(small, batch)
        model.limit = 14
        await raise_limit(small, batch, 14)
        (ended,) = await plant.all_ended(small, batch)
    assert ended.state is BatchState.COMPLETED
    assert model.paid.total() == 14


async def test_a_paused_batch_can_be_cancelled(resources: Resources) -> None:
    model = MeteredModel(limit=2)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        batch = await class_of(resources, 5, max_concurrent=2)
        await plant.start(resources, batch)
        await is_paused(resources, batch)
        await services(resources).orchestrator.cancel_batch(batch)
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.CANCELLED
    states = Counter(file.state for file in await plant.files_of(resources, batch))
    assert states == {FileState.COMPLETED: 2, FileState.CANCELLED: 3}
    with pytest.raises(IllegalTransition):
        await PostgresPauses(resources.postgres).set_limit("local", batch.id, 100)


async def test_a_pause_survives_all_workers_and_a_lost_signal(resources: Resources) -> None:
    model = MeteredModel(limit=2)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        batch = await class_of(resources, 4, max_concurrent=2)
        await plant.start(resources, batch)
        await is_paused(resources, batch)
    model.limit = 4
    pauses = PostgresPauses(resources.postgres)
    # the API dies between the transaction and the signal
    assert await pauses.set_limit("local", batch.id, 4) == 1
    assert await state_of(resources, batch) is BatchState.SCATTERING
    assert [(each.id, each.resumptions) for each in await pauses.untold()] == [(batch.id, 1)]
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        for untold in await pauses.untold():
            await services(resources).orchestrator.resume_batch(untold, untold.resumptions)
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    assert await pauses.untold() == []
    assert set(model.paid.values()) == {1}

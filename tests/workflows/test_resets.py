"""A reset gives a file a newer run: what is left of the older one changes nothing, however late it comes."""

import asyncio

import pytest

import runtime.worker
from db.postgres.grading import PostgresThreads
from domain.ports import AssessmentStart
from domain.states import BatchState, FileState
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.workflows import plant

QUESTIONS = 2


class LateThreads(PostgresThreads):
    """The threads of a worker that hears nothing, and begins the first run it meets when it is let go."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.late = ""
        self.entered, self.released, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.epoch: int | None = -1

    async def begin(self, start: AssessmentStart) -> int | None:
        """As the threads', later."""
        self.late = self.late or start.thread_id
        if start.thread_id != self.late:
            return await super().begin(start)
        self.entered.set()
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                continue  # a process that stands still hears of no cancellation
        try:
            self.epoch = await super().begin(start)
        finally:
            self.ended.set()
        return self.epoch


@pytest.fixture
async def late(monkeypatch: pytest.MonkeyPatch, resources: Resources) -> LateThreads:
    """What the next worker for agents knows as its threads."""
    threads = LateThreads(resources.postgres)
    monkeypatch.setattr(runtime.worker, "PostgresThreads", lambda _: threads)
    return threads


async def test_an_older_run_that_begins_after_the_newer_one_is_refused(
    resources: Resources, late: LateThreads
) -> None:
    model = plant.WatchedModel(holds=lambda _: True)
    batch = await open_batch(
        resources, {"a.json": a_submission(plant.answers_to(QUESTIONS))}, exam=plant.exam_of(QUESTIONS)
    )
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        async with asyncio.timeout(60):
            await late.entered.wait()
        (file,) = await plant.files_of(resources, batch)
        await plant.reset(resources, plant.child_of(resources, file))
        await plant.reset(resources, plant.handle_of(resources, batch))
        await model.is_holding(QUESTIONS)
        late.released.set()
        async with asyncio.timeout(60):
            await late.ended.wait()
        model.released.set()
        (ended,) = await plant.all_ended(resources, batch)
    assert late.epoch is None
    assert ended.state is BatchState.COMPLETED
    (file,) = await plant.files_of(resources, batch)
    assert (file.state, file.score) == (FileState.COMPLETED, 3.0 * QUESTIONS)
    assert file.run_id != late.late
    assert set(model.begun.values()) == {1}
    told = [kind for _, kind, _ in await plant.file_events(resources, batch)]
    assert told.count("FileAssessed") == 1
    assert (await resources.ledger.books.verify())[1] == []

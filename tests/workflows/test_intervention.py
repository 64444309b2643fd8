"""A checkpoint that cannot be saved waits for a human, and goes on where it was (G2.7)."""

import asyncio

from temporalio.client import WorkflowHandle

from domain.batch import Batch, StoredFile
from domain.states import BatchState, FileState
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, open_batch
from tests.workflows import plant
from workflows.attributes import NEEDS_INTERVENTION

#: the disk is full, for this thread's file
REFUSE_SQL = """
CREATE FUNCTION refuse_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.thread_id IN (SELECT thread_id FROM agent_threads WHERE file_id = TG_ARGV[0]::uuid) THEN
        RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full';
    END IF;
    RETURN NEW;
END $$
"""
BEGIN_REFUSING_SQL = """
CREATE TRIGGER full_disk BEFORE INSERT ON checkpoint_writes
FOR EACH ROW EXECUTE FUNCTION refuse_checkpoint('{}')
"""
END_REFUSING_SQL = "DROP TRIGGER full_disk ON checkpoint_writes; DROP FUNCTION refuse_checkpoint"


async def state_of(resources: Resources, batch: Batch, number: int) -> StoredFile:
    return (await plant.files_of(resources, batch))[number]


async def is_flagged(handle: WorkflowHandle, flagged: bool) -> bool:
    described = await handle.describe()
    return described.typed_search_attributes.get(NEEDS_INTERVENTION) is flagged


async def as_owner(database_url: str, *statements: str) -> None:
    import psycopg

    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def test_a_file_whose_checkpoint_is_not_saved_waits_and_goes_on_when_retried(
    resources: Resources, database_url: str
) -> None:
    resources = plant.with_worker_settings(resources, checkpoint_retry_seconds=(0.01, 0.01, 0.01))
    model = plant.WatchedModel()
    batch = await open_batch(
        resources,
        {name: a_submission(plant.answers_to(2)) for name in plant.names(2)},
        exam=plant.exam_of(2),
    )
    stuck = (await plant.files_of(resources, batch))[0]
    await as_owner(database_url, REFUSE_SQL, BEGIN_REFUSING_SQL.format(stuck.id))
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        async with asyncio.timeout(60):
            while (await state_of(resources, batch, 0)).state is not FileState.NEEDS_INTERVENTION:
                await asyncio.sleep(0.05)
            while (await state_of(resources, batch, 1)).state is not FileState.COMPLETED:
                await asyncio.sleep(0.05)
            child = plant.child_of(resources, stuck)
            while not await is_flagged(child, True):
                await asyncio.sleep(0.05)
        waiting = await state_of(resources, batch, 0)
        assert waiting.failure_code == "checkpoint_not_saved"
        assert (await plant.agent_state(resources, stuck)).stage == "needs_intervention"
        assert (await services(resources).batches.progress(batch.id)).counts.needs_intervention == 1
        await as_owner(database_url, END_REFUSING_SQL)
        await services(resources).orchestrator.retry_file(child.id)
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    assert await is_flagged(child, False)
    file = await state_of(resources, batch, 0)
    assert (file.state, file.failure_code) == (FileState.COMPLETED, None)
    told = [data["to"] for file_id, kind, data in await plant.file_events(resources, batch)
            if file_id == stuck.id and kind == "StatusChanged"]  # fmt: skip
    assert told[-4:] == ["running", "needs_intervention", "running", "completed"]


async def test_a_file_that_waits_for_a_human_can_be_cancelled_with_its_batch(
    resources: Resources, database_url: str
) -> None:
    resources = plant.with_worker_settings(resources, checkpoint_retry_seconds=())
    batch = await open_batch(resources, {"a.json": a_submission(plant.answers_to(1))}, exam=plant.exam_of(1))
    stuck = (await plant.files_of(resources, batch))[0]
    await as_owner(database_url, REFUSE_SQL, BEGIN_REFUSING_SQL.format(stuck.id))
    workers = plant.orchestration(resources), plant.cognition(resources, plant.WatchedModel())
    try:
        async with plant.running(*workers):
            await plant.start(resources, batch)
            async with asyncio.timeout(60):
                while (await state_of(resources, batch, 0)).state is not FileState.NEEDS_INTERVENTION:
                    await asyncio.sleep(0.05)
            await services(resources).orchestrator.cancel_batch(batch)
            (ended,) = await plant.all_ended(resources, batch)
    finally:
        await as_owner(database_url, END_REFUSING_SQL)
    assert ended.state is BatchState.CANCELLED
    assert (await state_of(resources, batch, 0)).state is FileState.CANCELLED

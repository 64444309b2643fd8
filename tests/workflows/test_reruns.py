"""A batch that has ended runs again: its failed files, or a cohort from a step on; the rest stays."""

import asyncio
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError

from db.postgres.batches import PostgresBatchRuns
from db.postgres.checkpoints import FencedPostgresSaver
from db.postgres.grading import PostgresThreads
from db.postgres.pauses import PostgresPauses
from domain.batch import Batch, StoredFile
from domain.errors import EpochSuperseded, IllegalTransition
from domain.ports import AssessmentStart
from domain.states import BatchState, FileState
from domain.threads import ForkPlace, SavedCheckpoint
from gateway.scripted import Rule, Script
from runtime.resources import Resources
from runtime.server import services
from runtime.sweeper import BatchSweeper
from tests.builders import a_submission, open_batch
from tests.workflows import plant
from tests.workflows.test_pauses import MeteredModel, raise_limit, state_of
from workflows.batch import BatchWorkflow

#: a reply that is no JSON, twice: the specialist gives up, and the file fails
NO_REPLY = Rule("*", fail="invalid_json", times=2)


async def a_class(resources: Resources, files: int, *, questions: int = 1, **opening: Any) -> Batch:
    return await open_batch(
        resources,
        {name: a_submission(plant.answers_to(questions)) for name in plant.names(files)},
        exam=plant.exam_of(questions),
        **opening,
    )


async def checkpoints(resources: Resources, file: StoredFile, generation: int) -> list[SavedCheckpoint]:
    """Those of that generation's thread, oldest first."""
    found = await services(resources).thread_history.checkpoints(file.id)
    return [each for each in reversed(found) if each.generation == generation]


def calls_of(model: plant.WatchedModel, generation: int) -> list[str]:
    """What was asked on behalf of that generation, by question and number."""
    return sorted(key.split(f"/g{generation}/")[1] for key in model.begun if f"/g{generation}/" in key)


async def test_only_failed_files_run_again_and_the_others_keep_their_results(resources: Resources) -> None:
    batch = await a_class(resources, 3)
    failing = (await plant.files_of(resources, batch))[1]
    model = plant.WatchedModel(Script(rules=tuple(plant.rules_for(failing.id, NO_REPLY))))
    made = services(resources)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        (ended,) = await plant.all_ended(resources, batch)
        before = {file.id: file for file in await plant.files_of(resources, batch)}
        assert (ended.state, before[failing.id].state) == (BatchState.PARTIAL, FileState.FAILED)

        outcomes = await asyncio.gather(
            *(made.reruns.retry_failed("local", batch.id) for _ in range(2)), return_exceptions=True
        )
        (again,) = [each for each in outcomes if isinstance(each, Batch)]
        (refused,) = [each for each in outcomes if not isinstance(each, Batch)]
        assert isinstance(refused, IllegalTransition), "of two at once, one wins"
        assert (again.state, again.generation, again.failure_code) == (BatchState.SCATTERING, 2, None)
        counts = (await made.batches.progress(batch.id)).counts
        assert (counts.completed, counts.queued) == (2, 1)
        model.holds = lambda call: call.step.generation == 2
        await plant.start(resources, again, again)
        await model.is_holding(1)
        progress = await plant.handle_of(resources, again).query(BatchWorkflow.progress)
        assert progress.counts == (await made.batches.progress(batch.id)).counts
        assert (progress.counts.completed, progress.counts.running) == (2, 1)
        model.released.set()
        (ended,) = await plant.all_ended(resources, again)

    assert (ended.state, ended.generation) == (BatchState.COMPLETED, 2)
    after = {file.id: file for file in await plant.files_of(resources, batch)}
    retried = after.pop(failing.id)
    assert (retried.state, retried.generation, retried.failure_code) == (FileState.COMPLETED, 2, None)
    del before[failing.id]
    assert after == before, "whoever had not failed is not touched"
    assert calls_of(model, 2) == ["q1/all/first/1"], "a deliberate re-run pays anew, and only for its own"
    report = await made.results.report("local", batch.id)
    assert (report["batch"]["generation"], report["scores"]["graded"]) == (2, 3)
    told = [data["to"] for file_id, kind, data in await plant.file_events(resources, batch)
            if file_id == failing.id and kind == "StatusChanged"]  # fmt: skip
    assert told == ["running", "failed", "queued", "running", "completed"]


async def test_a_fork_pays_nothing_for_what_came_before_and_anew_for_what_follows(
    resources: Resources,
) -> None:
    batch = await a_class(resources, 2, questions=2)
    model, made = plant.WatchedModel(), services(resources)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        await plant.all_ended(resources, batch)
        file, other = await plant.files_of(resources, batch)
        marks = await made.results.of_submission(file.id)
        spent = (await made.batches.progress(batch.id)).spent_nanodollars
        first = await checkpoints(resources, file, 1)
        assert [each.next_nodes for each in first] == [
            ("__start__",), ("supervisor",), ("short_answer",), ("check_evidence",), ("sum_points",), (),
        ]  # fmt: skip
        assert [each.nodes for each in first[1:]] == [each.next_nodes for each in first[:-1]]

        checked = await made.reruns.fork("local", batch.id, ForkPlace(node="check_evidence"), [file.id])
        await plant.start(resources, checked)
        (ended,) = await plant.all_ended(resources, checked)
        assert (ended.state, ended.generation, calls_of(model, 2)) == (BatchState.COMPLETED, 2, [])
        assert (await made.batches.progress(batch.id)).spent_nanodollars == spent
        second = await checkpoints(resources, file, 2)
        kept = [each.checkpoint_id for each in first[:4]]
        assert [each.checkpoint_id for each in second[:4]] == kept
        assert [each.nodes for each in second[4:]] == [("check_evidence",), ("sum_points",)]

        # a fork of the fork, from a checkpoint that the first one has copied
        place = ForkPlace(checkpoint_id=second[2].checkpoint_id)
        graded = await made.reruns.fork("local", batch.id, place, [file.id])
        await plant.start(resources, graded)
        (ended,) = await plant.all_ended(resources, graded)
    assert (ended.state, ended.generation) == (BatchState.COMPLETED, 3)
    assert calls_of(model, 3) == ["q1/all/first/1", "q2/all/first/1"]
    assert (await made.batches.progress(batch.id)).spent_nanodollars == spent * 3 // 2
    assert await made.results.of_submission(file.id) == marks
    assert len({each.thread_id for each in await made.thread_history.checkpoints(file.id)}) == 3
    assert (await plant.files_of(resources, batch))[1] == other
    _, state = await made.thread_history.read(file.id, first[-1].checkpoint_id)
    assert state.values["total"] == {"score": 6.0, "max_score": 6.0}, "the first history is readable still"


async def test_what_worked_on_an_earlier_generation_cannot_write_any_more(resources: Resources) -> None:
    model, made = plant.WatchedModel(holds=lambda _: True), services(resources)
    batch = await a_class(resources, 1)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        await model.is_holding(1)
        (file,) = await plant.files_of(resources, batch)
        assert file.run_id is not None
        zombie = AssessmentStart(file.id, 1, file.run_id, file.workflow_id or "", file.run_id)
        # the batch is ended behind its workflow's back, whose agent is in a call still
        await PostgresBatchRuns(resources.postgres).end_early(batch.id, BatchState.FAILED, "workflow_closed")
        again = await made.reruns.retry_failed("local", batch.id)
        saver = FencedPostgresSaver(resources.postgres.pool, epoch=1)
        with pytest.raises(EpochSuperseded):
            await saver.adelete_thread(file.run_id)
        assert await PostgresThreads(resources.postgres).begin(zombie) is None
        model.released.set()
        with pytest.raises(WorkflowFailureError):
            await plant.handle_of(resources, batch).result()
        await plant.start(resources, again)
        (ended,) = await plant.all_ended(resources, again)
    assert (ended.state, ended.generation) == (BatchState.COMPLETED, 2)
    (file,) = await plant.files_of(resources, batch)
    assert (file.state, file.generation) == (FileState.COMPLETED, 2)
    rows = await resources.postgres.rows(
        "SELECT generation FROM grading_results WHERE submission_id = %s", [file.id]
    )
    assert {row["generation"] for row in rows} == {2}


async def test_a_rerun_whose_start_was_lost_is_started_by_the_sweeper(resources: Resources) -> None:
    batch = await open_batch(resources, {"a.json": a_submission(), "b.json": b"{"})
    made = services(resources)
    async with plant.running(
        plant.orchestration(resources), plant.cognition(resources, plant.WatchedModel())
    ):
        await plant.start(resources, batch)
        await plant.all_ended(resources, batch)
        again = await made.reruns.retry_failed("local", batch.id)
        sweeper = BatchSweeper(
            PostgresBatchRuns(resources.postgres),
            PostgresPauses(resources.postgres),
            made.orchestrator,  # type: ignore[arg-type]  # the one of the wiring is the real one
            quiet_seconds=0,
        )
        await sweeper.sweep_once()
        await sweeper.sweep_once()
        (ended,) = await plant.all_ended(resources, again)
    # the broken file is broken still; the other one was not touched
    assert (ended.state, ended.generation, ended.failure_code) == (BatchState.PARTIAL, 2, None)
    assert [file.generation for file in await plant.files_of(resources, batch)] == [1, 2]


async def pauses(resources: Resources, batch: Batch) -> None:
    async with asyncio.timeout(60):
        while await state_of(resources, batch) is not BatchState.PAUSED:
            await asyncio.sleep(0.02)


async def test_a_batch_that_was_cancelled_while_paused_runs_again_and_pauses_again(
    resources: Resources,
) -> None:
    model, made = MeteredModel(limit=1), services(resources)
    batch = await a_class(resources, 3, max_concurrent=1)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        await pauses(resources, batch)
        await made.orchestrator.cancel_batch(batch)
        (ended,) = await plant.all_ended(resources, batch)
        assert ended.state is BatchState.CANCELLED
        again = await made.reruns.retry_failed("local", batch.id)
        assert (await made.batches.progress(batch.id)).pause is None
        await plant.start(resources, again)
        await pauses(resources, again)
        assert (await made.batches.progress(batch.id)).counts.completed == 1
        model.limit = 3
        await raise_limit(resources, again, 3)
        (ended,) = await plant.all_ended(resources, again)
    assert ended.state is BatchState.COMPLETED
    assert sorted(file.generation for file in await plant.files_of(resources, batch)) == [1, 2, 2]

"""Records the histories that `test_histories.py` replays; see README.md before running it."""

import json
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHandle

from domain.batch import Batch
from domain.errors import BudgetExhausted, ModelRefused
from domain.identity import override_workflow_id, window_workflow_id
from domain.overrides import Override
from domain.states import BatchState
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, open_batch
from tests.db.stage import until
from tests.workflows import log_plant as logs
from tests.workflows.plant import (
    RefusingCache,
    WatchedModel,
    all_ended,
    answers_to,
    child_of,
    cognition,
    exam_of,
    files_of,
    half_done,
    handle_of,
    names,
    orchestration,
    reset,
    running,
    start,
    with_worker_settings,
)
from tests.workflows.test_overrides import StubbornCache
from tests.workflows.test_pauses import MeteredModel, is_paused, raise_limit

HISTORIES = Path(__file__).parent / "histories"
#: what a history says of the machine it was made on, and replaying does not need
MACHINE = ("identity", "stackTrace")


async def save(name: str, handle: WorkflowHandle[Any, Any]) -> None:
    """Write the workflow's history, without a trace of this machine."""
    document = json.loads((await handle.fetch_history()).to_json())
    HISTORIES.mkdir(exist_ok=True)
    text = json.dumps(_scrubbed(document), indent=1, ensure_ascii=False)
    (HISTORIES / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _scrubbed(each) for name, each in value.items() if name not in MACHINE}
    if isinstance(value, list):
        return [_scrubbed(each) for each in value]
    return value


def window_of(resources: Resources, batch: Batch, index: int) -> WorkflowHandle[Any, Any]:
    """A window's workflow."""
    return resources.temporal.get_workflow_handle(window_workflow_id(batch.id, 1, index))


async def test_record_two_windows_of_which_one_grows(resources: Resources) -> None:
    resources = with_worker_settings(resources, window_files=3)
    batch = await open_batch(
        resources,
        {name: a_submission(answers_to(1)) for name in names(6)},
        exam=exam_of(1),
        max_concurrent=2,
    )
    files = await files_of(resources, batch)
    second_half = {file.id for file in files[3:]}
    model = WatchedModel(holds=lambda call: call.step.file_id in second_half)
    async with running(orchestration(resources), cognition(resources, model)):
        await start(resources, batch)
        await model.is_holding(2)
        model.released.set()
        await all_ended(resources, batch)
        await save("batch-completed", handle_of(resources, batch))
        await save("window-completed", window_of(resources, batch, 0))
        await save("window-grown", window_of(resources, batch, 1))
        await save("grading-completed", child_of(resources, files[0]))
        await save("grading-with-state-signal", child_of(resources, files[3]))


async def test_record_a_file_that_fails(resources: Resources) -> None:
    batch = await open_batch(resources, {"a.json": a_submission(), "b.json": b"{"})
    async with running(orchestration(resources), cognition(resources, WatchedModel())):
        await start(resources, batch)
        await all_ended(resources, batch)
        await save("batch-partial", handle_of(resources, batch))
        await save("window-partial", window_of(resources, batch, 0))
        await save("grading-failed", child_of(resources, (await files_of(resources, batch))[1]))


async def test_record_a_batch_that_is_cancelled(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        await services(resources).orchestrator.cancel_batch(batch)
        await all_ended(resources, batch)
        await save("batch-cancelled", handle_of(resources, batch))
        await save("window-cancelled", window_of(resources, batch, 0))
        await save("grading-cancelled", child_of(resources, (await files_of(resources, batch))[2]))


async def test_record_a_saga_that_is_compensated(resources: Resources) -> None:
    batch = await open_batch(resources, {"a.json": a_submission()})
    async with running(orchestration(resources, RefusingCache), cognition(resources, WatchedModel())):
        await start(resources, batch)
        await all_ended(resources, batch)
        await save("batch-failed", handle_of(resources, batch))
        await save("grading-compensated", child_of(resources, (await files_of(resources, batch))[0]))


async def test_record_children_that_are_terminated_and_cancelled_by_hand(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        files = await files_of(resources, batch)
        await child_of(resources, files[2]).terminate("by hand")
        await child_of(resources, files[3]).cancel()
        await model.is_holding(2)
        model.released.set()
        await all_ended(resources, batch)
        await save("window-interfered", window_of(resources, batch, 0))


async def test_record_a_batch_that_is_reset(resources: Resources) -> None:
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        batch = await half_done(resources, model)
        await reset(resources, handle_of(resources, batch))
        model.released.set()
        await all_ended(resources, batch)
        await save("batch-reset", handle_of(resources, batch))
        await save("window-of-reset", window_of(resources, batch, 0))


async def test_record_a_batch_that_pauses_and_is_resumed(resources: Resources) -> None:
    batch = await open_batch(
        resources,
        {name: a_submission(answers_to(1)) for name in names(4)},
        exam=exam_of(1),
        max_concurrent=1,
    )
    model = MeteredModel(limit=1)
    async with running(orchestration(resources), cognition(resources, model)):
        await start(resources, batch)
        await is_paused(resources, batch)
        model.limit = 4
        await raise_limit(resources, batch, 4)
        await all_ended(resources, batch)
        await save("batch-paused", handle_of(resources, batch))
        await save("window-paused", window_of(resources, batch, 0))
        await save("grading-paused", child_of(resources, (await files_of(resources, batch))[1]))


async def test_record_a_batch_that_runs_again(resources: Resources) -> None:
    batch = await open_batch(resources, {"a.json": a_submission(), "b.json": b"{"})
    async with running(orchestration(resources), cognition(resources, WatchedModel())):
        await start(resources, batch)
        await all_ended(resources, batch)
        again = await services(resources).reruns.retry_failed("local", batch.id)
        await start(resources, again)
        await all_ended(resources, again)
        await save("batch-rerun", handle_of(resources, again))
        window_id = window_workflow_id(batch.id, again.generation, 0)
        await save("window-rerun", resources.temporal.get_workflow_handle(window_id))


async def test_record_a_batch_of_logs(resources: Resources) -> None:
    files = {"a.log": logs.HEALTHY, "b.log": logs.BROKEN, "c.log": logs.UNREADABLE}
    batch = await logs.open_logs(resources, files)
    workers = logs.parsing(resources), logs.diagnosing(resources)
    async with running(orchestration(resources), *workers):
        await start(resources, batch)
        await all_ended(resources, batch)
        await save("logs-partial", handle_of(resources, batch))
        await save("window-of-logs", window_of(resources, batch, 0))
        await save("diagnosis-completed", logs.diagnosis_of(resources, batch))
        parsed, _, broken = await files_of(resources, batch)
        await save("log-completed", logs.log_of(resources, parsed))
        await save("log-failed", logs.log_of(resources, broken))


async def test_record_a_diagnosis_that_pauses_and_then_fails(resources: Resources) -> None:
    batch = await logs.open_logs(resources, {"a.log": logs.HEALTHY})
    refusals = [BudgetExhausted("Too much.", scope="batch", missing_nanodollars=5), ModelRefused("No.")]
    diagnoser = logs.PlainDiagnoser(resources, refusals={batch.id: [*refusals]})
    workers = logs.parsing(resources), logs.diagnosing(resources, diagnoser)
    async with running(orchestration(resources), *workers):
        await start(resources, batch)
        await logs.is_in(resources, batch, BatchState.PAUSED)
        await raise_limit(resources, batch, 4)
        await all_ended(resources, batch)
        await save("logs-paused", handle_of(resources, batch))
        await save("diagnosis-paused", logs.diagnosis_of(resources, batch))


async def test_record_logs_that_are_cancelled(resources: Resources) -> None:
    parser = logs.LineParser(resources, logs.Gate(everyone=True))
    diagnoser = logs.PlainDiagnoser(resources, logs.Gate(everyone=True))
    parsed = await logs.open_logs(resources, {"a.log": logs.HEALTHY})
    async with running(orchestration(resources), logs.diagnosing(resources, diagnoser)):
        async with running(logs.parsing(resources)):
            await start(resources, parsed)
            await diagnoser.gate.is_holding(parsed.id)
        async with running(logs.parsing(resources, parser)):
            waiting = await logs.open_logs(resources, {"a.log": logs.HEALTHY})
            await start(resources, waiting)
            await parser.gate.is_holding("a.log")
            for each in (parsed, waiting):
                await services(resources).orchestrator.cancel_batch(each)
            await all_ended(resources, parsed, waiting)
        await save("logs-cancelled", handle_of(resources, parsed))
        await save("diagnosis-cancelled", logs.diagnosis_of(resources, parsed))
        await save("log-cancelled", logs.log_of(resources, (await files_of(resources, waiting))[0]))


async def test_record_overrides_of_which_one_is_undone(resources: Resources) -> None:
    batch = await open_batch(resources, {"a.json": a_submission()})
    (file,) = await files_of(resources, batch)
    async with running(orchestration(resources, StubbornCache), cognition(resources, WatchedModel())):
        await start(resources, batch)
        await all_ended(resources, batch)
        for name in ("completed", "compensated"):
            StubbornCache.refusing = name == "compensated"
            override = Override(name, "local", batch.id, file.id, "q2", "So.", "a key", {"c1": 0.5})
            await services(resources).orchestrator.start_override(override)
            handle = resources.temporal.get_workflow_handle(override_workflow_id(file.id, name))
            if StubbornCache.refusing:
                await until(lambda: _waits(resources, file.id), within_seconds=20)
                StubbornCache.stubborn = False
                await services(resources).orchestrator.retry_file(handle.id)
            await handle.result()
            await save(f"override-{name}", handle)


async def _waits(resources: Resources, submission_id: str) -> bool:
    known = await services(resources).overrides.list_of_submission("local", submission_id)
    return known[0].status == "needs_intervention"

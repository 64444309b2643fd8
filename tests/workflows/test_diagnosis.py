"""The river of a diagnosis batch: parsed, gathered, diagnosed; and what stands in its way."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from domain.batch import Batch
from domain.diagnosis import BatchSummary
from domain.documents import from_plain
from domain.errors import AssayError, BudgetExhausted, CheckpointNotSaved, ModelRefused, NothingToRerun
from domain.external_events import ExternalEvent
from domain.identity import WorkflowRef
from domain.states import BatchState
from runtime.event_relay import EventSignals
from runtime.resources import Resources
from runtime.server import services
from tests.workflows.log_plant import (
    BROKEN,
    HEALTHY,
    UNREADABLE,
    LineParser,
    PlainDiagnoser,
    diagnosing,
    diagnosis_of,
    is_in,
    open_logs,
    parsing,
)
from tests.workflows.plant import all_ended, files_of, history, of_type, orchestration, running, start
from workflows.diagnosis import DiagnosisWorkflow


@dataclass(frozen=True)
class Plant:
    """The workers of the module's batches, and who may hold them up."""

    resources: Resources
    parser: LineParser
    diagnoser: PlainDiagnoser


@pytest.fixture(scope="module")
async def plant(session_resources: Resources) -> AsyncIterator[Plant]:
    made = Plant(session_resources, LineParser(session_resources), PlainDiagnoser(session_resources))
    workers = parsing(session_resources, made.parser), diagnosing(session_resources, made.diagnoser)
    async with running(orchestration(session_resources), *workers):
        yield made


async def told(resources: Resources, batch: Batch) -> list[tuple[str, dict[str, Any]]]:
    """The batch's events in the order they were written: type and data."""
    rows = await resources.postgres.rows(
        "SELECT event_type, data FROM progress_events WHERE batch_id = %s ORDER BY id", [batch.id]
    )
    return [(row["event_type"], row["data"]) for row in rows]


async def stages(resources: Resources, batch: Batch) -> list[str]:
    """The states that the batch has gone through."""
    return [
        data["to"]
        for kind, data in await told(resources, batch)
        if kind == "StatusChanged" and data["machine"] == "batch"
    ]


async def summary_of(resources: Resources, batch: Batch) -> BatchSummary:
    row = await resources.postgres.row(
        "SELECT document FROM log_summaries WHERE batch_id = %s AND generation = %s",
        [batch.id, batch.generation],
    )
    assert row is not None
    return from_plain(BatchSummary, row["document"])


async def test_logs_are_parsed_gathered_and_diagnosed_and_a_broken_one_fails_alone(plant: Plant) -> None:
    resources = plant.resources
    files = {"a.log": HEALTHY, "b.log": BROKEN, "c.log": UNREADABLE}
    batch = await open_logs(resources, files, vehicle_id="V7")
    await start(resources, batch)
    (ended,) = await all_ended(resources, batch)

    assert (ended.state, ended.failure_code) == ("partial", None)
    assert await stages(resources, batch) == [
        "uploaded", "scattering", "scattered", "gathering", "gathered", "diagnosing", "partial",
    ]  # fmt: skip
    a, b, c = await files_of(resources, batch)
    assert [each.state for each in (a, b, c)] == ["completed", "completed", "failed"]
    assert c.failure_code == "unreadable_log"
    assert a.log is not None
    assert (a.log.lines, a.log.coverage, a.log.first_at) == (20, 1.0, "2026-01-02T03:04:00+00:00")
    summary = await summary_of(resources, batch)
    assert (summary.files, summary.lines) == (2, 45)
    assert {each.vehicle_id for each in summary.vehicles} == {"V7"}
    events = await told(resources, batch)
    kinds = [kind for kind, _ in events]
    assert kinds.count("FileParsed") == 2
    completed = [data for kind, data in events if kind == "DiagnosisCompleted"]
    assert [each["verdict"] for each in completed] == ["insufficient_evidence"]
    order = [kinds.index(each) for each in ("AllFilesGathered", "DiagnosisCompleted", "ReportReady")]
    assert order == sorted(order)


async def test_what_failed_is_parsed_again_gathered_again_and_diagnosed_anew(plant: Plant) -> None:
    resources = plant.resources
    batch = await open_logs(resources, {"a.log": HEALTHY, "b.log": BROKEN, "c.log": UNREADABLE})
    await start(resources, batch)
    await all_ended(resources, batch)
    again = await services(resources).reruns.retry_failed("local", batch.id)
    await start(resources, again)
    (second,) = await all_ended(resources, again)
    assert (second.state, second.generation) == ("partial", 2)
    assert (await summary_of(resources, second)).lines == 45
    rows = await resources.postgres.rows(
        "SELECT generation FROM ai_diagnoses WHERE batch_id = %s AND recorded_at IS NOT NULL", [batch.id]
    )
    assert sorted(row["generation"] for row in rows) == [1, 2], "the old diagnosis is kept"
    parsed = [kind for kind, _ in await told(resources, batch) if kind == "FileParsed"]
    assert len(parsed) == 2, "what was parsed is not parsed again"


async def test_a_batch_in_which_nothing_can_be_parsed_fails_without_a_diagnosis(plant: Plant) -> None:
    resources = plant.resources
    batch = await open_logs(resources, {"a.log": UNREADABLE, "b.log": UNREADABLE})
    await start(resources, batch)
    (ended,) = await all_ended(resources, batch)
    assert ended.state == "failed"
    assert "diagnosing" not in await stages(resources, batch)
    assert batch.id not in plant.diagnoser.seen


@pytest.mark.parametrize(
    "refusal",
    [BudgetExhausted("The batch's limit.", scope="batch", missing_nanodollars=5), CheckpointNotSaved("No.")],
    ids=["money", "a human"],
)
async def test_a_diagnosis_pauses_the_batch_and_goes_on_with_its_thread(
    plant: Plant, refusal: AssayError
) -> None:
    resources = plant.resources
    batch = await open_logs(resources, {"a.log": BROKEN})
    plant.diagnoser.refusals[batch.id] = [refusal]
    await start(resources, batch)
    await is_in(resources, batch, BatchState.PAUSED)
    pause = (await services(resources).batches.progress(batch.id)).pause
    assert pause is not None
    assert pause.scope == ("batch" if pause.missing_nanodollars else "checkpoint_not_saved")

    resumptions = await services(resources).resumptions.resume("local", batch.id)
    assert resumptions == 1
    await services(resources).orchestrator.resume_batch(batch, resumptions)
    (ended,) = await all_ended(resources, batch)

    assert ended.state == "completed"
    assert (await stages(resources, batch))[-4:] == ["diagnosing", "paused", "diagnosing", "completed"]
    seen = plant.diagnoser.seen[batch.id]
    assert [epoch for _, epoch in seen] == [1, 2]
    assert len({thread for thread, _ in seen}) == 1


async def test_an_event_for_a_diagnosis_is_one_signal_however_often_it_is_sent(plant: Plant) -> None:
    resources, event = plant.resources, ExternalEvent("recall", "campaign", {"stopped": True})
    batch = await open_logs(resources, {"a.log": HEALTHY})
    plant.diagnoser.gate.names.add(batch.id)
    await start(resources, batch)
    await plant.diagnoser.gate.is_holding(batch.id)
    workflow_id = str(WorkflowRef(batch.id, diagnosis=True))
    for _ in range(2):
        await EventSignals(resources.temporal).send(workflow_id, event)
    handle = resources.temporal.get_workflow_handle_for(DiagnosisWorkflow.run, workflow_id)
    assert await handle.query(DiagnosisWorkflow.events) == [event]
    signals = of_type(await history(handle), "WORKFLOW_EXECUTION_SIGNALED")
    assert len(signals) == 1
    plant.diagnoser.gate.names.discard(batch.id)
    (ended,) = await all_ended(resources, batch)
    assert ended.state == "completed"


async def test_a_batch_is_cancelled_while_it_is_diagnosed_and_while_its_logs_are_parsed(plant: Plant) -> None:
    resources, orchestrator = plant.resources, services(plant.resources).orchestrator
    late = await open_logs(resources, {"a.log": HEALTHY})
    early = await open_logs(resources, {"a.log": HEALTHY, "held.log": HEALTHY})
    plant.diagnoser.gate.names.add(late.id)
    plant.parser.gate.names.add("held.log")
    await start(resources, late, early)
    await plant.diagnoser.gate.is_holding(late.id)
    await plant.parser.gate.is_holding("held.log")
    for each in (late, early):
        await orchestrator.cancel_batch(each)
    ended = await all_ended(resources, late, early)
    assert [each.state for each in ended] == ["cancelled", "cancelled"]
    assert [each.state for each in await files_of(resources, late)] == ["completed"]
    assert [each.state for each in await files_of(resources, early)] == ["completed", "cancelled"]
    # the activities had stopped before their batches were called cancelled
    assert not plant.diagnoser.gate.held[late.id]
    assert not plant.parser.gate.held["held.log"]


async def test_a_batch_whose_diagnosis_fails_is_partial_and_a_retry_diagnoses_it_again(plant: Plant) -> None:
    resources = plant.resources
    batch = await open_logs(resources, {"a.log": BROKEN, "b.log": HEALTHY})
    plant.diagnoser.refusals[batch.id] = [ModelRefused("for good")]
    await start(resources, batch)
    (ended,) = await all_ended(resources, batch)
    assert (ended.state, ended.failure_code) == ("partial", "model_refused")
    failed = [data for kind, data in await told(resources, batch) if kind == "DiagnosisFailed"]
    assert failed == [{"generation": 1, "code": "model_refused", "message": "for good"}]

    again = await services(resources).reruns.retry_failed("local", batch.id)
    await start(resources, again)
    (ended,) = await all_ended(resources, again)
    assert (ended.state, ended.failure_code) == ("completed", None)
    with pytest.raises(NothingToRerun):
        await services(resources).reruns.retry_failed("local", batch.id)


async def test_a_diagnosis_that_is_terminated_by_hand_leaves_its_batch_in_part(plant: Plant) -> None:
    resources = plant.resources
    batch = await open_logs(resources, {"a.log": HEALTHY})
    plant.diagnoser.gate.names.add(batch.id)
    await start(resources, batch)
    await plant.diagnoser.gate.is_holding(batch.id)
    await diagnosis_of(resources, batch).terminate("by hand")
    (ended,) = await all_ended(resources, batch)
    plant.diagnoser.gate.names.clear()
    assert (ended.state, ended.failure_code) == ("partial", "terminated_error")

"""What happens outside reaches the running graph at its next step, and shows in its state (G2.2)."""

from typing import Any

import pytest

from db.postgres.pauses import PostgresPauses
from domain.batch import Batch, Pause, StoredFile
from domain.errors import NotFound
from domain.external_events import ExternalEvent
from domain.identity import WorkflowRef
from domain.states import BatchState, FileState
from gateway.scripted import Rule, Script
from runtime.resources import Resources
from runtime.server import services
from runtime.worker import cognition_worker
from tests.builders import a_submission, open_batch
from tests.db.stage import until
from tests.workflows import plant
from tests.workflows.log_plant import BROKEN, open_logs, parsing
from tests.workflows.test_pauses import MeteredModel, is_paused, raise_limit
from workflows.diagnosis import DiagnosisWorkflow


async def states_of(resources: Resources, file: StoredFile) -> list[dict[str, Any]]:
    """What the file's graph knew at each of its checkpoints, oldest first."""
    history = services(resources).thread_history
    found = reversed(await history.checkpoints(file.id))
    return [dict((await history.read(file.id, each.checkpoint_id))[1].values) for each in found]


async def a_batch(resources: Resources, files: int) -> Batch:
    return await open_batch(
        resources,
        {name: a_submission(plant.answers_to(1)) for name in plant.names(files)},
        exam=plant.exam_of(1),
        max_concurrent=files,
    )


async def test_events_and_a_raised_limit_reach_a_running_graph_once(resources: Resources) -> None:
    batch = await a_batch(resources, 1)
    (file,) = await plant.files_of(resources, batch)
    model = plant.WatchedModel(
        # the first attempt at the call fails when it is released: another attempt hears everything again
        Script(rules=tuple(plant.rules_for(file.id, Rule("q1", fail="model_unavailable", times=1)))),
        holds=lambda _: True,
    )
    made, workflow = services(resources), WorkflowRef(batch.id, file.id)
    early = ExternalEvent("early", "weather", {"rain": True})
    await made.workflow_events.store("local", workflow, early, "")
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        await model.is_holding(1)
        assert (await plant.agent_state(resources, file)).stage != "done"
        late = ExternalEvent("late", "sensor", {"text": "x" * 5_000})
        for _ in range(2):
            await made.workflow_events.store("local", workflow, late, "")
        assert await PostgresPauses(resources.postgres).set_limit("local", batch.id, 7) is None
        model.released.set()
        (ended,) = await plant.all_ended(resources, batch)
        state = await plant.agent_state(resources, file)
    assert ended.state is BatchState.COMPLETED
    assert state.external_events == ["early", "late"]
    assert (await made.agent_states.latest(plant.child_of(resources, file).id)) == state
    states = await states_of(resources, file)
    heard = [sorted(each.get("external_events", {})) for each in states]
    assert heard[-1] == ["g1/early", "g1/late"]
    assert ["g1/early"] in heard, "the first event was there at the first step, the second one came later"
    assert heard == sorted(heard, key=len)
    events = states[-1]["external_events"]
    assert (events["g1/early"]["type"], events["g1/early"]["data"]) == ("weather", '{"rain": true}')
    assert events["g1/late"]["data"] is None, "what is too long for a state stays in Postgres"
    assert states[-1]["batch"]["limit_nanodollars"] == 7


async def _has_completed(resources: Resources, file: StoredFile) -> bool:
    found = await services(resources).batches.submission("local", file.id)
    return found.state is FileState.COMPLETED


async def test_a_pause_reaches_a_graph_that_has_work_left(resources: Resources) -> None:
    batch = await a_batch(resources, 2)
    first, second = await plant.files_of(resources, batch)
    repairing = Rule("q1/*/1", fail="bad_quote")
    metered = MeteredModel(limit=3)
    metered.upstream = plant.WatchedModel(  # type: ignore[assignment]  # a model, too
        Script(rules=tuple(plant.rules_for(first.id, repairing))),
        holds=lambda call: call.step.file_id == first.id,
    )
    watched: Any = metered.upstream
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, metered)):
        await plant.start(resources, batch)
        await watched.is_holding(1)
        await until(lambda: _has_completed(resources, second))
        # as if a third file had been refused
        await PostgresPauses(resources.postgres).pause(batch.id, second.id, 1, Pause("batch", 1_500))
        watched.released.set()
        await is_paused(resources, batch)
        states = await states_of(resources, first)
        assert states[-1]["batch"]["state"] == "paused"
        assert metered.paid.total() == 2, "the repair has not been asked for"
        await raise_limit(resources, batch, 8)
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    assert metered.refused == 0, "nobody asked only to be refused"
    assert set(metered.paid.values()) == {1}
    assert (await states_of(resources, first))[-1]["batch"]["resumptions"] == 1
    files = await plant.files_of(resources, batch)
    assert [file.state for file in files] == [FileState.COMPLETED] * 2


async def test_a_running_diagnosis_hears_what_happens_outside(resources: Resources) -> None:
    batch = await open_logs(resources, {"a.log": BROKEN})
    workflow = WorkflowRef(batch.id, diagnosis=True)
    recall = ExternalEvent("recall", "campaign", {"stopped": True})
    await services(resources).workflow_events.store("local", workflow, recall, "")
    handle = resources.temporal.get_workflow_handle_for(DiagnosisWorkflow.run, str(workflow))
    async with plant.running(plant.orchestration(resources), parsing(resources), cognition_worker(resources)):
        await plant.start(resources, batch)
        (ended,) = await plant.all_ended(resources, batch)
        state = await handle.query(DiagnosisWorkflow.state)
    assert ended.state is BatchState.COMPLETED
    assert (state.stage, state.external_events) == ("done", ["recall"])


async def test_only_a_batch_of_logs_has_a_diagnosis_to_tell(resources: Resources) -> None:
    batch = await a_batch(resources, 1)
    event = ExternalEvent("recall", "campaign")
    with pytest.raises(NotFound, match="There is no workflow"):
        await services(resources).workflow_events.store(
            "local", WorkflowRef(batch.id, diagnosis=True), event, ""
        )

"""The agent's activity as its workflow sees it: heartbeats, drains, and how little it costs."""

import asyncio
import contextlib

from db.redis.progress import RedisStatePublisher
from domain.batch import AgentState
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.workflows.plant import (
    WatchedModel,
    all_ended,
    answers_to,
    child_of,
    cognition,
    exam_of,
    files_of,
    history,
    names,
    of_type,
    orchestration,
    running,
    start,
    with_worker_settings,
)

#: a file's whole history, the saga included: each event costs the server
EVENTS_OF_A_FILE = 20


async def test_a_pending_model_call_outlives_many_heartbeat_timeouts(resources: Resources) -> None:
    assert resources.settings.worker.heartbeat_timeout_seconds == 2
    batch = await open_batch(resources, {"a.json": a_submission(answers_to(1))}, exam=exam_of(1))
    (file,) = await files_of(resources, batch)
    model = WatchedModel(holds=lambda _: True)
    async with running(orchestration(resources), cognition(resources, model)):
        await start(resources, batch)
        await model.is_holding(1)
        await asyncio.sleep(8)
        model.released.set()
        (ended,) = await all_ended(resources, batch)
        events = await history(child_of(resources, file))
    assert ended.state == "completed"
    assessing, *_ = of_type(events, "ACTIVITY_TASK_STARTED")
    assert assessing.activity_task_started_event_attributes.attempt == 1
    assert set(model.begun.values()) == {1}


async def test_a_worker_that_shuts_down_drains_its_agents_and_another_resumes(resources: Resources) -> None:
    resources = with_worker_settings(resources, shutdown_seconds=10)
    batch = await open_batch(
        resources, {name: a_submission(answers_to(3)) for name in names(6)}, exam=exam_of(3)
    )
    first = WatchedModel(holds=lambda call: call.step.question_id == "q3")
    second = WatchedModel()
    async with running(orchestration(resources)):
        worker = cognition(resources, first)
        async with worker:
            await start(resources, batch)
            await first.is_holding(6)
            stopping = asyncio.create_task(worker.shutdown())
            await asyncio.sleep(0.5)
            # the calls in flight come to their end, and nothing begins behind them
            first.released.set()
            await stopping
        assert first.returned.total() == 18
        async with running(cognition(resources, second)):
            (ended,) = await all_ended(resources, batch)
        for file in await files_of(resources, batch):
            assessing, *_ = of_type(await history(child_of(resources, file)), "ACTIVITY_TASK_STARTED")
            attempt = assessing.activity_task_started_event_attributes
            assert attempt.attempt == 2
            assert attempt.last_failure.application_failure_info.type == "agent_drained", attempt
    assert ended.state == "completed"
    assert not second.begun, "no finished question is asked about again"


class DeafPublisher(RedisStatePublisher):
    """A publisher that a cancellation does not stop, as `asyncio.wait_for` had it before Python 3.12."""

    async def publish(self, workflow_id: str, submission_id: str, state: AgentState) -> None:
        """Publish slowly."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.3)
        await super().publish(workflow_id, submission_id, state)


async def test_an_agent_that_is_done_waits_for_nobody_who_shows_its_state(resources: Resources) -> None:
    batch = await open_batch(resources, {"a.json": a_submission()})
    async with running(orchestration(resources), cognition(resources, WatchedModel(), DeafPublisher)):
        await start(resources, batch)
        (ended,) = await all_ended(resources, batch)
        (file,) = await files_of(resources, batch)
        assessing, *_ = of_type(await history(child_of(resources, file)), "ACTIVITY_TASK_STARTED")
    assert ended.state == "completed"
    assert assessing.activity_task_started_event_attributes.attempt == 1


async def test_a_file_costs_the_server_few_events(resources: Resources) -> None:
    resources = with_worker_settings(resources, state_interval_seconds=30)
    batch = await open_batch(resources, {"a.json": a_submission()})
    async with running(orchestration(resources), cognition(resources, WatchedModel())):
        await start(resources, batch)
        await all_ended(resources, batch)
        (file,) = await files_of(resources, batch)
        events = await history(child_of(resources, file))
    assert len(events) <= EVENTS_OF_A_FILE

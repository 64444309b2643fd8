"""Property 19: what happens outside reaches the workflow that waits for it, once, whichever way it comes."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import strategies as st
from temporalio.worker import Worker

import runtime.worker
from activities.assess import AssessActivities
from activities.intake.reader import Intake
from db.postgres.exams import PostgresExams
from db.postgres.external_events import PostgresExternalEvents
from db.postgres.grading import PostgresSubmissions, PostgresThreads
from db.postgres.locks import PostgresFences
from db.redis.progress import RedisStatePublisher
from db.redis.workflow_events import RedisWorkflowEvents, workflow_events_channel
from domain.batch import AgentState, Batch, StoredFile
from domain.errors import CheckpointNotSaved, PostgresUnavailable
from domain.external_events import RETRY, DeliveryState, ExternalEvent, StoredEvent
from domain.identity import WorkflowRef
from domain.ports import AgentOutcome, AgentRun
from domain.states import BatchState
from runtime.event_relay import EventRelay, EventSignals
from runtime.resources import Resources, in_background
from tests.builders import a_submission, open_batch
from tests.db.stage import an_assessment, until
from tests.properties.drawing import REQUIRED, drawn
from tests.workflows import plant
from workflows.grading import GradingWorkflow

ROUNDS = 4
FILES = REQUIRED // ROUNDS
MALFORMED = (
    "not JSON",
    "[1]",
    '{"event_id": 7, "type": "retry"}',
    '{"event_id": "e", "data": {}}',
    '{"event_id": "e", "type": "retry", "data": "x"}',
    '{"event_id": "e", "kind": "retry"}',
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@dataclass(frozen=True)
class Case:
    """How one event comes, how often, and what else does."""

    way: Literal["stored", "bare"]
    copies: int
    #: the relay dies when the event was delivered, and before that is written
    relay_dies: bool
    #: an event of another type that comes first
    other: bool
    malformed: str | None
    data: dict[str, Any]


CASES = st.builds(
    Case,
    way=st.sampled_from(["stored", "bare"]),
    copies=st.integers(1, 3),
    relay_dies=st.booleans(),
    other=st.booleans(),
    malformed=st.none() | st.sampled_from(MALFORMED),
    data=st.dictionaries(TEXT, st.integers(-(2**40), 2**40) | st.booleans() | TEXT, max_size=3),
)


@dataclass
class StubbornAgent:
    """An agent that cannot save its first checkpoints."""

    refusals: int
    attempts: Counter[str] = field(default_factory=Counter)

    async def assess(
        self,
        run: AgentRun,
        *,
        on_state: Callable[[AgentState], None],
        on_restart: Callable[[str], None],
        draining: Callable[[], bool],
    ) -> AgentOutcome:
        """Full points, after so many refusals."""
        self.attempts[run.file_id] += 1
        if self.attempts[run.file_id] <= self.refusals:
            raise CheckpointNotSaved("The disk is full.")
        return AgentOutcome(an_assessment(run.exam), AgentState(thread_id=run.thread_id, stage="done"), False)


class MortalEvents(PostgresExternalEvents):
    """Events whose delivery is not always written down the first time."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources.postgres)
        self.dying: set[str] = set()
        self.died = 0

    async def settle(self, event: StoredEvent, state: DeliveryState, reason: str = "") -> None:
        """Die instead, once."""
        if event.event.event_id in self.dying:
            self.dying.remove(event.event.event_id)
            self.died += 1
            raise PostgresUnavailable("The relay is gone.")
        await super().settle(event, state, reason)


def agents(resources: Resources, agent: StubbornAgent) -> Worker:
    """The agents' worker as it is wired, with this agent."""
    assess = AssessActivities(
        threads=PostgresThreads(resources.postgres),
        submissions=PostgresSubmissions(resources.postgres),
        exams=PostgresExams(resources.postgres),
        objects=resources.objects,
        intake=Intake(recognition=False),
        agent=agent,
        states=RedisStatePublisher(resources.redis),
    )
    return runtime.worker._worker(
        resources,
        resources.settings.temporal.cognition_queue,
        workflows=[],
        activities=[assess.assess_submission],
        max_concurrent_activities=FILES,
    )


class Outside:
    """The world: it sends events, and remembers which."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.events = MortalEvents(resources)
        self.channel = RedisWorkflowEvents(resources.redis)
        self.sent: dict[str, list[ExternalEvent]] = {}
        self.stored = 0
        self.malformed = 0

    async def relaying(self, stack: AsyncExitStack) -> None:
        """Two relays, as of two processes."""
        for _ in range(2):
            relay = EventRelay(
                self.events,
                PostgresFences(self.resources.postgres),
                EventSignals(self.resources.temporal),
                self.resources.event_figures,
                taken_seconds=0.2,
                poll_seconds=0.1,
            )
            await stack.enter_async_context(in_background(relay.run(), self.channel.listen(relay.hear)))
        await until(self._both_listen)

    async def _both_listen(self) -> bool:
        # a worker of another test may listen, too
        return await self._publish("batch/none", "not JSON") >= 2

    async def _publish(self, workflow_id: str, message: str) -> int:
        heard: int = await self.resources.redis.client.publish(workflow_events_channel(workflow_id), message)
        return heard

    async def send(self, file: StoredFile, number: int, case: Case) -> None:
        """Everything of one case, and the event that the workflow waits for at its end."""
        workflow = WorkflowRef(file.batch_id, file.id)
        if case.malformed is not None:
            await self._publish(str(workflow), case.malformed)
            self.malformed += 1
        if case.other:
            await self._tell(workflow, ExternalEvent(f"other-{number}", "weather", case.data), case)
        event = ExternalEvent(f"event-{number}", RETRY, case.data)
        if case.relay_dies and case.way == "stored":
            self.events.dying.add(event.event_id)
        await self._tell(workflow, event, case)

    async def _tell(self, workflow: WorkflowRef, event: ExternalEvent, case: Case) -> None:
        self.sent.setdefault(workflow.file_id or "", []).append(event)
        if case.way == "bare":
            for _ in range(case.copies):
                assert await self._publish(str(workflow), json.dumps(vars(event))) >= 2
            return
        self.stored += 1
        told = await asyncio.gather(
            *(self.events.store("local", workflow, event, "") for _ in range(case.copies))
        )
        assert [new for _, new in told].count(True) == 1
        await self.channel.publish(str(workflow), event)


async def all_wait(resources: Resources, batch: Batch) -> bool:
    """Whether every file's workflow waits for a human."""
    sql = "SELECT count(*) AS waiting FROM files WHERE batch_id = %s AND state = 'needs_intervention'"
    row = await resources.postgres.row(sql, [batch.id])
    return row is not None and row["waiting"] == FILES


async def test_a_waiting_workflow_receives_its_event_once_and_goes_on(
    resources: Resources, example: Callable[[], None]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 19: Redis 事件接收**
    **验证: 需求 10.1**

    For every event, sent once or several times, stored or as a bare message, beside others and malformed
    ones, with two relays of which one may die right after delivery: the waiting workflow has it as exactly
    one signal, keeps its data, and goes on.
    """
    cases = drawn(CASES)
    batch = await open_batch(
        resources,
        {name: a_submission(plant.answers_to(1)) for name in plant.names(FILES)},
        exam=plant.exam_of(1),
        max_concurrent=FILES,
    )
    files = await plant.files_of(resources, batch)
    agent, outside = StubbornAgent(ROUNDS), Outside(resources)
    async with AsyncExitStack() as stack:
        await outside.relaying(stack)
        await stack.enter_async_context(
            plant.running(plant.orchestration(resources), agents(resources, agent))
        )
        await plant.start(resources, batch)
        for round_ in range(ROUNDS):
            await until(lambda: all_wait(resources, batch), within_seconds=120)
            assert set(agent.attempts.values()) == {round_ + 1}, "each has gone on once for each event"
            chosen = cases[round_ * FILES : (round_ + 1) * FILES]
            await asyncio.gather(
                *(outside.send(file, round_, case) for file, case in zip(files, chosen, strict=True))
            )
            # the file leaves its state when the next attempt begins
            await until(lambda number=round_ + 2: _reached(agent, number), within_seconds=120)
        (ended,) = await plant.all_ended(resources, batch)
        assert ended.state is BatchState.COMPLETED
        await until(lambda: _settled(outside))
        await asyncio.gather(*(prove(resources, outside, file) for file in files))
    assert outside.events.died > 0
    assert not outside.events.dying
    for _ in cases:
        example()


async def _reached(agent: StubbornAgent, number: int) -> bool:
    return len(agent.attempts) == FILES and min(agent.attempts.values()) == number


async def _settled(outside: Outside) -> bool:
    rows = await outside.resources.postgres.rows("SELECT state FROM external_events")
    assert len(rows) == outside.stored
    return all(row["state"] == DeliveryState.DELIVERED for row in rows)


async def prove(resources: Resources, outside: Outside, file: StoredFile) -> None:
    """Each of the file's events is one signal in its workflow's history, and all of its data is there."""
    handle = plant.child_of(resources, file)
    sent = outside.sent[file.id]
    signals = [
        json.loads(each.workflow_execution_signaled_event_attributes.input.payloads[0].data)
        for each in plant.of_type(await plant.history(handle), "WORKFLOW_EXECUTION_SIGNALED")
        if each.workflow_execution_signaled_event_attributes.signal_name == "external_event"
    ]
    assert sorted(each["event_id"] for each in signals) == sorted(event.event_id for event in sent)
    kept = {event.event_id: event for event in await handle.query(GradingWorkflow.events)}
    assert kept == {event.event_id: event for event in sent}

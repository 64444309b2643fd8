"""A plant of one test's own: real workers on queues of their own, and a model that can be held and asked."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType as HistoryEvent
from temporalio.api.history.v1 import HistoryEvent as Event
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

import runtime.worker
from db.redis.cache import RedisResultCache
from db.redis.progress import RedisStatePublisher
from domain.batch import AgentState, Batch, StoredFile
from domain.completion import CompletionReply, CompletionRequest
from domain.identity import batch_workflow_id, file_workflow_id
from domain.ports import Models
from domain.states import BATCH_MACHINE
from gateway.scripted import Rule, Script, ScriptedModel
from runtime.resources import Resources
from runtime.server import services
from runtime.worker import cognition_worker, orchestration_worker
from tests.builders import a_submission, open_batch
from workflows.batch import BatchWorkflow
from workflows.grading import GradingWorkflow

OPEN_QUESTION = {
    "type": "short_answer",
    "prompt": "What do plants need light for?",
    "points": 3,
    "reference": "Light gives the energy that turns carbon dioxide and water into sugar.",
    "criteria": [
        {"id": "c1", "points": 2, "description": "Light is the source of energy."},
        {"id": "c2", "points": 1, "description": "Sugar is made."},
    ],
}
ANSWER = "Light gives the energy to make sugar. It comes from the sun."


def exam_of(questions: int) -> dict[str, Any]:
    """An exam whose questions, `q1` and so on, all need a model."""
    return {
        "title": f"{questions} questions",
        "questions": [OPEN_QUESTION | {"id": f"q{number + 1}"} for number in range(questions)],
    }


def answers_to(questions: int) -> dict[str, str]:
    """An answer to each of that exam's questions."""
    return {f"q{number + 1}": ANSWER for number in range(questions)}


def names(count: int) -> list[str]:
    """File names in the order of their ordinals."""
    return [f"student-{number:03}.json" for number in range(count)]


def nothing(_: CompletionRequest) -> bool:
    """Holds no call."""
    return False


@dataclass
class WatchedModel:
    """A scripted model that tells who is in a call, and keeps calls waiting until they are released."""

    script: Script = field(default_factory=Script)
    holds: Callable[[CompletionRequest], bool] = nothing
    #: calls by key: those that began, and those whose reply went back
    begun: Counter[str] = field(default_factory=Counter)
    returned: Counter[str] = field(default_factory=Counter)
    #: calls now held, by file
    held: Counter[str] = field(default_factory=Counter)
    #: each entry and each exit of a call, in order: the file, and +1 or -1
    moves: list[tuple[str, int]] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._upstream = ScriptedModel(self.script)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The scripted reply, once the call is not held any more."""
        file_id = request.step.file_id
        self.begun[request.key] += 1
        self.moves.append((file_id, +1))
        try:
            if self.holds(request) and not self.released.is_set():
                self.held[file_id] += 1
                try:
                    await self.released.wait()
                finally:
                    self.held[file_id] -= 1
            reply = await self._upstream.complete(request)
        finally:
            self.moves.append((file_id, -1))
        self.returned[request.key] += 1
        return reply

    async def is_holding(self, calls: int, *, within_seconds: float = 200) -> None:
        """Wait until exactly so many calls are held."""
        try:
            async with asyncio.timeout(within_seconds):
                while self.held.total() != calls:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"{self.held.total()} calls are held instead of {calls}")

    def peak(self, file_ids: Collection[str]) -> int:
        """The most of these files that ever were in a call at once."""
        inside: Counter[str] = Counter()
        peak = 0
        for file_id, step in self.moves:
            if file_id in file_ids:
                inside[file_id] += step
                peak = max(peak, sum(1 for calls in inside.values() if calls))
        return peak


class RefusingCache(RedisResultCache):
    """A cache whose server refuses what it is given."""

    async def write(self, submission_id: str, results: Sequence[Mapping[str, Any]], mark: str) -> None:
        """Refuse."""
        raise ValueError(f"{len(results)} results are no good")


def rules_for(file_id: str, *rules: Rule) -> list[Rule]:
    """The rules, for this file's calls alone; `match` names a question, or question and call as `q1/*/2`."""
    return [
        Rule(
            f"{file_id}/*/{rule.match}" + ("" if "/" in rule.match else "/*"),
            rule.reply,
            rule.fail,
            rule.hang_seconds,
            rule.times,
        )
        for rule in rules
    ]


def with_worker_settings(resources: Resources, **changes: Any) -> Resources:
    """The same resources, whose workers and new batches have other settings."""
    worker = resources.settings.worker.model_copy(update=changes)
    return replace(resources, settings=resources.settings.model_copy(update={"worker": worker}))


def cognition(
    resources: Resources, model: Models, states: type[RedisStatePublisher] = RedisStatePublisher
) -> Worker:
    """The agents' worker as it is wired, with this model and this publisher of states plugged in."""
    with pytest.MonkeyPatch.context() as wiring:
        wiring.setattr(runtime.worker, "RedisStatePublisher", states)
        return cognition_worker(resources, model)


def orchestration(resources: Resources, cache: type[RedisResultCache] = RedisResultCache) -> Worker:
    """The workflows' worker as it is wired, with this result cache plugged in."""
    with pytest.MonkeyPatch.context() as wiring:
        wiring.setattr(runtime.worker, "RedisResultCache", cache)
        return orchestration_worker(resources)


@asynccontextmanager
async def running(*workers: Worker) -> AsyncIterator[None]:
    """Run the workers for as long as the block; all are stopped at once."""
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker)
        try:
            yield
        finally:
            await asyncio.gather(*(worker.shutdown() for worker in workers))


async def start(resources: Resources, *batches: Batch) -> None:
    """Start the batches' workflows, as the API does."""
    orchestrator = services(resources).orchestrator
    for batch in batches:
        await orchestrator.start_batch(batch)


async def files_of(resources: Resources, batch: Batch) -> list[StoredFile]:
    """The batch's files in the order of their ordinals."""
    files, _ = await services(resources).batches.files("local", batch.id, 1, 1000)
    return files


async def all_ended(resources: Resources, *batches: Batch, within_seconds: float = 200) -> list[Batch]:
    """The batches once their workflows are closed, each in a final state."""
    stores = services(resources).batches
    async with asyncio.timeout(within_seconds):
        outcomes = await asyncio.gather(
            *(handle_of(resources, batch).result() for batch in batches), return_exceptions=True
        )
    ended = [await stores.read("local", batch.id) for batch in batches]
    for batch, outcome in zip(ended, outcomes, strict=True):
        assert batch.state in BATCH_MACHINE.final, f"{batch.state} for ever: {_causes(outcome)}"
    return ended


def _causes(outcome: object) -> str:
    chain, error = [], outcome
    while isinstance(error, BaseException):
        chain.append(f"{type(error).__name__}: {error}")
        error = error.__cause__
    return " <- ".join(chain)


def handle_of(resources: Resources, batch: Batch) -> WorkflowHandle[BatchWorkflow, Any]:
    """The batch's workflow."""
    return resources.temporal.get_workflow_handle_for(
        BatchWorkflow.run, batch_workflow_id(batch.id, batch.generation)
    )


def child_of(resources: Resources, file: StoredFile) -> WorkflowHandle[GradingWorkflow, Any]:
    """The file's workflow."""
    return resources.temporal.get_workflow_handle_for(
        GradingWorkflow.run, file_workflow_id(file.batch_id, file.id, file.generation)
    )


async def agent_state(resources: Resources, file: StoredFile) -> AgentState:
    """What the file's workflow says of its agent."""
    return await child_of(resources, file).query(GradingWorkflow.state)


async def history(handle: WorkflowHandle[Any, Any]) -> list[Event]:
    """All events of the workflow."""
    return list((await handle.fetch_history()).events)


def of_type(events: Sequence[Event], name: str) -> list[Event]:
    """The events of that type, named without `EVENT_TYPE_`."""
    return [each for each in events if HistoryEvent.Name(each.event_type) == f"EVENT_TYPE_{name}"]


async def file_events(resources: Resources, batch: Batch) -> list[tuple[str, str, dict[str, Any]]]:
    """The batch's events about files: file, type and data, in the order they were written."""
    rows = await resources.postgres.rows(
        "SELECT file_id, event_type, data FROM progress_events "
        "WHERE batch_id = %s AND file_id IS NOT NULL ORDER BY id",
        [batch.id],
    )
    return [(str(row["file_id"]), row["event_type"], row["data"]) for row in rows]


async def half_done(resources: Resources, model: WatchedModel, *, max_concurrent: int = 2) -> Batch:
    """A batch of six: two files finished, then as many as may run in a call that hangs, the rest queued."""
    batch = await open_batch(
        resources,
        {name: a_submission(answers_to(1)) for name in names(6)},
        exam=exam_of(1),
        max_concurrent=max_concurrent,
    )
    finished = {file.id for file in (await files_of(resources, batch))[:2]}
    model.holds = lambda call: call.step.file_id not in finished
    await start(resources, batch)
    await model.is_holding(max_concurrent)
    return batch


async def reset(resources: Resources, handle: WorkflowHandle[Any, Any]) -> None:
    """Begin the workflow again, right after its first task."""
    first_task = of_type(await history(handle), "WORKFLOW_TASK_COMPLETED")[0]
    await resources.temporal.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=resources.temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id),
            reason="a test",
            workflow_task_finish_event_id=first_task.event_id,
            request_id=str(uuid.uuid4()),
        )
    )

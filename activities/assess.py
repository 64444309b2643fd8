"""Assess one submission: the agent's whole run is this one activity (station 4)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from temporalio import activity
from temporalio.service import RPCError

from domain.batch import AgentState
from domain.completion import Payer
from domain.errors import EpochSuperseded
from domain.ports import (
    AgentRun,
    AssessmentStart,
    Exams,
    GradingAgent,
    Objects,
    StatePublisher,
    SubmissionReader,
    Submissions,
    Threads,
)
from domain.states import FILE_MACHINE


@dataclass
class AssessInput:
    """Which submission, in which generation, by which model; ids only."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    model: str
    first_execution_run_id: str
    trace_id: str = ""
    #: the workflow hears of the agent's state at most once in this time (G2.2)
    state_interval_seconds: float = 30.0


@dataclass
class AssessResult:
    """Where the agent ended; `ended` is set instead if the file had reached a final state before."""

    state: AgentState = field(default_factory=AgentState)
    ended: str | None = None
    spent_nanodollars: int = 0


@dataclass(frozen=True)
class AssessActivities:
    """The agent's activity and what it needs."""

    threads: Threads
    submissions: Submissions
    exams: Exams
    objects: Objects
    intake: SubmissionReader
    agent: GradingAgent
    states: StatePublisher

    @activity.defn
    async def assess_submission(self, input: AssessInput) -> AssessResult:
        """Grade the submission, resuming an earlier attempt's work, and propose the assessment."""
        reporter = _StateReporter(self.states, input)
        # from the first wait to the last: whatever is slow, this worker is alive
        async with _beside(reporter.beat):
            return await self._assess(input, reporter)

    async def _assess(self, input: AssessInput, reporter: "_StateReporter") -> AssessResult:
        submission = await self.submissions.find(input.file_id)
        if submission.state in FILE_MACHINE.final:
            return AssessResult(ended=submission.state)
        info = activity.info()
        thread_id = info.workflow_run_id or ""
        epoch = await self.threads.begin(
            AssessmentStart(
                file_id=input.file_id,
                generation=input.generation,
                thread_id=thread_id,
                workflow_id=info.workflow_id or "",
                first_execution_run_id=input.first_execution_run_id,
                scheduled_at=info.current_attempt_scheduled_time,
            )
        )
        if epoch is None:
            raise EpochSuperseded(
                f"File {input.file_id} has ended in generation {input.generation}, or has a newer attempt."
            )
        async with _beside(reporter.tell):
            exam = await self.exams.read(submission.exam_id, submission.rubric_version)
            content = await self.objects.read(submission.object_key)
            answers = await self.intake.read(submission.name, content, exam.questions)
            restarts: list[str] = []
            outcome = await self.agent.assess(
                AgentRun(
                    thread_id=thread_id,
                    epoch=epoch,
                    file_id=input.file_id,
                    generation=input.generation,
                    model=input.model,
                    exam=exam,
                    answers=answers,
                    payer=Payer(tenant_id=input.tenant_id, batch_id=input.batch_id),
                    secret=submission.tenant_secret,
                    trace_id=input.trace_id,
                ),
                on_state=reporter.note,
                on_restart=restarts.append,
                draining=activity.is_worker_shutdown,
            )
            for reason in restarts:
                structlog.get_logger("assay.agents").warning("agent_restarted", reason=reason)
                await self.submissions.note_restart(input.file_id, reason)
            await self.submissions.propose(
                input.file_id, input.generation, thread_id, epoch, outcome.assessment
            )
        await _show(self.states, input.file_id, outcome.state)
        return AssessResult(outcome.state, spent_nanodollars=outcome.assessment.cost_nanodollars)


@asynccontextmanager
async def _beside(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Do the work beside the block, until it ends."""
    ended = asyncio.Event()
    task = asyncio.create_task(work(ended))
    try:
        yield
    finally:
        # said too, as a library may lose a cancellation (`asyncio.wait_for` does before Python 3.12)
        ended.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _StateReporter:
    """Tells Temporal's heartbeat, Redis and, coalesced, the workflow where the agent is.

    Two tasks: nothing that waits for Redis or for the server may hold up a heartbeat (G2.3).
    """

    def __init__(self, states: StatePublisher, input_: AssessInput) -> None:
        self._states = states
        self._input = input_
        self._state = AgentState(thread_id=activity.info().workflow_run_id or "", stage="starting")
        self._changed = asyncio.Event()

    def note(self, state: AgentState) -> None:
        """Hear of a durable step."""
        self._state = state
        self._changed.set()
        activity.heartbeat(vars(state))

    async def beat(self, ended: asyncio.Event) -> None:
        """Heartbeat four times in each heartbeat timeout, also while a model call is pending."""
        timeout = activity.info().heartbeat_timeout or timedelta(seconds=10)
        while not ended.is_set():
            activity.heartbeat(vars(self._state))
            await asyncio.sleep(timeout.total_seconds() / 4)

    async def tell(self, ended: asyncio.Event) -> None:
        """Show each new state in Redis, and to the workflow at most once in the interval."""
        loop = asyncio.get_running_loop()
        signal_at = loop.time() + self._input.state_interval_seconds
        signalled = self._state
        while not ended.is_set():
            if signalled is not self._state and loop.time() >= signal_at:
                signalled, signal_at = self._state, loop.time() + self._input.state_interval_seconds
                await _signal(signalled)
            wait = None if signalled is self._state else max(0.0, signal_at - loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            if self._changed.is_set():
                self._changed.clear()
                await _show(self._states, self._input.file_id, self._state)


async def _show(states: StatePublisher, file_id: str, state: AgentState) -> None:
    try:
        await states.publish(activity.info().workflow_id or "", file_id, state)
    except Exception as error:  # noqa: BLE001  # whatever a cache refuses, the agent goes on
        structlog.get_logger("assay.agents").error("state_refused", reason=repr(error)[:500])


async def _signal(state: AgentState) -> None:
    info = activity.info()
    handle = activity.client().get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
    try:
        await handle.signal("agent_state", state, rpc_timeout=timedelta(seconds=5))
    except RPCError as error:
        # the next interval tells it, and the result at the latest
        structlog.get_logger("assay.agents").info("state_not_signalled", reason=str(error))

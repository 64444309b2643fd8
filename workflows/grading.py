"""GradingWorkflow: one submission: assess, persist as a saga, tell (station 3).

It has no workflow retry and never continues as new: its run id is the agent's thread (G2.1).
"""

import asyncio
from dataclasses import dataclass, field, replace

from temporalio import workflow
from temporalio.exceptions import FailureError, is_cancelled_exception
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    from activities.assess import AssessActivities, AssessInput, AssessResult
    from activities.pauses import PauseActivities, PauseInput
    from activities.persist import FailureInput, PersistActivities, PersistInput, RecordResult
    from domain.batch import AgentState, Pause
    from domain.errors import BudgetExhausted, CheckpointNotSaved, SagaCompleted
    from domain.external_events import RETRY, ExternalEvent
    from domain.timings import Timings

from workflows.attributes import NEEDS_INTERVENTION, STAGE
from workflows.events import ReceivedEvents
from workflows.options import ASSESS_RETRY, ASSESS_TIMEOUT
from workflows.saga import Saga, details_of, failure_of, file_step, promptly
from workflows.signals import tell


@dataclass
class GradingInput:
    """One submission to grade."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    model: str
    trace_id: str = ""
    cognition_queue: str = "cognition"
    timings: Timings = field(default_factory=Timings)
    #: how often the batch has been resumed: a pause of an earlier time is out of date
    resumptions: int = 0


@dataclass
class GradingResult:
    """How the file ended: a final state of the file's machine, and the code of a failure."""

    state: str
    code: str | None = None
    #: by a file that was graded; the ledger knows the rest
    spent_nanodollars: int = 0


@workflow.defn
class GradingWorkflow:
    """Grades one submission; a failure is a result with a code, never a failed workflow."""

    def __init__(self) -> None:
        self._agent = AgentState()
        self._resumptions = 0
        self._retries = 0
        self._events = ReceivedEvents()

    @workflow.run
    async def run(self, input: GradingInput) -> GradingResult:
        """Assess, persist, tell."""
        self._resumptions = max(self._resumptions, input.resumptions)
        self._note(AgentState(stage="waiting for a worker", thread_id=workflow.info().run_id))
        try:
            assessed = await self._assess_through_waits(input)
            if assessed.ended is not None:
                return GradingResult(assessed.ended)
            self._note(assessed.state)
            recorded = await self._persist(input)
        except FailureError as error:
            if is_cancelled_exception(error):
                await asyncio.shield(self._cancel_file(input))
                raise
            return await self._fail_file(input, error)
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel_file(input))
            raise
        self._end("completed", f"**Graded**: {recorded.score:g} of {recorded.max_score:g} points.")
        return GradingResult("completed", spent_nanodollars=assessed.spent_nanodollars)

    @workflow.query
    def state(self) -> AgentState:
        """The agent's state as last heard of."""
        return self._agent

    @workflow.query
    def progress(self) -> AgentState:
        """Stage, percentage and time."""
        return self._agent

    @workflow.signal
    def agent_state(self, state: AgentState) -> None:
        """The running agent tells where it is."""
        self._note(state)

    @workflow.signal
    def resume(self, resumptions: int) -> None:
        """The batch has been resumed, that many times in all."""
        self._resumptions = max(self._resumptions, resumptions)

    @workflow.signal
    def retry(self) -> None:
        """A human has seen to what the file waits for."""
        self._retries += 1

    @workflow.signal
    def external_event(self, event: ExternalEvent) -> None:
        """The world outside has something to say; `retry` means what a human's does."""
        if self._events.take(event) and event.type == RETRY:
            self._retries += 1

    @workflow.query
    def events(self) -> list[ExternalEvent]:
        """The newest events from outside, oldest first."""
        return self._events.newest()

    async def _assess_through_waits(self, input_: GradingInput) -> AssessResult:
        """Assess; where money or a human is needed, keep the run, wait, and go on with the same thread."""
        while True:
            resumptions = self._resumptions
            try:
                return await self._assess(input_)
            except FailureError as error:
                code, message = failure_of(error)
                if code == BudgetExhausted.code:
                    await self._pause(input_, pause_from(error, input_.file_id, resumptions))
                elif code == CheckpointNotSaved.code:
                    await self._need_intervention(input_, code, message)
                else:
                    raise

    async def _need_intervention(self, input_: GradingInput, code: str, message: str) -> None:
        """Show that a human is needed, and wait until one says that it may go on (G2.7)."""
        retries = self._retries
        await file_step(PersistActivities.flag_file, self._failure(input_, code, message))
        await self._wait_for_human(retries)

    async def _wait_for_human(self, retries: int) -> None:
        """Wait for a retry beyond those that were there, and show it meanwhile."""
        stage = self._agent.stage
        workflow.upsert_search_attributes([NEEDS_INTERVENTION.value_set(True)])
        self._note(replace(self._agent, stage="needs_intervention", updated_at=""))
        await workflow.wait_condition(lambda: self._retries > retries)
        workflow.upsert_search_attributes([NEEDS_INTERVENTION.value_set(False)])
        self._note(replace(self._agent, stage=stage, updated_at=""))

    async def _pause(self, input_: GradingInput, pause: Pause) -> None:
        resumptions = await file_step(
            PauseActivities.pause_file,
            PauseInput(
                input_.tenant_id, input_.batch_id, input_.file_id, input_.generation, pause, input_.trace_id
            ),
        )
        self._resumptions = max(self._resumptions, resumptions)
        if self._resumptions > pause.resumptions:
            return  # the limit was raised while the refusal was on its way
        stage = self._agent.stage
        self._note(replace(self._agent, stage="paused", updated_at=""))
        await tell(workflow.info().parent, "file_paused", pause)
        await workflow.wait_condition(lambda: self._resumptions > pause.resumptions)
        self._note(replace(self._agent, stage=stage, updated_at=""))

    async def _assess(self, input_: GradingInput) -> AssessResult:
        return await workflow.execute_activity_method(
            AssessActivities.assess_submission,
            AssessInput(
                tenant_id=input_.tenant_id,
                batch_id=input_.batch_id,
                file_id=input_.file_id,
                generation=input_.generation,
                model=input_.model,
                first_execution_run_id=workflow.info().first_execution_run_id,
                trace_id=input_.trace_id,
                state_interval_seconds=input_.timings.state_interval_seconds,
            ),
            task_queue=input_.cognition_queue,
            start_to_close_timeout=ASSESS_TIMEOUT,
            heartbeat_timeout=input_.timings.heartbeat_timeout,
            retry_policy=ASSESS_RETRY,
            # the agent stops at its checkpoint before the file is called cancelled
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"model {input_.model}",
        )

    async def _persist(self, input_: GradingInput) -> RecordResult:
        # once begun, a saga ends completed or compensated: a cancellation comes too late
        saga = asyncio.create_task(self._saga(input_))
        try:
            return await asyncio.shield(saga)
        except asyncio.CancelledError:
            return await saga

    async def _saga(self, input_: GradingInput) -> RecordResult:
        argument = PersistInput(
            tenant_id=input_.tenant_id,
            batch_id=input_.batch_id,
            file_id=input_.file_id,
            generation=input_.generation,
            thread_id=workflow.info().run_id,
            trace_id=input_.trace_id,
        )
        saga = Saga()
        try:
            recorded = await saga.step(
                file_step(PersistActivities.record_results, argument),
                undo=lambda: file_step(PersistActivities.erase_results, argument),
            )
            await saga.step(
                promptly(PersistActivities.cache_results, argument),
                undo=lambda: file_step(PersistActivities.evict_results, argument),
            )
            await saga.step(
                promptly(PersistActivities.ring_bell, argument),
                undo=lambda: file_step(PersistActivities.ring_retraction, argument),
            )
        except FailureError as error:
            argument.reason = ": ".join(failure_of(error))
            if await self._is_undone(saga, argument):
                raise
        return recorded

    async def _is_undone(self, saga: Saga, argument: PersistInput) -> bool:
        """Undo the steps, unless the last one had completed the saga without this workflow hearing of it.

        A step that cannot be undone waits for a human, and is tried again when told (G4.4).
        """
        while True:
            retries = self._retries
            try:
                await saga.compensate()
            except FailureError as error:
                if failure_of(error)[0] == SagaCompleted.code:
                    return False
                reason = f"{argument.reason}; then, undoing it: {': '.join(failure_of(error))}"
                await file_step(PersistActivities.flag_saga, replace(argument, reason=reason))
                await self._wait_for_human(retries)
            else:
                return True

    async def _fail_file(self, input_: GradingInput, error: FailureError) -> GradingResult:
        code, message = failure_of(error)
        await file_step(PersistActivities.fail_file, self._failure(input_, code, message))
        self._end("failed", f"**Failed**: `{code}`: {message}")
        return GradingResult("failed", code)

    async def _cancel_file(self, input_: GradingInput) -> None:
        await file_step(PersistActivities.cancel_file, self._failure(input_, "", ""))

    def _failure(self, input_: GradingInput, code: str, message: str) -> FailureInput:
        return FailureInput(
            tenant_id=input_.tenant_id,
            batch_id=input_.batch_id,
            file_id=input_.file_id,
            generation=input_.generation,
            code=code,
            message=message,
            trace_id=input_.trace_id,
        )

    def _note(self, state: AgentState) -> None:
        self._agent = state
        if not state.updated_at:
            state.updated_at = workflow.now().isoformat()
        self._tell(f"**Agent**: {state.stage}, {state.percentage:g} %\n\nThread `{state.thread_id}`")

    def _end(self, stage: str, markdown: str) -> None:
        # one event, so that a list of workflows tells the failed from the graded
        workflow.upsert_search_attributes([STAGE.value_set(stage)])
        self._tell(markdown)

    def _tell(self, markdown: str) -> None:
        workflow.set_current_details(markdown)


def pause_from(error: FailureError, file_id: str, resumptions: int) -> Pause:
    """What a refused hold says: which scope has run out, and how much is missing."""
    details = details_of(error)
    return Pause(
        scope=str(details.get("scope", "")),
        missing_nanodollars=int(details.get("missing_nanodollars", 0)),
        file_id=file_id,
        resumptions=resumptions,
    )

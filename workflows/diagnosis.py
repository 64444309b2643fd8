"""LogWorkflow: one log: parse, record. DiagnosisWorkflow: a gathered batch: diagnose, make it official (B7).

Neither has a workflow retry nor continues as new: a run id is a thread (G2.1).
"""

import asyncio
from dataclasses import dataclass, field, replace

from temporalio import workflow
from temporalio.exceptions import FailureError, is_cancelled_exception
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    from activities.diagnose import DiagnoseInput, DiagnoseResult
    from activities.logs import (
        DiagnosisRecordActivities,
        DiagnosisRef,
        LogActivities,
        LogRef,
        LogToParse,
        RecordDiagnosisResult,
        RecordLogInput,
    )
    from activities.parse import ParseInput, ParseResult
    from activities.pauses import BatchPauseInput, PauseActivities
    from activities.persist import FailureInput, PersistActivities
    from domain.batch import AgentState, Pause
    from domain.errors import BudgetExhausted, CheckpointNotSaved, CompensationFailed, SagaCompleted
    from domain.external_events import ExternalEvent
    from domain.timings import Timings

from workflows.attributes import NEEDS_INTERVENTION, STAGE
from workflows.events import ReceivedEvents
from workflows.grading import pause_from
from workflows.options import ASSESS_RETRY, ASSESS_TIMEOUT, PARSE_RETRY, PARSE_TIMEOUT
from workflows.saga import Saga, durably, failure_of, file_step
from workflows.signals import tell

#: the activities of other queues, by name: a worker in any language may serve them
PARSE_LOG = "parse_log"
DIAGNOSE_BATCH = "diagnose_batch"


@dataclass
class LogInput:
    """One log to parse."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    trace_id: str = ""
    parsing_queue: str = "parsing"
    timings: Timings = field(default_factory=Timings)


@dataclass
class LogResult:
    """How the file ended: a final state of the file's machine, and the code of a failure."""

    state: str
    code: str | None = None


@workflow.defn
class LogWorkflow:
    """Parses one log; a failure is a result with a code, never a failed workflow."""

    def __init__(self) -> None:
        self._events = ReceivedEvents()

    @workflow.run
    async def run(self, input: LogInput) -> LogResult:
        """Parse, record, tell."""
        workflow.set_current_details("Waiting for a parser.")
        try:
            log = await file_step(LogActivities.begin_log, _log_ref(input))
            if log.ended is not None:
                return LogResult(log.ended)
            parsed = await self._parse(input, log)
            await self._record(input, parsed)
        except FailureError as error:
            if is_cancelled_exception(error):
                await asyncio.shield(self._cancel_file(input))
                raise
            return await self._fail_file(input, error)
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel_file(input))
            raise
        _end("completed", f"**Parsed**: {parsed.parsed_lines:,} of {parsed.lines:,} lines, {parsed.format}.")
        return LogResult("completed")

    @workflow.signal
    def external_event(self, event: ExternalEvent) -> None:
        """The world outside has something to say; nobody listens yet."""
        self._events.take(event)

    @workflow.query
    def events(self) -> list[ExternalEvent]:
        """The newest events from outside, oldest first."""
        return self._events.newest()

    async def _parse(self, input_: LogInput, log: LogToParse) -> ParseResult:
        result: ParseResult = await workflow.execute_activity(
            PARSE_LOG,
            ParseInput(
                tenant_id=input_.tenant_id,
                batch_id=input_.batch_id,
                file_id=input_.file_id,
                generation=input_.generation,
                name=log.name,
                object_key=log.object_key,
                size_bytes=log.size_bytes,
                parsed_key=log.parsed_key,
                trace_id=input_.trace_id,
                written_at=log.written_at,
            ),
            result_type=ParseResult,
            task_queue=input_.parsing_queue,
            start_to_close_timeout=PARSE_TIMEOUT,
            heartbeat_timeout=input_.timings.heartbeat_timeout,
            retry_policy=PARSE_RETRY,
            # the parser stops before the file is called cancelled
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"{log.size_bytes:,} bytes",
        )
        return result

    async def _record(self, input_: LogInput, parsed: ParseResult) -> None:
        argument = RecordLogInput(
            tenant_id=input_.tenant_id,
            batch_id=input_.batch_id,
            file_id=input_.file_id,
            generation=input_.generation,
            parsed_sha256=parsed.parsed_sha256,
            lines=parsed.lines,
            parsed_lines=parsed.parsed_lines,
            trace_id=input_.trace_id,
        )
        # once begun, it completes the file: a cancellation comes too late
        recording = asyncio.ensure_future(file_step(LogActivities.record_log, argument))
        try:
            await asyncio.shield(recording)
        except asyncio.CancelledError:
            await recording

    async def _fail_file(self, input_: LogInput, error: FailureError) -> LogResult:
        code, message = failure_of(error)
        await file_step(PersistActivities.fail_file, _failure(input_, code, message))
        _end("failed", f"**Failed**: `{code}`: {message}")
        return LogResult("failed", code)

    async def _cancel_file(self, input_: LogInput) -> None:
        await file_step(PersistActivities.cancel_file, _failure(input_, "", ""))


def _log_ref(input_: LogInput) -> LogRef:
    return LogRef(
        tenant_id=input_.tenant_id,
        batch_id=input_.batch_id,
        file_id=input_.file_id,
        generation=input_.generation,
        first_execution_run_id=workflow.info().first_execution_run_id,
        trace_id=input_.trace_id,
    )


def _failure(input_: LogInput, code: str, message: str) -> FailureInput:
    return FailureInput(
        tenant_id=input_.tenant_id,
        batch_id=input_.batch_id,
        file_id=input_.file_id,
        generation=input_.generation,
        code=code,
        message=message,
        trace_id=input_.trace_id,
    )


def _end(stage: str, markdown: str) -> None:
    workflow.upsert_search_attributes([STAGE.value_set(stage)])
    workflow.set_current_details(markdown)


# --- the batch as a whole ----------------------------------------------------------------------------


@dataclass
class DiagnosisInput:
    """A gathered batch to diagnose."""

    tenant_id: str
    batch_id: str
    generation: int
    model: str
    trace_id: str = ""
    cognition_queue: str = "cognition"
    timings: Timings = field(default_factory=Timings)
    #: how often the batch has been resumed: a pause of an earlier time is out of date
    resumptions: int = 0


@dataclass
class DiagnosisResult:
    """Whether the diagnosis is `completed`, `failed` with a code, or the batch's final state of before."""

    state: str
    code: str | None = None
    spent_nanodollars: int = 0


@workflow.defn
class DiagnosisWorkflow:
    """Diagnoses a gathered batch; a failure is a result with a code, never a failed workflow."""

    def __init__(self) -> None:
        self._agent = AgentState()
        self._resumptions = 0
        self._events = ReceivedEvents()

    @workflow.run
    async def run(self, input: DiagnosisInput) -> DiagnosisResult:
        """Diagnose, persist, tell."""
        self._resumptions = max(self._resumptions, input.resumptions)
        self._note(AgentState(stage="waiting for a worker", thread_id=workflow.info().run_id))
        try:
            diagnosed = await self._diagnose_through_waits(input)
            if diagnosed.ended is not None:
                return DiagnosisResult(diagnosed.ended)
            self._note(diagnosed.state)
            recorded = await self._persist(input)
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            return await self._fail(input, error)
        _end("completed", f"**Diagnosed**: {recorded.verdict}, risk {recorded.risk_level}.")
        return DiagnosisResult("completed", spent_nanodollars=diagnosed.spent_nanodollars)

    @workflow.query
    def state(self) -> AgentState:
        """The agent's state as last heard of."""
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
    def external_event(self, event: ExternalEvent) -> None:
        """The world outside has something to say; the running agent reads it, too."""
        self._events.take(event)

    @workflow.query
    def events(self) -> list[ExternalEvent]:
        """The newest events from outside, oldest first."""
        return self._events.newest()

    async def _diagnose_through_waits(self, input_: DiagnosisInput) -> DiagnoseResult:
        """Diagnose; where money or a human is needed, keep the run, wait, and go on with the same thread."""
        while True:
            resumptions = self._resumptions
            try:
                return await self._diagnose(input_)
            except FailureError as error:
                code, _ = failure_of(error)
                if code == BudgetExhausted.code:
                    await self._pause(input_, pause_from(error, "", resumptions))
                elif code == CheckpointNotSaved.code:
                    await self._need_intervention(input_, Pause(code, resumptions=resumptions))
                else:
                    raise

    async def _diagnose(self, input_: DiagnosisInput) -> DiagnoseResult:
        result: DiagnoseResult = await workflow.execute_activity(
            DIAGNOSE_BATCH,
            DiagnoseInput(
                tenant_id=input_.tenant_id,
                batch_id=input_.batch_id,
                generation=input_.generation,
                model=input_.model,
                first_execution_run_id=workflow.info().first_execution_run_id,
                trace_id=input_.trace_id,
                state_interval_seconds=input_.timings.state_interval_seconds,
            ),
            result_type=DiagnoseResult,
            task_queue=input_.cognition_queue,
            start_to_close_timeout=ASSESS_TIMEOUT,
            heartbeat_timeout=input_.timings.heartbeat_timeout,
            retry_policy=ASSESS_RETRY,
            # the agent stops at its checkpoint before the batch is called cancelled
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"model {input_.model}",
        )
        return result

    async def _need_intervention(self, input_: DiagnosisInput, pause: Pause) -> None:
        """Pause the whole batch until a human has seen to what the scope names, and resumes it (G2.7)."""
        workflow.upsert_search_attributes([NEEDS_INTERVENTION.value_set(True)])
        await self._pause(input_, pause)
        workflow.upsert_search_attributes([NEEDS_INTERVENTION.value_set(False)])

    async def _pause(self, input_: DiagnosisInput, pause: Pause) -> None:
        ids = (input_.tenant_id, input_.batch_id, input_.generation)
        resumptions = await durably(
            PauseActivities.pause_batch, BatchPauseInput(*ids, pause, input_.trace_id)
        )
        self._resumptions = max(self._resumptions, resumptions)
        if self._resumptions > pause.resumptions:
            return  # the limit was raised while the refusal was on its way
        stage = self._agent.stage
        self._note(replace(self._agent, stage="paused", updated_at=""))
        await tell(workflow.info().parent, "diagnosis_paused", pause)
        await workflow.wait_condition(lambda: self._resumptions > pause.resumptions)
        self._note(replace(self._agent, stage=stage, updated_at=""))

    async def _persist(self, input_: DiagnosisInput) -> RecordDiagnosisResult:
        # once begun, a saga ends completed or compensated: a cancellation comes too late
        saga = asyncio.create_task(self._saga(input_))
        try:
            return await asyncio.shield(saga)
        except asyncio.CancelledError:
            return await saga

    async def _saga(self, input_: DiagnosisInput) -> RecordDiagnosisResult:
        argument = self._ref(input_)
        saga = Saga()
        try:
            recorded = await saga.step(
                file_step(DiagnosisRecordActivities.record_diagnosis, argument),
                undo=lambda: file_step(DiagnosisRecordActivities.retract_diagnosis, argument),
            )
            # whoever has heard of it hears, by the bell of the first step's opposite, that it was retracted
            await file_step(DiagnosisRecordActivities.publish_diagnosis, argument)
        except FailureError as error:
            argument.reason = ": ".join(failure_of(error))
            if await self._is_undone(saga, input_, argument):
                raise
        return recorded

    async def _is_undone(self, saga: Saga, input_: DiagnosisInput, argument: DiagnosisRef) -> bool:
        """Undo the steps, unless the last one had completed the saga without this workflow hearing of it.

        A step that cannot be undone waits for a human, and is tried again when told (G4.4).
        """
        while True:
            resumptions = self._resumptions
            try:
                await saga.compensate()
            except FailureError as error:
                if failure_of(error)[0] == SagaCompleted.code:
                    return False
                reason = f"{argument.reason}; then, undoing it: {': '.join(failure_of(error))}"
                await file_step(DiagnosisRecordActivities.flag_diagnosis, replace(argument, reason=reason))
                await self._need_intervention(input_, Pause(CompensationFailed.code, resumptions=resumptions))
            else:
                return True

    async def _fail(self, input_: DiagnosisInput, error: FailureError) -> DiagnosisResult:
        code, message = failure_of(error)
        failed = replace(self._ref(input_), code=code, reason=message)
        await file_step(DiagnosisRecordActivities.fail_diagnosis, failed)
        _end("failed", f"**Failed**: `{code}`: {message}")
        return DiagnosisResult("failed", code)

    def _ref(self, input_: DiagnosisInput) -> DiagnosisRef:
        return DiagnosisRef(
            tenant_id=input_.tenant_id,
            batch_id=input_.batch_id,
            generation=input_.generation,
            thread_id=workflow.info().run_id,
            trace_id=input_.trace_id,
        )

    def _note(self, state: AgentState) -> None:
        self._agent = state
        if not state.updated_at:
            state.updated_at = workflow.now().isoformat()
        workflow.set_current_details(
            f"**Agent**: {state.stage}, {state.percentage:g} %\n\nThread `{state.thread_id}`"
        )

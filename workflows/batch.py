"""BatchWorkflow and its WindowWorkflows: scatter, barrier, gather (stations 2 and 9, B3.1).

A batch runs windows of at most 500 files, four at a time, which share `max_concurrent`; a window awaits
its children directly. So 100,000 files stay within Temporal's limits on history and pending children.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import (
    ActivityError,
    ChildWorkflowError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.batches import (
        BatchActivities,
        BatchRef,
        EarlyEnd,
        RerunRef,
        RerunStretch,
        WindowFiles,
        WindowRef,
    )
    from activities.logs import DiagnosisRecordActivities, DiagnosisRef, GatherActivities
    from activities.pauses import PauseActivities, ResumedInput
    from activities.persist import FailureInput, PersistActivities
    from domain.batch import BatchKind, Counts, Pause, Progress
    from domain.errors import CheckpointNotSaved, CompensationFailed
    from domain.external_events import ExternalEvent
    from domain.identity import diagnosis_workflow_id, file_workflow_id, window_workflow_id
    from domain.money import Money
    from domain.states import BatchState
    from domain.timings import WINDOW_FILES, Timings

from workflows.attributes import BATCH, KIND, NEEDS_INTERVENTION, SPENT, STAGE, TENANT
from workflows.diagnosis import (
    DiagnosisInput,
    DiagnosisResult,
    DiagnosisWorkflow,
    LogInput,
    LogResult,
    LogWorkflow,
)
from workflows.events import ReceivedEvents
from workflows.grading import GradingInput, GradingResult, GradingWorkflow
from workflows.options import (
    AWAIT_TIMEOUT,
    GATHER_TIMEOUT,
    REPORT_INTERVAL,
    REPORTS_PER_BATCH,
    STEP_DEADLINE,
    STEP_RETRY,
    WINDOWS_AT_ONCE,
)
from workflows.saga import durably, failure_of
from workflows.signals import tell, unless_ended

Result = TypeVar("Result")

#: what a pause has for a scope where no limit refuses, and a human is waited for
_HUMAN_CODES = (CheckpointNotSaved.code, CompensationFailed.code)


@dataclass
class BatchInput:
    """A frozen batch to run."""

    tenant_id: str
    batch_id: str
    kind: str
    total_files: int
    max_concurrent: int
    model: str
    generation: int = 1
    trace_id: str = ""
    window_files: int = WINDOW_FILES
    cognition_queue: str = "cognition"
    timings: Timings = field(default_factory=Timings)
    #: how often the batch has been resumed
    resumptions: int = 0
    parsing_queue: str = "parsing"


@dataclass
class BatchResult:
    """How the batch ended."""

    state: str
    counts: Counts


@dataclass
class WindowInput:
    """A stretch of a batch's files, by ordinal, both ends included."""

    batch: BatchInput
    index: int
    first: int
    last: int
    #: children at once, at the start; `grow` adds to it
    share: int
    #: files that must have ended since the last report
    report_every: int

    @property
    def files(self) -> int:
        """How many files the window has."""
        return self.last - self.first + 1


@dataclass
class WindowReport:
    """How many files of a window have ended, by final state, and how many wait for money."""

    index: int
    ended: dict[str, int] = field(default_factory=dict)
    paused: int = 0
    #: by the files that were graded
    spent_nanodollars: int = 0
    #: why nothing new starts in this window, if so
    pause: Pause | None = None

    @property
    def finished(self) -> int:
        """Files that have ended."""
        return sum(self.ended.values())


@workflow.defn
class BatchWorkflow:
    """Assesses every file of a batch and gathers the outcome."""

    def __init__(self) -> None:
        self._stage = BatchState.UPLOADED
        self._updated_at = workflow.now()
        self._input: BatchInput | None = None
        self._counts: Counts | None = None
        self._windows: dict[int, WindowInput] = {}
        self._reports: dict[int, WindowReport] = {}
        self._open: set[int] = set()
        self._pause: Pause | None = None
        self._resumptions = 0
        self._events = ReceivedEvents()
        self._diagnosis_spent = 0

    @workflow.run
    async def run(self, input: BatchInput) -> BatchResult:
        """Scatter, wait at the barrier, gather, finish."""
        self._input = input
        self._resumptions = max(self._resumptions, input.resumptions)
        batch = BatchRef(input.tenant_id, input.batch_id, input.trace_id, input.kind)
        try:
            await durably(BatchActivities.begin_scattering, batch)
            self._enter(BatchState.SCATTERING)
            await self._scatter(input)
            self._counts = await durably(BatchActivities.open_barrier, batch)
            self._enter(BatchState.SCATTERED)
            self._counts = await self._gather(input, self._counts)
            self._enter(BatchState.GATHERED)
            if self._counts.completed and input.kind == BatchKind.DIAGNOSIS:
                await self._diagnose(input, batch)
            self._enter(BatchState(await durably(BatchActivities.finish_batch, batch)))
        except (asyncio.CancelledError, FailureError) as error:
            # whatever closes the workflow ends the batch
            await asyncio.shield(self._end_early(input, error))
            raise
        return BatchResult(self._stage, self._counts)

    @workflow.query
    def progress(self) -> Progress:
        """Stage, percentage, time, counts and money spent."""
        counts = self._present_counts()
        return Progress(
            batch_id=self._input.batch_id if self._input else "",
            stage=self._stage,
            percentage=counts.percentage,
            updated_at=self._updated_at.isoformat(),
            counts=counts,
            spent_nanodollars=self._spent,
            pause=self._pause,
        )

    @property
    def _spent(self) -> int:
        return self._diagnosis_spent + sum(report.spent_nanodollars for report in self._reports.values())

    @workflow.query
    def state(self) -> str:
        """The batch's state."""
        return self._stage

    @workflow.signal
    def window_report(self, report: WindowReport) -> None:
        """A window tells how far it is."""
        self._reports[report.index] = report
        self._heed(report.pause)

    @workflow.signal
    def diagnosis_paused(self, pause: Pause) -> None:
        """The diagnosis waits for money, or for a human."""
        self._heed(pause)

    def _heed(self, pause: Pause | None) -> None:
        if self._pause is None and pause is not None and pause.resumptions >= self._resumptions:
            self._pause = replace(pause, file_id="")
        self._touch()

    @workflow.signal
    def resume(self, resumptions: int) -> None:
        """A limit was raised, or an operator says go on: that many resumptions in all."""
        if resumptions > self._resumptions:
            self._resumptions = resumptions
            self._pause = None
            self._touch()

    @workflow.signal
    def external_event(self, event: ExternalEvent) -> None:
        """The world outside has something to say."""
        self._events.take(event)

    @workflow.query
    def events(self) -> list[ExternalEvent]:
        """The newest events from outside, oldest first."""
        return self._events.newest()

    async def _scatter(self, input_: BatchInput) -> None:
        waiting = deque(await self._plan(input_))
        self._windows = {window.index: window for window in waiting}
        lanes = min(WINDOWS_AT_ONCE, len(waiting), input_.max_concurrent)
        shares = divide(input_.max_concurrent, lanes)
        governor = asyncio.create_task(self._govern(input_, BatchState.SCATTERING))
        try:
            lanes_run = [self._run_lane(waiting, share) for share in shares]
            await together(lanes_run, before_stopping=waiting.clear)
        finally:
            governor.cancel()

    async def _plan(self, input_: BatchInput) -> list[WindowInput]:
        if input_.generation == 1:
            return plan_windows(input_)
        stretches: list[RerunStretch] = await durably(
            BatchActivities.plan_rerun,
            RerunRef(input_.tenant_id, input_.batch_id, input_.window_files, input_.trace_id),
        )
        # what has ended is counted before its window opens
        self._reports = {index: WindowReport(index, dict(each.ended)) for index, each in enumerate(stretches)}
        return plan_rerun_windows(input_, stretches)

    async def _govern(self, input_: BatchInput, stage: BatchState) -> None:
        """Carry pauses from window to window, and resumptions down to whatever runs."""
        resumptions = self._resumptions
        while True:
            await workflow.wait_condition(partial(self._has_word, resumptions))
            if self._pause is not None:
                self._enter(BatchState.PAUSED)
                await self._tell_windows(WindowWorkflow.pause, self._pause)
                await workflow.wait_condition(lambda: self._pause is None)
            resumptions = self._resumptions
            self._show_stage(stage)
            await self._tell_windows(WindowWorkflow.resume, resumptions)
            if stage is BatchState.DIAGNOSING:
                await self._tell_diagnosis(input_, resumptions)
            ids = (input_.tenant_id, input_.batch_id)
            await durably(PauseActivities.note_resumed, ResumedInput(*ids, resumptions, input_.trace_id))

    def _has_word(self, resumptions: int) -> bool:
        return self._pause is not None or self._resumptions > resumptions

    async def _tell_windows(self, signal: Callable[[Any, Any], Any], argument: Any) -> None:
        for index in sorted(self._open):
            handle = workflow.get_external_workflow_handle(self._window_id(self._windows[index]))
            await unless_ended(handle.signal(signal, argument))

    async def _tell_diagnosis(self, input_: BatchInput, resumptions: int) -> None:
        workflow_id = diagnosis_workflow_id(input_.batch_id, input_.generation)
        handle = workflow.get_external_workflow_handle(workflow_id)
        await unless_ended(handle.signal(DiagnosisWorkflow.resume, resumptions))

    async def _run_lane(self, waiting: deque[WindowInput], share: int) -> None:
        """One window after another with this share; at the end the share goes to a window still open."""
        while waiting:
            if self._pause is not None:
                await workflow.wait_condition(lambda: self._pause is None)
                continue
            window = waiting.popleft()
            window.share = share
            window.batch = replace(window.batch, resumptions=self._resumptions)
            await self._run_window(window)
            share = window.share
        if self._open:
            heir = self._windows[min(self._open, key=lambda index: self._windows[index].share)]
            heir.share += share
            handle = workflow.get_external_workflow_handle(self._window_id(heir))
            # an heir that has just ended hands on what it has inherited
            await unless_ended(handle.signal(WindowWorkflow.grow, share))

    async def _run_window(self, window: WindowInput) -> None:
        self._open.add(window.index)
        self._touch()
        try:
            report = await run_child(
                WindowWorkflow.run,
                window,
                WindowReport,
                workflow_id=self._window_id(window),
                summary=f"files {window.first}–{window.last}",
                batch=window.batch,
                stage=BatchState.SCATTERING,
            )
        finally:
            self._open.discard(window.index)
        self._reports[window.index] = report
        self._touch()

    async def _gather(self, input_: BatchInput, counts: Counts) -> Counts:
        """Count what came back; what was parsed of logs becomes one summary."""
        if not counts.completed or input_.kind != BatchKind.DIAGNOSIS:
            batch = BatchRef(input_.tenant_id, input_.batch_id, input_.trace_id)
            return await durably(BatchActivities.gather_results, batch)
        self._enter(BatchState.GATHERING)
        return await workflow.execute_activity_method(
            GatherActivities.gather_logs,
            _diagnosis_ref(input_),
            start_to_close_timeout=GATHER_TIMEOUT,
            schedule_to_close_timeout=STEP_DEADLINE,
            heartbeat_timeout=input_.timings.heartbeat_timeout,
            retry_policy=STEP_RETRY,
        )

    async def _diagnose(self, input_: BatchInput, batch: BatchRef) -> None:
        """Say what is the matter; where that fails, the batch has its summary and no diagnosis."""
        await durably(GatherActivities.begin_diagnosing, batch)
        self._enter(BatchState.DIAGNOSING)
        governor = asyncio.create_task(self._govern(input_, BatchState.DIAGNOSING))
        try:
            result = await self._run_diagnosis(input_)
            self._diagnosis_spent = result.spent_nanodollars
        except ChildWorkflowError as error:
            if is_cancelled_exception(error):
                raise
            # terminated by hand in the Web UI
            code, message = failure_of(error)
            failed = replace(_diagnosis_ref(input_), code=code, reason=message)
            await durably(DiagnosisRecordActivities.fail_diagnosis, failed)
        finally:
            governor.cancel()

    async def _run_diagnosis(self, input_: BatchInput) -> DiagnosisResult:
        return await run_child(
            DiagnosisWorkflow.run,
            DiagnosisInput(
                tenant_id=input_.tenant_id,
                batch_id=input_.batch_id,
                generation=input_.generation,
                model=input_.model,
                trace_id=input_.trace_id,
                cognition_queue=input_.cognition_queue,
                timings=input_.timings,
                resumptions=self._resumptions,
            ),
            DiagnosisResult,
            workflow_id=diagnosis_workflow_id(input_.batch_id, input_.generation),
            summary="diagnosis",
            batch=input_,
            stage=BatchState.DIAGNOSING,
        )

    async def _end_early(self, input_: BatchInput, error: BaseException) -> None:
        cancelled = isinstance(error, asyncio.CancelledError) or is_cancelled_exception(error)
        state = BatchState.CANCELLED if cancelled else BatchState.FAILED
        code = None if cancelled else failure_of(error)[0]
        self._counts = await durably(
            BatchActivities.end_batch_early,
            EarlyEnd(input_.tenant_id, input_.batch_id, state, code, input_.trace_id, input_.generation),
        )
        self._enter(state)

    def _window_id(self, window: WindowInput) -> str:
        return window_workflow_id(window.batch.batch_id, window.batch.generation, window.index)

    def _show_stage(self, stage: BatchState) -> None:
        """Enter a stage, unless the batch is there: each change is an event in the history."""
        if self._stage is not stage:
            self._enter(stage)

    def _enter(self, stage: BatchState) -> None:
        self._stage = stage
        workflow.upsert_search_attributes([STAGE.value_set(stage), SPENT.value_set(self._spent)])
        self._touch()

    def _touch(self) -> None:
        self._updated_at = workflow.now()
        counts = self._present_counts()
        title = f"**{self._stage}**: {counts.finished} of {counts.total} files"
        workflow.set_current_details(title + pause_line(self._pause) + "\n\n" + markdown_table(vars(counts)))

    def _present_counts(self) -> Counts:
        """What is known now: exact once gathered, before that as fresh as the windows' reports."""
        if self._counts is not None:
            return self._counts
        total = self._input.total_files if self._input else 0
        counts = Counts()
        for index, window in self._windows.items():
            report = self._reports.get(index, WindowReport(index))
            if index not in self._open and index not in self._reports:
                continue
            for state, files in report.ended.items():
                setattr(counts, state, getattr(counts, state) + files)
            paused = report.paused
            unfinished = window.files - report.finished - paused
            # a paused window starts nothing: what runs there has all said that it is paused, or will
            at_most = 0 if report.pause is not None else window.share - paused
            running = max(0, min(unfinished, at_most)) if index in self._open else 0
            counts.paused += paused
            counts.running += running
            counts.queued += unfinished - running
        counts.uploaded = total - counts.total
        return counts


@workflow.defn
class WindowWorkflow:
    """Runs at most 500 files as children, never more than its share at once."""

    def __init__(self) -> None:
        self._window: WindowInput | None = None
        self._waiting: deque[str] = deque()
        self._share = 0
        self._queued = False
        self._tasks: list[asyncio.Task[None]] = []
        self._report = WindowReport(0)
        self._told = 0
        self._cancelling = False
        self._resumptions = 0
        #: by file, the resumption before which it was paused
        self._paused: dict[str, int] = {}
        #: what the batch knows of pauses: why, and how many files
        self._pauses_told: tuple[Pause | None, int] = (None, 0)

    @workflow.run
    async def run(self, input: WindowInput) -> WindowReport:
        """Assess every file of the window."""
        self._window = input
        batch = input.batch
        self._resumptions = max(self._resumptions, batch.resumptions)
        files: WindowFiles = await durably(
            BatchActivities.queue_window,
            WindowRef(batch.tenant_id, batch.batch_id, input.first, input.last, batch.trace_id),
        )
        self._report = replace(self._report, index=input.index, ended=dict(files.ended))
        self._waiting.extend(files.file_ids)
        self._queued = True
        self.grow(input.share)
        self._show()
        attendants = [
            asyncio.create_task(self._tell_batch(input)),
            asyncio.create_task(self._resume_files(batch)),
        ]
        try:
            await workflow.wait_condition(lambda: all(task.done() for task in self._tasks))
            await asyncio.gather(*self._tasks)
        except asyncio.CancelledError:
            self._cancelling = True
            # a child that completes all the same is followed by no other
            self._waiting.clear()
            await stopped(self._tasks)
            raise
        finally:
            for attendant in attendants:
                attendant.cancel()
        return replace(self._report, paused=0, pause=None)

    @workflow.signal
    def file_paused(self, pause: Pause) -> None:
        """A file of the window waits for money."""
        self._paused[pause.file_id] = pause.resumptions
        self._report.paused = len(self._paused)
        self.pause(pause)

    @workflow.signal
    def pause(self, pause: Pause) -> None:
        """Start nothing new, unless that is out of date."""
        if self._report.pause is None and pause.resumptions >= self._resumptions:
            self._report.pause = pause

    @workflow.signal
    def resume(self, resumptions: int) -> None:
        """Go on: the batch has been resumed, that many times in all."""
        if resumptions > self._resumptions:
            self._resumptions = resumptions
            self._report.pause = None

    @workflow.signal
    def grow(self, share: int) -> None:
        """Run this many more children at once."""
        self._share += share
        # a signal that comes before the files are queued is heeded when they are
        if self._queued:
            missing = self._share - len(self._tasks)
            self._tasks += [asyncio.create_task(self._assess_files()) for _ in range(missing)]

    @workflow.query
    def progress(self) -> WindowReport:
        """How many files have ended, by final state."""
        return self._report

    def _show(self) -> None:
        assert self._window is not None
        title = f"**{self._report.finished} of {self._window.files} files**, {self._share} at once"
        table = markdown_table(self._report.ended | {"paused": self._report.paused})
        workflow.set_current_details(title + pause_line(self._report.pause) + "\n\n" + table)

    async def _resume_files(self, batch: BatchInput) -> None:
        """Tell every paused file of the resumption that it has not heard of."""
        while True:
            await workflow.wait_condition(lambda: any(self._may_go_on(each) for each in self._paused))
            for file_id in [each for each in self._paused if self._may_go_on(each)]:
                del self._paused[file_id]
                self._report.paused = len(self._paused)
                workflow_id = file_workflow_id(batch.batch_id, file_id, batch.generation)
                handle = workflow.get_external_workflow_handle(workflow_id)
                await unless_ended(handle.signal(GradingWorkflow.resume, self._resumptions))
            self._show()

    def _may_go_on(self, file_id: str) -> bool:
        return self._paused[file_id] < self._resumptions

    async def _assess_files(self) -> None:
        assert self._window is not None
        while self._waiting:
            if self._report.pause is not None:
                await workflow.wait_condition(lambda: self._report.pause is None or not self._waiting)
                continue
            file_id = self._waiting.popleft()
            result = await self._assess(self._window.batch, file_id)
            # a paused file that was ended by hand is paused no more
            self._paused.pop(file_id, None)
            self._report.paused = len(self._paused)
            self._report.spent_nanodollars += result.spent_nanodollars
            self._report.ended[result.state] = self._report.ended.get(result.state, 0) + 1
            self._show()

    async def _assess(self, batch: BatchInput, file_id: str) -> GradingResult:
        try:
            if batch.kind == BatchKind.DIAGNOSIS:
                parsed = await self._parse(batch, file_id)
                return GradingResult(parsed.state, parsed.code)
            return await self._grade(batch, file_id)
        except (ChildWorkflowError, ActivityError) as error:
            if self._cancelling:
                raise
            # terminated or cancelled by hand in the Web UI: the file still ends, once
            code, message = failure_of(error)
            failure = FailureInput(
                batch.tenant_id, batch.batch_id, file_id, batch.generation, code, message, batch.trace_id
            )
            if is_cancelled_exception(error):
                await durably(PersistActivities.cancel_file, failure)
                return GradingResult("cancelled")
            await durably(PersistActivities.fail_file, failure)
            return GradingResult("failed", code)

    async def _grade(self, batch: BatchInput, file_id: str) -> GradingResult:
        return await run_child(
            GradingWorkflow.run,
            GradingInput(
                tenant_id=batch.tenant_id,
                batch_id=batch.batch_id,
                file_id=file_id,
                generation=batch.generation,
                model=batch.model,
                trace_id=batch.trace_id,
                cognition_queue=batch.cognition_queue,
                timings=batch.timings,
                resumptions=self._resumptions,
            ),
            GradingResult,
            workflow_id=file_workflow_id(batch.batch_id, file_id, batch.generation),
            summary=f"submission {file_id}",
            batch=batch,
            stage="assessing",
        )

    async def _parse(self, batch: BatchInput, file_id: str) -> LogResult:
        return await run_child(
            LogWorkflow.run,
            LogInput(
                tenant_id=batch.tenant_id,
                batch_id=batch.batch_id,
                file_id=file_id,
                generation=batch.generation,
                trace_id=batch.trace_id,
                parsing_queue=batch.parsing_queue,
                timings=batch.timings,
            ),
            LogResult,
            workflow_id=file_workflow_id(batch.batch_id, file_id, batch.generation),
            summary=f"log {file_id}",
            batch=batch,
            stage="parsing",
        )

    async def _tell_batch(self, window: WindowInput) -> None:
        parent = workflow.info().parent
        while parent is not None:
            await workflow.wait_condition(lambda: self._has_news(window.report_every))
            self._told, self._pauses_told = self._report.finished, self._pauses
            self._show()
            await tell(parent, "window_report", self._report)
            await workflow.sleep(REPORT_INTERVAL, summary="until the next report to the batch")

    def _has_news(self, report_every: int) -> bool:
        return self._report.finished - self._told >= report_every or self._pauses != self._pauses_told

    @property
    def _pauses(self) -> tuple[Pause | None, int]:
        return self._report.pause, self._report.paused


def plan_windows(batch: BatchInput) -> list[WindowInput]:
    """Windows of nearly the same size over the ordinals 1…total; their shares come with their lanes."""
    count = -(-batch.total_files // batch.window_files)
    windows: list[WindowInput] = []
    first = 1
    for index, size in enumerate(divide(batch.total_files, count)):
        every = max(1, -(-size * count // REPORTS_PER_BATCH))
        windows.append(WindowInput(batch, index, first, first + size - 1, share=0, report_every=every))
        first += size
    return windows


def plan_rerun_windows(batch: BatchInput, stretches: list[RerunStretch]) -> list[WindowInput]:
    """A window a stretch; they report as often as their files that run again are worth."""
    again = sum(each.again for each in stretches)
    every = max(1, -(-again // REPORTS_PER_BATCH))
    return [
        WindowInput(batch, index, each.first, each.last, share=0, report_every=every)
        for index, each in enumerate(stretches)
    ]


def _diagnosis_ref(batch: BatchInput) -> DiagnosisRef:
    return DiagnosisRef(batch.tenant_id, batch.batch_id, batch.generation, trace_id=batch.trace_id)


def pause_line(pause: Pause | None) -> str:
    """What a paused batch or window waits for, as a line of its details."""
    if pause is None:
        return ""
    if pause.scope in _HUMAN_CODES:
        return f"\n\n**Paused** until a human has seen to it: `{pause.scope}`"
    missing = f", ${Money(pause.missing_nanodollars).usd} short" if pause.missing_nanodollars else ""
    return f"\n\n**Paused**: the limit of the {pause.scope} refuses{missing}"


def markdown_table(counts: Mapping[str, int]) -> str:
    """The counts that are not zero, as the Temporal Web UI shows a table."""
    rows = "".join(f"| {name} | {count} |\n" for name, count in counts.items() if count)
    return "| state | files |\n| --- | ---: |\n" + rows


def divide(whole: int, parts: int) -> list[int]:
    """Whole numbers that differ by one at most and add up to the whole."""
    base, rest = divmod(whole, parts)
    return [base + (1 if index < rest else 0) for index in range(parts)]


async def together(
    coroutines: list[Coroutine[Any, Any, None]], *, before_stopping: Callable[[], None]
) -> None:
    """Run all; the first failure, or a cancellation, stops the others before it is raised."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        await asyncio.gather(*tasks)
    # not GeneratorExit: a run that its worker lets go of may not await any more
    except (Exception, asyncio.CancelledError):
        before_stopping()
        await stopped(tasks)
        raise


async def stopped(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel the tasks and wait until the last has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run_child(
    run: Callable[[Any, Any], Awaitable[Result]],
    argument: object,
    result_type: type[Result],
    *,
    workflow_id: str,
    summary: str,
    batch: BatchInput,
    stage: str,
) -> Result:
    """Run a child workflow; one that a run before a reset has started is waited for instead."""
    try:
        return await workflow.execute_child_workflow(
            run,
            argument,
            id=workflow_id,
            cancellation_type=ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
            # a batch that is terminated by hand leaves nothing running: its children end cancelled
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            task_timeout=batch.timings.task_timeout,
            static_summary=summary,
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(TENANT, batch.tenant_id),
                    SearchAttributePair(BATCH, batch.batch_id),
                    SearchAttributePair(KIND, batch.kind),
                    SearchAttributePair(STAGE, stage),
                    SearchAttributePair(NEEDS_INTERVENTION, False),
                ]
            ),
        )
    except WorkflowAlreadyStartedError:
        result: Result = await workflow.execute_activity(
            "await_workflow",
            workflow_id,
            result_type=result_type,
            start_to_close_timeout=AWAIT_TIMEOUT,
            heartbeat_timeout=batch.timings.heartbeat_timeout,
            retry_policy=STEP_RETRY,
        )
        return result

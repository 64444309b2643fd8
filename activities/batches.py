"""The moves of a running batch: scatter, barrier, gather (stations 2 and 9), and its report (10)."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from temporalio import activity
from temporalio.client import WorkflowFailureError, WorkflowHandle

from domain.batch import BatchKind, Counts
from domain.diagnosis import DiagnosisReports
from domain.errors import RedisUnavailable
from domain.ports import Barrier, BatchRuns, ReportCache, Results
from domain.states import BatchState


@dataclass
class BatchRef:
    """Which batch."""

    tenant_id: str
    batch_id: str
    trace_id: str = ""
    kind: str = BatchKind.GRADING


@dataclass
class WindowRef:
    """A stretch of a batch's files, by ordinal, both ends included."""

    tenant_id: str
    batch_id: str
    first: int
    last: int
    trace_id: str = ""


@dataclass
class WindowFiles:
    """The ids still to assess, in order, and how the others ended."""

    file_ids: list[str]
    ended: dict[str, int]


@dataclass
class RerunRef:
    """A batch in a later generation, and how many of its files one window takes at most."""

    tenant_id: str
    batch_id: str
    window_files: int
    trace_id: str = ""


@dataclass
class RerunStretch:
    """A stretch of ordinals, both ends included: how many files run again, and how the others have ended."""

    first: int
    last: int
    again: int
    ended: dict[str, int]


@dataclass
class EarlyEnd:
    """A batch that ends before its files do."""

    tenant_id: str
    batch_id: str
    state: str
    code: str | None = None
    trace_id: str = ""
    generation: int = 1


@dataclass(frozen=True)
class BatchActivities:
    """The batch's activities and what they need."""

    runs: BatchRuns
    barrier: Barrier
    results: Results
    reports: ReportCache
    diagnosis_reports: DiagnosisReports

    @activity.defn
    async def begin_scattering(self, input: BatchRef) -> None:
        """uploaded → scattering."""
        await self.runs.begin_scattering(input.batch_id)

    @activity.defn
    async def plan_rerun(self, input: RerunRef) -> list[RerunStretch]:
        """Where the files are that run again: what has ended makes no windows of its own."""
        stretches = await self.runs.stretches(input.batch_id, input.window_files)
        return [RerunStretch(**vars(each)) for each in stretches]

    @activity.defn
    async def queue_window(self, input: WindowRef) -> WindowFiles:
        """Queue the window's files; whoever was counted in, in an earlier generation, is not any more."""
        window = await self.runs.queue_window(input.batch_id, input.first, input.last)
        # Postgres counts; the set serves progress only
        with suppress(RedisUnavailable):
            await self.barrier.withdraw(input.batch_id, window.file_ids)
        return WindowFiles(window.file_ids, window.ended)

    @activity.defn
    async def open_barrier(self, input: BatchRef) -> Counts:
        """scattering → scattered; the Redis set is rebuilt from Postgres if it has lost anything."""
        counts = await self.runs.open_barrier(input.batch_id)
        try:
            if await self.barrier.count(input.batch_id) != counts.finished:
                await self.barrier.rebuild(input.batch_id, await self.runs.finished_files(input.batch_id))
        except RedisUnavailable:
            pass  # Postgres has counted; the set serves progress only
        return counts

    @activity.defn
    async def gather_results(self, input: BatchRef) -> Counts:
        """scattered → gathering → gathered."""
        return await self.runs.gather(input.batch_id)

    @activity.defn
    async def finish_batch(self, input: BatchRef) -> str:
        """gathered or diagnosing → its final state; warms the report's cache."""
        state = await self.runs.finish(input.batch_id)
        try:
            mark = await self.reports.mark(input.batch_id)
            reports = self.diagnosis_reports if input.kind == BatchKind.DIAGNOSIS else self.results
            report = await reports.report(input.tenant_id, input.batch_id)
            await self.reports.write(input.batch_id, report, mark=mark)
        except Exception as error:  # noqa: BLE001  # whatever a cache refuses, the batch has ended
            structlog.get_logger("assay.cache").error("report_refused", reason=repr(error)[:500])
        return state

    @activity.defn
    async def end_batch_early(self, input: EarlyEnd) -> Counts:
        """The batch ends `cancelled` or `failed`, its unfinished files `cancelled`."""
        return await self.runs.end_early(
            input.batch_id, BatchState(input.state), input.code, generation=input.generation
        )

    @activity.defn
    async def await_workflow(self, workflow_id: str) -> Any:
        """The result of a workflow that a run before a reset has started."""
        handle: WorkflowHandle[Any, Any] = activity.client().get_workflow_handle(workflow_id)
        waiting = asyncio.create_task(handle.result(follow_runs=False))
        try:
            while not waiting.done():
                activity.heartbeat()
                await asyncio.wait([waiting], timeout=1.0)
            return await waiting
        except WorkflowFailureError as error:
            raise error.cause from error
        finally:
            waiting.cancel()

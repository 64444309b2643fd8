"""The worker: puts the real things behind the activities' ports. This file is the wiring diagram."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import structlog
from prometheus_client import start_http_server
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.assess import AssessActivities
from activities.batches import BatchActivities
from activities.diagnose import DiagnoseActivities
from activities.failures import FailureInterceptor
from activities.intake.ocr import recognition_installed
from activities.intake.reader import Intake
from activities.logs import DiagnosisRecordActivities, GatherActivities, LogActivities
from activities.overrides import OverrideActivities
from activities.parse import ParseActivities
from activities.parsing.lines import StoredLogLines
from activities.parsing.processes import ParserProcesses
from activities.pauses import PauseActivities
from activities.persist import PersistActivities
from db.postgres.batches import PostgresBatchRuns
from db.postgres.diagnoses import PostgresDiagnoses, PostgresDiagnosisThreads
from db.postgres.diagnosis_reports import PostgresDiagnosisReports
from db.postgres.exams import PostgresExams
from db.postgres.external_events import PostgresExternalEvents, PostgresOutside
from db.postgres.grading import PostgresAssessments, PostgresSubmissions, PostgresThreads
from db.postgres.locks import PostgresFences
from db.postgres.logs import PostgresLogs, PostgresSummaries
from db.postgres.overrides import PostgresOverrides
from db.postgres.pauses import PostgresPauses
from db.postgres.quotas import PostgresQuotaAudit
from db.postgres.reports import PostgresResults
from db.postgres.uploads import PostgresResumableUploads
from db.redis.barrier import RedisBarrier
from db.redis.cache import RedisReportCache, RedisResultCache
from db.redis.diagnosis_texts import RedisDiagnosisTexts
from db.redis.progress import RedisBell, RedisPublisher, RedisStatePublisher
from db.redis.workflow_events import RedisWorkflowEvents
from db.relay import OutboxRelay
from domain.ports import Models
from runtime.event_relay import EventRelay, EventSignals
from runtime.gateway import door, models
from runtime.orchestrator import TemporalOrchestrator
from runtime.parser import parser_command
from runtime.reconciling import QuotaReconciler
from runtime.resources import Resources, connect_temporal, in_background, open_resources
from runtime.settings import Settings
from runtime.sweeper import BatchSweeper, LedgerSweeper, ThreadSweeper, UploadSweeper
from runtime.telemetry import publish_pool_stats, registry
from workflows.batch import BatchWorkflow, WindowWorkflow
from workflows.diagnosis import DiagnosisWorkflow, LogWorkflow
from workflows.grading import GradingWorkflow
from workflows.overrides import OverrideWorkflow

#: our packages enter the workflow sandbox as they are: they hold no state of their own
_PASSTHROUGH = ("activities", "domain", "structlog", "workflows")

#: the queues, by which workers are told apart
KINDS = ("orchestration", "cognition", "parsing")


async def run_worker(settings: Settings, kinds: Collection[str]) -> None:
    """Serve the queues until SIGTERM or SIGINT; running agents are drained at their next step."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    temporal = await _connected(settings, stop)
    if temporal is None:
        return
    async with open_resources(settings, name="assay-worker", temporal=temporal) as resources:
        if settings.worker.metrics_port is not None:
            start_http_server(settings.worker.metrics_port, settings.worker.metrics_host, registry(resources))
        workers: list[Worker] = []
        if "orchestration" in kinds:
            workers.append(orchestration_worker(resources))
        if "cognition" in kinds:
            workers.append(cognition_worker(resources))
        if "parsing" in kinds:
            workers.append(parsing_worker(resources))
        async with serving(resources, workers, relay="orchestration" in kinds, threads="cognition" in kinds):
            structlog.get_logger("assay.worker").info(
                "worker_ready", queues=[worker.task_queue for worker in workers]
            )
            await stop.wait()
            structlog.get_logger("assay.worker").info("worker_draining")


@asynccontextmanager
async def serving(
    resources: Resources, workers: Sequence[Worker], *, relay: bool, threads: bool = False
) -> AsyncIterator[None]:
    """Run the workers, and the relay and the upkeep of threads beside them, for as long as the block."""
    background = [publish_pool_stats(resources)]
    if relay:
        publisher = RedisPublisher(resources.redis, resources.hub)
        background.append(OutboxRelay(resources.postgres, publisher).run())
        background.append(sweeper(resources).run())
        background.append(upload_sweeper(resources).run())
        background.append(LedgerSweeper(resources.ledger, resources.clock).run())
        background.append(reconciler(resources).run())
        events = event_relay(resources)
        background.append(events.run())
        background.append(RedisWorkflowEvents(resources.redis).listen(events.hear))
    if threads:
        background.append(thread_sweeper(resources).run())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(in_background(*background))
        for worker in workers:
            await stack.enter_async_context(worker)
        yield


def sweeper(resources: Resources) -> BatchSweeper:
    """What looks after batches without a workflow."""
    settings = resources.settings
    return BatchSweeper(
        PostgresBatchRuns(resources.postgres),
        PostgresPauses(resources.postgres),
        TemporalOrchestrator(resources.temporal, settings.temporal, settings.worker),
    )


def upload_sweeper(resources: Resources) -> UploadSweeper:
    """What removes the remains of uploads."""
    uploads = PostgresResumableUploads(resources.postgres)
    return UploadSweeper(uploads, resources.objects, resources.clock)


def thread_sweeper(resources: Resources) -> ThreadSweeper:
    """What prunes agents' threads; it imports LangGraph."""
    from db.postgres.threads import PostgresThreadRetention, Retention

    worker = resources.settings.worker
    retention = Retention(worker.keep_threads_days, worker.keep_last_checkpoints_days)
    return ThreadSweeper(PostgresThreadRetention(resources.postgres, resources.clock, retention))


def event_relay(resources: Resources) -> EventRelay:
    """What brings events from outside to their workflows."""
    return EventRelay(
        PostgresExternalEvents(resources.postgres),
        PostgresFences(resources.postgres),
        EventSignals(resources.temporal),
        resources.event_figures,
    )


def reconciler(resources: Resources) -> QuotaReconciler:
    """What repairs the copies of balances."""
    return QuotaReconciler(
        resources.quotas,
        resources.ledger.books,
        PostgresQuotaAudit(resources.postgres),
        resources.figures,
        resources.clock,
    )


async def _connected(settings: Settings, stop: asyncio.Event) -> Client | None:
    """A connected client, waited for as long as need be; `None` once the worker is to stop."""
    while not stop.is_set():
        try:
            return await connect_temporal(settings, name="assay-worker", lazy=False)
        except (RPCError, RuntimeError) as error:
            structlog.get_logger("assay.worker").warning("temporal_awaited", reason=str(error)[:200])
            await asyncio.sleep(1)
    return None


def orchestration_worker(resources: Resources) -> Worker:
    """Workflows and their light activities."""
    link = resources.redis
    results = PostgresResults(resources.postgres)
    batches = BatchActivities(
        runs=PostgresBatchRuns(resources.postgres),
        barrier=RedisBarrier(link),
        results=results,
        reports=RedisReportCache(link),
        diagnosis_reports=PostgresDiagnosisReports(resources.postgres),
    )
    persist = PersistActivities(
        assessments=PostgresAssessments(resources.postgres),
        results=results,
        cache=RedisResultCache(link),
        barrier=RedisBarrier(link),
        bell=RedisBell(link),
    )
    pauses = PauseActivities(PostgresPauses(resources.postgres))
    overrides = OverrideActivities(
        overrides=PostgresOverrides(resources.postgres),
        results=results,
        cache=RedisResultCache(link),
        reports=RedisReportCache(link),
        bell=RedisBell(link),
    )
    stored = PostgresLogs(resources.postgres)
    logs = LogActivities(stored, resources.objects, barrier=RedisBarrier(link), bell=RedisBell(link))
    gathering = GatherActivities(
        runs=PostgresBatchRuns(resources.postgres),
        logs=stored,
        objects=resources.objects,
        summaries=PostgresSummaries(resources.postgres),
    )
    diagnoses = DiagnosisRecordActivities(PostgresDiagnoses(resources.postgres), RedisBell(link))
    return _worker(
        resources,
        resources.settings.temporal.orchestration_queue,
        workflows=[
            BatchWorkflow,
            WindowWorkflow,
            GradingWorkflow,
            OverrideWorkflow,
            LogWorkflow,
            DiagnosisWorkflow,
        ],
        activities=[
            batches.begin_scattering,
            batches.plan_rerun,
            batches.queue_window,
            batches.open_barrier,
            batches.gather_results,
            batches.finish_batch,
            batches.end_batch_early,
            batches.await_workflow,
            persist.record_results,
            persist.erase_results,
            persist.cache_results,
            persist.evict_results,
            persist.ring_bell,
            persist.ring_retraction,
            persist.fail_file,
            persist.flag_file,
            persist.flag_saga,
            persist.cancel_file,
            logs.begin_log,
            logs.record_log,
            gathering.gather_logs,
            gathering.begin_diagnosing,
            diagnoses.record_diagnosis,
            diagnoses.retract_diagnosis,
            diagnoses.publish_diagnosis,
            diagnoses.flag_diagnosis,
            diagnoses.fail_diagnosis,
            overrides.apply_override,
            overrides.retract_override,
            overrides.cache_override,
            overrides.void_override,
            overrides.tell_override,
            overrides.tell_retraction,
            overrides.flag_override,
            pauses.pause_file,
            pauses.pause_batch,
            pauses.note_resumed,
        ],
        max_concurrent_activities=100,
    )


def cognition_worker(resources: Resources, upstreams: Models | None = None) -> Worker:
    """The agents; `upstreams` stand in for the settings' models.

    LangGraph is imported here, and nowhere that need not wait for it.
    """
    # only plain data may be in a checkpoint; LangGraph reads this at its import
    os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"
    from agents.diagnosis.session import DiagnosisSession
    from agents.session import GradingSession
    from db.postgres.checkpoints import FencedPostgresSaver

    pool = resources.postgres.pool
    retry_seconds = resources.settings.worker.checkpoint_retry_seconds
    asked = door(resources, upstreams or models(resources.settings.models))

    def open_saver(epoch: int) -> FencedPostgresSaver:
        return FencedPostgresSaver(pool, epoch, retry_seconds=retry_seconds)

    assess = AssessActivities(
        threads=PostgresThreads(resources.postgres),
        submissions=PostgresSubmissions(resources.postgres),
        exams=PostgresExams(resources.postgres),
        objects=resources.objects,
        intake=Intake(recognition=recognition_installed()),
        agent=GradingSession(
            models=asked,
            open_saver=open_saver,
            clock=resources.clock,
            max_parallel=resources.settings.worker.max_parallel_calls,
            max_tokens=resources.settings.models.max_tokens,
            outside=PostgresOutside(resources.postgres),
        ),
        states=RedisStatePublisher(resources.redis),
    )
    diagnose = DiagnoseActivities(
        threads=PostgresDiagnosisThreads(resources.postgres),
        summaries=PostgresSummaries(resources.postgres),
        diagnoses=PostgresDiagnoses(resources.postgres),
        agent=DiagnosisSession(
            outside=PostgresOutside(resources.postgres),
            models=asked,
            lines=StoredLogLines(resources.objects),
            open_saver=open_saver,
            clock=resources.clock,
        ),
        texts=RedisDiagnosisTexts(resources.redis),
        locks=resources.locks,
        states=RedisStatePublisher(resources.redis),
    )
    return _worker(
        resources,
        resources.settings.temporal.cognition_queue,
        workflows=[],
        activities=[assess.assess_submission, diagnose.diagnose_batch],
        max_concurrent_activities=resources.settings.worker.max_assessments,
    )


def parsing_worker(resources: Resources) -> Worker:
    """Logs, each in a process of its own; a worker in another language may stand here instead."""
    settings = resources.settings
    count = settings.worker.parsing_processes or os.cpu_count() or 1
    parsers = ParserProcesses(parser_command(settings.objects_url), count)
    resources.ends.push_async_exit(parsers)
    return _worker(
        resources,
        settings.temporal.parsing_queue,
        workflows=[],
        activities=[ParseActivities(parsers).parse_log],
        max_concurrent_activities=count,
    )


def _worker(
    resources: Resources,
    task_queue: str,
    *,
    workflows: Sequence[type],
    activities: Sequence[Any],
    max_concurrent_activities: int,
) -> Worker:
    settings = resources.settings.worker
    return Worker(
        resources.temporal,
        task_queue=task_queue,
        workflows=workflows,
        activities=activities,
        interceptors=[FailureInterceptor()],
        workflow_runner=SandboxedWorkflowRunner(
            restrictions=SandboxRestrictions.default.with_passthrough_modules(*_PASSTHROUGH)
        ),
        max_concurrent_activities=max_concurrent_activities,
        # the SDK holds heartbeats back for 0.8 of the timeout; half of it is promised (G2.3)
        max_heartbeat_throttle_interval=timedelta(seconds=settings.heartbeat_timeout_seconds / 4),
        default_heartbeat_throttle_interval=timedelta(seconds=settings.heartbeat_timeout_seconds / 4),
        graceful_shutdown_timeout=timedelta(seconds=settings.shutdown_seconds),
    )

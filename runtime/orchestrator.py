"""Temporal, as the API sees it."""

from datetime import timedelta

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import (
    Priority,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from domain.batch import AgentState, Batch, Progress
from domain.errors import NotFound, TemporalUnavailable
from domain.identity import batch_workflow_id, override_workflow_id
from domain.overrides import Override
from runtime.settings import TemporalSettings, WorkerSettings
from workflows.attributes import BATCH, KIND, NEEDS_INTERVENTION, STAGE, TENANT
from workflows.batch import BatchInput, BatchWorkflow
from workflows.grading import GradingWorkflow
from workflows.overrides import OverrideWorkflow

_RPC_TIMEOUT = timedelta(seconds=5)


class TemporalOrchestrator:
    """Starts, cancels and asks workflows; whatever keeps Temporal from answering is `TemporalUnavailable`."""

    def __init__(self, client: Client, temporal: TemporalSettings, worker: WorkerSettings) -> None:
        self._client = client
        self._temporal = temporal
        self._worker = worker

    async def start_batch(self, batch: Batch) -> None:
        """Start the batch's workflow, once however often it is asked; raises `TemporalUnavailable`."""
        try:
            await self._client.start_workflow(
                BatchWorkflow.run,
                BatchInput(
                    tenant_id=batch.tenant_id,
                    batch_id=batch.id,
                    kind=batch.opening.kind,
                    total_files=batch.total_files,
                    max_concurrent=batch.opening.max_concurrent,
                    model=batch.opening.model,
                    generation=batch.generation,
                    trace_id=batch.trace_id,
                    window_files=self._worker.window_files,
                    cognition_queue=self._temporal.cognition_queue,
                    parsing_queue=self._temporal.parsing_queue,
                    timings=self._worker.timings(),
                    resumptions=batch.resumptions,
                ),
                id=batch_workflow_id(batch.id, batch.generation),
                task_queue=self._temporal.orchestration_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                task_timeout=self._worker.timings().task_timeout,
                priority=Priority(fairness_key=batch.tenant_id),
                static_summary=f"{batch.opening.kind} of {batch.total_files} files",
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(TENANT, batch.tenant_id),
                        SearchAttributePair(BATCH, batch.id),
                        SearchAttributePair(KIND, batch.opening.kind),
                        SearchAttributePair(STAGE, batch.state),
                        SearchAttributePair(NEEDS_INTERVENTION, False),
                    ]
                ),
                rpc_timeout=_RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            return  # it has run to its end already
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error

    async def start_override(self, override: Override) -> None:
        """Start the override's workflow, once however often it is asked; raises `TemporalUnavailable`."""
        try:
            await self._client.start_workflow(
                OverrideWorkflow.run,
                override,
                id=override_workflow_id(override.submission_id, override.override_id),
                task_queue=self._temporal.orchestration_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                task_timeout=self._worker.timings().task_timeout,
                priority=Priority(fairness_key=override.tenant_id),
                static_summary=f"override of submission {override.submission_id}",
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(TENANT, override.tenant_id),
                        SearchAttributePair(BATCH, override.batch_id),
                        SearchAttributePair(KIND, "override"),
                        SearchAttributePair(STAGE, "pending"),
                        SearchAttributePair(NEEDS_INTERVENTION, False),
                    ]
                ),
                rpc_timeout=_RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            return  # it has run to its end already
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error

    async def cancel_batch(self, batch: Batch) -> None:
        """Ask the batch's workflow to cancel; raises `TemporalUnavailable` or `NotFound`."""
        try:
            handle = self._client.get_workflow_handle(batch_workflow_id(batch.id, batch.generation))
            await handle.cancel(rpc_timeout=_RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error

    async def resume_batch(self, batch: Batch, resumptions: int) -> None:
        """Tell the batch's workflow that it has been resumed; raises `TemporalUnavailable` or `NotFound`."""
        handle = self._client.get_workflow_handle_for(
            BatchWorkflow.run, batch_workflow_id(batch.id, batch.generation)
        )
        try:
            await handle.signal(BatchWorkflow.resume, resumptions, rpc_timeout=_RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error

    async def retry_file(self, workflow_id: str) -> None:
        """Tell a file's workflow that what it waits for is seen to; raises as `resume_batch`."""
        handle = self._client.get_workflow_handle_for(GradingWorkflow.run, workflow_id)
        try:
            await handle.signal(GradingWorkflow.retry, rpc_timeout=_RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error

    async def batch_runs(self, batch: Batch) -> bool:
        """Whether the workflow of the batch's generation is open; raises `NotFound` if there is none."""
        handle = self._client.get_workflow_handle(batch_workflow_id(batch.id, batch.generation))
        try:
            described = await handle.describe(rpc_timeout=_RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error
        return described.status is WorkflowExecutionStatus.RUNNING

    async def batch_progress(self, batch: Batch) -> Progress:
        """The workflow's own word on a batch; raises `NotFound` or `TemporalUnavailable`."""
        handle = self._client.get_workflow_handle_for(
            BatchWorkflow.run, batch_workflow_id(batch.id, batch.generation)
        )
        try:
            return await handle.query(BatchWorkflow.progress, rpc_timeout=_RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error

    async def agent_state(self, workflow_id: str) -> AgentState:
        """The workflow's own word on its agent; raises `NotFound` or `TemporalUnavailable`."""
        handle = self._client.get_workflow_handle_for(GradingWorkflow.run, workflow_id)
        try:
            return await handle.query(GradingWorkflow.state, rpc_timeout=_RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error

    async def ping(self) -> None:
        """Raises `TemporalUnavailable`."""
        try:
            await self._client.service_client.check_health(timeout=_RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from error


def _unavailable(error: RPCError | RuntimeError) -> NotFound | TemporalUnavailable:
    if isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND:
        return NotFound("Temporal knows no such workflow.")
    # a lazy client that cannot connect raises RuntimeError
    return TemporalUnavailable(f"Temporal does not answer: {str(error)[:200]}")

"""Submissions by their own id: where the agent that grades one is."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import Reader, Services, ServicesOf, Submitter, check_id
from api.errors import problems
from api.wire import SubmissionId, iso
from domain.batch import AgentState, StoredFile
from domain.errors import IllegalTransition, NotFound, TemporalUnavailable
from domain.identity import file_workflow_id
from domain.states import FileState

router = APIRouter(prefix="/v1/submissions", tags=["submissions"])

Source = Literal["checkpoint", "workflow", "row"]

_ID = "0197c1de-3333-7000-8000-000000000000"


class SubmissionState(BaseModel):
    """Where a submission is; `source` says whether its agent's checkpoint, workflow or row was asked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "submission_id": _ID,
                    "state": "running",
                    "workflow_id": f"batch/0197c1de-1111-7000-8000-000000000000/file/{_ID}",
                    "source": "checkpoint",
                    "thread_id": "0197c1de-4444-7000-8000-000000000000",
                    "checkpoint_id": "1f0e2a3b-0000-6000-8003-000000000000",
                    "node": "grade_question",
                    "stage": "grading",
                    "percentage": 50.0,
                    "updated_at": "2026-01-02T03:05:06+00:00",
                    "external_events": ["disk-7-replaced"],
                }
            ]
        }
    )

    submission_id: str
    state: FileState
    workflow_id: str
    source: Source
    thread_id: str
    checkpoint_id: str
    node: str
    stage: str
    percentage: float
    updated_at: str
    external_events: list[str] = Field(description="Ids of the newest events that the agent has heard of.")


@router.get(
    "/{submission_id}/state",
    summary="Read a submission's state",
    description="Where the agent was after its last durable step; before its first one what its workflow "
    "says, and where Temporal does not answer what the file's row says. `source` tells which.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_submission_state(
    submission_id: SubmissionId, caller: Reader, services: ServicesOf
) -> SubmissionState:
    """The agent's node, stage and checkpoint."""
    file = await services.batches.submission(caller.tenant_id, check_id("submission", submission_id))
    workflow_id = file.workflow_id or file_workflow_id(file.batch_id, file.id, file.generation)
    source, state = await _agent_state(services, workflow_id, file)
    return SubmissionState(
        submission_id=file.id, state=file.state, workflow_id=workflow_id, source=source, **vars(state)
    )


class Retried(BaseModel):
    """A submission that goes on where its agent was."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "submission_id": _ID,
                    "workflow_id": f"batch/0197c1de-1111-7000-8000-000000000000/file/{_ID}",
                }
            ]
        }
    )

    submission_id: str
    workflow_id: str


@router.post(
    "/{submission_id}/retry",
    status_code=202,
    summary="Go on with a submission that needs intervention",
    description="For a submission whose agent could not save its checkpoint: once the cause is seen to, it "
    "goes on where it was. Anything else is a 409.",
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def retry_submission(submission_id: SubmissionId, caller: Submitter, services: ServicesOf) -> Retried:
    """Wake the submission's workflow."""
    file = await services.batches.submission(caller.tenant_id, check_id("submission", submission_id))
    if file.state is not FileState.NEEDS_INTERVENTION:
        raise IllegalTransition(
            f"Submission {file.id} is {file.state}; only one that needs_intervention can be retried.",
            field="submission_id",
        )
    workflow_id = file.workflow_id or file_workflow_id(file.batch_id, file.id, file.generation)
    await services.orchestrator.retry_file(workflow_id)
    return Retried(submission_id=file.id, workflow_id=workflow_id)


async def _agent_state(services: Services, workflow_id: str, file: StoredFile) -> tuple[Source, AgentState]:
    if (state := await services.agent_states.latest(workflow_id)) is not None:
        return "checkpoint", state
    try:
        return "workflow", await services.orchestrator.agent_state(workflow_id)
    except (NotFound, TemporalUnavailable):
        percentage = 100.0 if file.state is FileState.COMPLETED else 0.0
        return "row", AgentState(stage=file.state, percentage=percentage, updated_at=iso(file.updated_at))

"""The history of a submission's agents: every checkpoint that is still kept (G2.6)."""

from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import Reader, ServicesOf, check_id
from api.errors import problems
from api.wire import SubmissionId, Time
from domain.threads import SavedCheckpoint, SavedState, StateChange, changes_between

router = APIRouter(prefix="/v1/submissions", tags=["submissions"])

_ID = "0197c1de-3333-7000-8000-000000000000"
_CHECKPOINT: dict[str, Any] = {
    "checkpoint_id": "1f0e2a3b-0000-6000-8003-000000000000",
    "thread_id": "0197c1de-4444-7000-8000-000000000000",
    "generation": 1,
    "step": 2,
    "nodes": ["short_answer"],
    "next_nodes": ["check_evidence"],
    "created_at": "2026-01-02T03:05:06+00:00",
    "data_size_bytes": 1956,
    "is_delta": True,
    "is_compressed": False,
    "base_checkpoint_id": "1f0e2a3b-0000-6000-8002-000000000000",
    "forked_thread_id": None,
    "forked_checkpoint_id": None,
}

CheckpointId = Annotated[
    str, Path(max_length=100, description="The checkpoint's id.", examples=[_CHECKPOINT["checkpoint_id"]])
]
Against = Annotated[
    str | None, Query(max_length=100, description="An earlier checkpoint: what has changed since it.")
]
Thread = Annotated[
    str | None,
    Query(
        max_length=100, description="Whose checkpoint, where a fork has a copy of it; the newest's without."
    ),
]


class CheckpointView(BaseModel):
    """One checkpoint: `nodes` have led to it, `next_nodes` would follow."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CHECKPOINT]})

    checkpoint_id: str
    thread_id: str
    generation: int
    step: int
    nodes: list[str]
    next_nodes: list[str]
    created_at: Time
    data_size_bytes: int
    is_delta: bool
    is_compressed: bool
    base_checkpoint_id: str | None
    forked_thread_id: str | None = Field(description="The thread that this one began as a copy of, if any.")
    forked_checkpoint_id: str | None = Field(description="Up to which of its checkpoints.")

    @classmethod
    def of(cls, checkpoint: SavedCheckpoint) -> Self:
        """The checkpoint as the API shows it."""
        return cls.model_validate({**vars(checkpoint)}, strict=False)


class CheckpointList(BaseModel):
    """All checkpoints of a submission's threads, newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"submission_id": _ID, "checkpoints": [_CHECKPOINT]}]}
    )

    submission_id: str
    checkpoints: list[CheckpointView]


class PendingView(BaseModel):
    """What a task of the step after the checkpoint has written."""

    task_id: str
    channel: str
    value: Any


class ChangeView(BaseModel):
    """One difference, of a whole channel or of one question in it."""

    channel: str
    key: str | None
    change: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None


class CheckpointState(CheckpointView):
    """A checkpoint with its state as saved; `changes` where it was compared with another one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_CHECKPOINT,
                    "submission_id": _ID,
                    "state": {"model": "local", "plan": {"q1": "short_answer"}},
                    "pending": [],
                    "unreadable": {},
                    "against": None,
                    "changes": None,
                }
            ]
        }
    )

    submission_id: str
    state: dict[str, Any]
    pending: list[PendingView]
    #: by channel, why its value cannot be shown
    unreadable: dict[str, str]
    against: str | None
    changes: list[ChangeView] | None


@router.get(
    "/{submission_id}/checkpoints",
    summary="List a submission's checkpoints",
    description="Of all its threads that are still kept, newest first: one a generation, one more for each "
    "reset of its workflow. A fork begins with copies of the checkpoints that it goes on from.",
    responses=problems(401, 403, 404, 422, 503),
)
async def list_checkpoints(
    submission_id: SubmissionId, caller: Reader, services: ServicesOf
) -> CheckpointList:
    """The checkpoints, newest first."""
    file = await services.batches.submission(caller.tenant_id, check_id("submission", submission_id))
    found = await services.thread_history.checkpoints(file.id)
    return CheckpointList(submission_id=file.id, checkpoints=[CheckpointView.of(each) for each in found])


@router.get(
    "/{submission_id}/checkpoints/{checkpoint_id}",
    summary="Read a checkpoint",
    description="The agent's state as it was saved, and what the step after it had written; with `against`, "
    "what differs from another checkpoint. A checkpoint that has been pruned is a 404.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_checkpoint(
    submission_id: SubmissionId,
    checkpoint_id: CheckpointId,
    caller: Reader,
    services: ServicesOf,
    against: Against = None,
    thread_id: Thread = None,
) -> CheckpointState:
    """The checkpoint with its state."""
    file = await services.batches.submission(caller.tenant_id, check_id("submission", submission_id))
    checkpoint, state = await services.thread_history.read(file.id, checkpoint_id, thread_id)
    changes = None
    if against is not None:
        _, before = await services.thread_history.read(file.id, against)
        changes = [_change_view(each) for each in changes_between(before, state)]
    return _state_view(file.id, checkpoint, state, against, changes)


def _state_view(
    submission_id: str,
    checkpoint: SavedCheckpoint,
    state: SavedState,
    against: str | None,
    changes: list[ChangeView] | None,
) -> CheckpointState:
    return CheckpointState(
        **dict(CheckpointView.of(checkpoint)),
        submission_id=submission_id,
        state=dict(state.values),
        pending=[PendingView(**vars(each)) for each in state.pending],
        unreadable=dict(state.unreadable),
        against=against,
        changes=changes,
    )


def _change_view(change: StateChange) -> ChangeView:
    return ChangeView(**vars(change))

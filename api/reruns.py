"""The way out of a final state: failed submissions again, or a cohort from a step on (B3.2, X31)."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from api.batches import BatchView, batch_view
from api.bodies import body_schema, parse_body, read_body
from api.dependencies import Services, ServicesOf, Submitter, check_id
from api.errors import problems
from api.wire import BatchId, PlainText, SubmissionId
from domain.batch import Batch
from domain.errors import TemporalUnavailable
from domain.threads import MAX_FORKED, ForkPlace

router = APIRouter(tags=["batches"])

_CHECKPOINT = "1f0e2a3b-0000-6000-8003-000000000000"


class CohortForkRequest(BaseModel):
    """Which submissions are taken up again, and from where: a step, or the node that is to run."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"node": "check_evidence"}]}
    )

    submissions: list[PlainText] | None = Field(
        None, min_length=1, max_length=MAX_FORKED, description="Their ids; all failed ones by default."
    )
    step: int | None = Field(None, ge=-1, description="The step of the checkpoint that is gone on from.")
    node: PlainText | None = Field(
        None, min_length=1, max_length=100, description="Gone on from the checkpoint before it ran first."
    )


class ForkRequest(BaseModel):
    """From which checkpoint of its history a submission is taken up again."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"checkpoint_id": _CHECKPOINT}]}
    )

    checkpoint_id: PlainText = Field(min_length=1, max_length=100)


async def _cohort(request: Request, caller: Submitter, services: ServicesOf) -> CohortForkRequest:
    body = await read_body(request, services.limits.max_chat_bytes, "max_chat_bytes")
    return parse_body(CohortForkRequest, body)


async def _one(request: Request, caller: Submitter, services: ServicesOf) -> ForkRequest:
    body = await read_body(request, services.limits.max_body_bytes, "max_body_bytes")
    return parse_body(ForkRequest, body)


@router.post(
    "/v1/batches/{batch_id}/retry-failed",
    status_code=202,
    summary="Run failed submissions again",
    description="Begins a new generation of a batch that has ended: its failed and cancelled submissions are "
    "assessed anew, and paid for anew; the others keep their results. A batch that has not ended is a 409.",
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def retry_failed(batch_id: BatchId, caller: Submitter, services: ServicesOf) -> BatchView:
    """The batch, scattering in its new generation."""
    batch_id = check_id("batch", batch_id)
    await services.orchestrator.ping()
    batch = await services.reruns.retry_failed(caller.tenant_id, batch_id)
    await _begin(services, batch)
    return batch_view(batch)


@router.post(
    "/v1/batches/{batch_id}/fork",
    status_code=202,
    summary="Go on with submissions from a step",
    description="Begins a new generation of a batch that has ended, in which each of these submissions goes "
    "on from a checkpoint of its history: what came before is kept and not paid for again, what came after "
    "is done anew. Refused with 404, and nothing changed, unless every one still has such a checkpoint.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=body_schema(CohortForkRequest),
)
async def fork_batch(
    batch_id: BatchId,
    caller: Submitter,
    services: ServicesOf,
    requested: Annotated[CohortForkRequest, Depends(_cohort)],
) -> BatchView:
    """The batch, scattering in its new generation."""
    place = ForkPlace(step=requested.step, node=requested.node)
    ids = requested.submissions
    submissions = None if ids is None else [check_id("submission", each) for each in ids]
    batch = await _forked(services, caller.tenant_id, check_id("batch", batch_id), place, submissions)
    return batch_view(batch)


@router.post(
    "/v1/submissions/{submission_id}/fork",
    status_code=202,
    tags=["submissions"],
    summary="Go on with a submission from a checkpoint",
    description="Begins a new generation of the submission's batch, in which it goes on from that "
    "checkpoint; from a thread's last one it is restored as it was then. The batch must have ended, else "
    "409; a pruned checkpoint is a 404.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=body_schema(ForkRequest),
)
async def fork_submission(
    submission_id: SubmissionId,
    caller: Submitter,
    services: ServicesOf,
    requested: Annotated[ForkRequest, Depends(_one)],
) -> BatchView:
    """The batch, scattering in its new generation."""
    file = await services.batches.submission(caller.tenant_id, check_id("submission", submission_id))
    place = ForkPlace(checkpoint_id=requested.checkpoint_id)
    return batch_view(await _forked(services, caller.tenant_id, file.batch_id, place, [file.id]))


async def _forked(
    services: Services, tenant_id: str, batch_id: str, place: ForkPlace, submission_ids: list[str] | None
) -> Batch:
    await services.orchestrator.ping()
    batch = await services.reruns.fork(tenant_id, batch_id, place, submission_ids)
    await _begin(services, batch)
    return batch


async def _begin(services: Services, batch: Batch) -> None:
    await services.report_cache.forget(batch.id)
    # the new generation is in Postgres: what cannot be started now is started by the sweeper
    with suppress(TemporalUnavailable):
        await services.orchestrator.start_batch(batch)

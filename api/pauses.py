"""The way out of a pause: raise a batch's limit, or say that it shall try again."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.batches import BatchView, batch_view
from api.bodies import body_schema, parse_body, read_body
from api.dependencies import Services, ServicesOf, Submitter, check_id
from api.errors import problems
from api.money import parse_optional_usd
from api.wire import BatchId
from domain.batch import Batch
from domain.errors import NotFound, TemporalUnavailable

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class LimitRequest(BaseModel):
    """A batch's limit of money; `null` for none."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"limit_usd": "12.50"}]}
    )

    limit_usd: Annotated[
        int | None,
        BeforeValidator(parse_optional_usd, json_schema_input_type=str | None),
        Field(description='The most that the batch may cost in all, as a decimal string such as "12.50".'),
    ]


async def _requested(request: Request, caller: Submitter, services: ServicesOf) -> LimitRequest:
    body = await read_body(request, services.limits.max_body_bytes, "max_body_bytes")
    return parse_body(LimitRequest, body)


@router.post(
    "/{batch_id}/limit",
    summary="Set a batch's limit",
    description="Raises or lowers what the batch may cost; a batch that is paused goes on, and is paused "
    "again if that is still too little.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=body_schema(LimitRequest),
)
async def set_limit(
    batch_id: BatchId,
    caller: Submitter,
    services: ServicesOf,
    requested: Annotated[LimitRequest, Depends(_requested)],
) -> BatchView:
    """The batch with its new limit."""
    batch_id = check_id("batch", batch_id)
    resumptions = await services.resumptions.set_limit(caller.tenant_id, batch_id, requested.limit_usd)
    batch = await services.batches.read(caller.tenant_id, batch_id)
    await _tell_workflow(services, batch, resumptions)
    return batch_view(batch)


@router.post(
    "/{batch_id}/resume",
    summary="Resume a paused batch",
    description="Tries again, such as after a key's or a day's limit has changed; a batch that is not paused "
    "is answered as it is.",
    responses=problems(401, 403, 404, 422, 503),
)
async def resume_batch(batch_id: BatchId, caller: Submitter, services: ServicesOf) -> BatchView:
    """The batch, resumed."""
    batch_id = check_id("batch", batch_id)
    resumptions = await services.resumptions.resume(caller.tenant_id, batch_id)
    batch = await services.batches.read(caller.tenant_id, batch_id)
    await _tell_workflow(services, batch, resumptions)
    return batch_view(batch)


async def _tell_workflow(services: Services, batch: Batch, resumptions: int | None) -> None:
    # what does not reach it now is told by the sweeper: the resumption is in Postgres
    with suppress(NotFound, TemporalUnavailable):
        if resumptions is not None:
            await services.orchestrator.resume_batch(batch, resumptions)

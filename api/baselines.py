"""Baselines: names for the batches that others are compared with."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.bodies import body_schema, parse_body, read_body
from api.dependencies import Reader, ServicesOf, Submitter, check_id
from api.errors import problems
from api.pages import Page, PageNumber, PageSize
from api.wire import MAX_NAME_LENGTH, PlainText, Time
from domain.diagnosis import NamedBaseline
from domain.identity import is_uuid

router = APIRouter(prefix="/v1/baselines", tags=["baselines"])

_BASELINE: dict[str, Any] = {
    "name": "OTA 4.2, healthy",
    "batch_id": "0197c1de-1111-7000-8000-000000000000",
    "created_at": "2026-01-02T03:04:05+00:00",
    "updated_at": "2026-01-02T03:04:05+00:00",
}


def _no_id(name: str) -> str:
    if is_uuid(name):
        raise ValueError("looks like an id; a batch's id needs no name to be compared with")
    return name


BaselineName = Annotated[
    PlainText,
    AfterValidator(_no_id),
    Path(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        description="The baseline's name; anything but an id.",
        examples=[_BASELINE["name"]],
    ),
]


class BaselineRequest(BaseModel):
    """The batch that is to have the name."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"batch_id": _BASELINE["batch_id"]}]}
    )

    batch_id: PlainText = Field(max_length=100, description="A diagnosis batch that has ended.")


class BaselineView(BaseModel):
    """A name, and the batch that it stands for."""

    model_config = ConfigDict(json_schema_extra={"examples": [_BASELINE]})

    name: str
    batch_id: str
    created_at: Time
    updated_at: Time


async def _requested(request: Request, caller: Submitter, services: ServicesOf) -> BaselineRequest:
    body = await read_body(request, services.limits.max_body_bytes, "max_body_bytes")
    return parse_body(BaselineRequest, body)


@router.put(
    "/{name:path}",
    summary="Name a baseline",
    description="Whoever opens a diagnosis batch with this name from now on compares it with that batch; "
    "what was opened before keeps what the name stood for.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=body_schema(BaselineRequest),
)
async def put_baseline(
    name: BaselineName,
    caller: Submitter,
    services: ServicesOf,
    requested: Annotated[BaselineRequest, Depends(_requested)],
) -> BaselineView:
    """The baseline."""
    batch_id = check_id("batch", requested.batch_id)
    return _view(await services.baselines.put(caller.tenant_id, name, batch_id))


@router.get(
    "",
    summary="List the baselines",
    description="In the order of their names.",
    responses=problems(401, 403, 422, 503),
)
async def list_baselines(
    caller: Reader, services: ServicesOf, page: PageNumber = 1, page_size: PageSize = 20
) -> Page[BaselineView]:
    """One page of the tenant's baselines."""
    found, total = await services.baselines.list_of_tenant(caller.tenant_id, page, page_size)
    return Page(items=[_view(each) for each in found], page=page, page_size=page_size, total=total)


@router.get(
    "/{name:path}",
    summary="Read a baseline",
    description="Which batch the name stands for.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_baseline(name: BaselineName, caller: Reader, services: ServicesOf) -> BaselineView:
    """The baseline."""
    return _view(await services.baselines.read(caller.tenant_id, name))


@router.delete(
    "/{name:path}",
    status_code=204,
    summary="Remove a baseline",
    description="Forgets the name; its batch stays, and so do comparisons with it.",
    responses=problems(401, 403, 404, 422, 503),
)
async def remove_baseline(name: BaselineName, caller: Submitter, services: ServicesOf) -> None:
    """Nothing."""
    await services.baselines.remove(caller.tenant_id, name)


def _view(baseline: NamedBaseline) -> BaselineView:
    return BaselineView(**vars(baseline))

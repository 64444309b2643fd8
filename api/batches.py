"""Batches: open, complete, read, cancel."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.bodies import body_schema, parse_body, read_body
from api.dependencies import Reader, ServicesOf, Submitter, check_id
from api.errors import problems
from api.estimates import EstimateView, estimate_of
from api.idempotency import Creation, IdempotencyKey, create_once, request_fingerprint
from api.money import format_usd, parse_optional_usd
from api.pages import Page, PageNumber, PageSize
from api.trace import trace_id_of
from api.wire import MAX_NAME_LENGTH, BatchId, PlainText, Time, Vin
from domain.batch import (
    DEFAULT_MAX_CONCURRENT,
    MAX_CONCURRENT,
    Batch,
    BatchKind,
    BatchOpening,
    Counts,
    Progress,
)
from domain.errors import InvalidInput, UnpricedModel
from domain.identity import batch_workflow_id
from domain.states import BATCH_MACHINE, BatchState

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_ID = "0197c1de-1111-7000-8000-000000000000"
_LINKS = {
    "self": f"/v1/batches/{_ID}",
    "files": f"/v1/batches/{_ID}/files",
    "events": f"/v1/batches/{_ID}/events",
    "report": f"/v1/batches/{_ID}/report",
}
_BATCH: dict[str, Any] = {
    "batch_id": _ID,
    "status": "pending",
    "kind": "grading",
    "name": "Networks, midterm, group B",
    "exam_id": "0197c1de-2222-7000-8000-000000000000",
    "baseline": None,
    "baseline_batch_id": None,
    "model": "local",
    "vehicle_id": "",
    "vin": "",
    "expected_workers": 10,
    "max_concurrent": 10,
    "limit_usd": "2.50",
    "rubric_version": 1,
    "generation": 1,
    "total_files": 0,
    "failure_code": None,
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "workflow_id": f"batch/{_ID}",
    "created_at": "2026-01-02T03:04:05+00:00",
    "updated_at": "2026-01-02T03:04:05+00:00",
    "links": _LINKS,
}
_PROGRESS: dict[str, Any] = {
    "stage": "scattering",
    "percentage": 40.0,
    "updated_at": "2026-01-02T03:05:06+00:00",
    "counts": {**vars(Counts()), "queued": 2, "running": 1, "completed": 2},
    "spent_usd": "0.0125",
    "settling_usd": "0",
    "pause": None,
}


class BatchRequest(BaseModel):
    """What a caller states when opening a batch (B1.1)."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "kind": "grading",
                    "exam_id": "0197c1de-2222-7000-8000-000000000000",
                    "name": "Networks, midterm, group B",
                    "model": "local",
                    "max_concurrent": 10,
                    "limit_usd": "2.50",
                }
            ]
        },
    )

    kind: BatchKind | None = Field(
        None, description="The line of work: by default `grading` where an exam is named, else `diagnosis`."
    )
    exam_id: PlainText | None = Field(None, max_length=100, description="What a grading batch is graded by.")
    baseline: PlainText | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="What a diagnosis batch is compared with: a baseline's name, or the id of an earlier "
        "diagnosis batch.",
    )
    name: PlainText = Field("", max_length=MAX_NAME_LENGTH)
    model: PlainText = Field(
        "local", min_length=1, max_length=100, description="The model, by its name here."
    )
    vehicle_id: PlainText = Field("", max_length=255)
    vin: Vin = Field("", description="At most 17 letters and digits.")
    expected_workers: int | None = Field(None, ge=1, le=MAX_CONCURRENT)
    max_concurrent: int | None = Field(
        None,
        ge=1,
        le=MAX_CONCURRENT,
        description=f"Files assessed at a time; expected_workers by default, or {DEFAULT_MAX_CONCURRENT}.",
    )
    limit_usd: Annotated[
        int | None,
        BeforeValidator(parse_optional_usd, json_schema_input_type=str | None),
        Field(description='The most that the batch may cost, as a decimal string such as "2.50".'),
    ] = None

    def opening(self) -> BatchOpening:
        """The request in the domain's words; raises `InvalidInput` where its parts do not fit together."""
        kind = self.kind or (BatchKind.DIAGNOSIS if self.exam_id is None else BatchKind.GRADING)
        if kind is BatchKind.GRADING and self.exam_id is None:
            raise InvalidInput("exam_id: required for a grading batch.", field="exam_id")
        if kind is BatchKind.GRADING and self.baseline is not None:
            raise InvalidInput("baseline: only a diagnosis batch has one; leave it out.", field="baseline")
        if kind is BatchKind.DIAGNOSIS and self.exam_id is not None:
            raise InvalidInput("exam_id: only a grading batch has one; leave it out.", field="exam_id")
        workers = self.expected_workers or DEFAULT_MAX_CONCURRENT
        return BatchOpening(
            kind=kind,
            exam_id=None if self.exam_id is None else check_id("exam", self.exam_id),
            baseline=self.baseline,
            name=self.name,
            model=self.model,
            vehicle_id=self.vehicle_id,
            vin=self.vin,
            expected_workers=workers,
            max_concurrent=self.max_concurrent or workers,
            limit_nanodollars=self.limit_usd,
        )


class CountsView(BaseModel):
    """How many files are in each state."""

    uploaded: int
    queued: int
    running: int
    paused: int
    needs_intervention: int
    completed: int
    failed: int
    cancelled: int


class PauseView(BaseModel):
    """Why a batch waits: the scope whose limit refuses a call, and by how much."""

    scope: str
    missing_usd: str


class ProgressView(BaseModel):
    """How far a batch is."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PROGRESS]})

    stage: str
    percentage: float
    updated_at: str
    counts: CountsView
    spent_usd: str
    settling_usd: str
    pause: PauseView | None


class BatchView(BaseModel):
    """A batch."""

    model_config = ConfigDict(json_schema_extra={"examples": [_BATCH]})

    batch_id: str
    status: BatchState
    kind: BatchKind
    name: str
    exam_id: str | None
    baseline: str | None
    baseline_batch_id: str | None
    model: str
    vehicle_id: str
    vin: str
    expected_workers: int
    max_concurrent: int
    limit_usd: str | None
    rubric_version: int
    generation: int
    total_files: int
    failure_code: str | None
    trace_id: str
    workflow_id: str
    created_at: Time
    updated_at: Time
    links: dict[str, str]


class BatchWithProgress(BatchView):
    """A batch with its progress."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_BATCH, "progress": _PROGRESS}]})

    progress: ProgressView


class CompletedBatch(BatchView):
    """A batch that has been completed, with what it will cost; no estimate where its model has no price."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_BATCH, "estimate": None}]})

    estimate: EstimateView | None


async def _requested(request: Request, caller: Submitter, services: ServicesOf) -> BatchRequest:
    body = await read_body(request, services.limits.max_body_bytes, "max_body_bytes")
    return parse_body(BatchRequest, body)


@router.post(
    "",
    status_code=201,
    summary="Open a batch",
    description="The first of two phases: the batch is `pending` and takes files until it is completed. "
    "Nothing is processed before.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=body_schema(BatchRequest),
)
async def open_batch(
    request: Request,
    response: Response,
    caller: Submitter,
    services: ServicesOf,
    requested: Annotated[BatchRequest, Depends(_requested)],
    idempotency_key: IdempotencyKey = None,
) -> BatchView:
    """The pending batch."""
    opening = requested.opening()
    services.models.check(opening.model)
    creation = Creation(
        create=lambda batch_id: services.batches.open(
            caller.tenant_id, opening, trace_id_of(request.scope), batch_id
        ),
        read=lambda batch_id: services.batches.read(caller.tenant_id, batch_id),
    )
    fingerprint = request_fingerprint("batch", requested.model_dump_json().encode())
    once = await create_once(services, caller.tenant_id, idempotency_key, fingerprint, creation)
    once.mark(response)
    response.headers["Location"] = f"/v1/batches/{once.created.id}"
    return batch_view(once.created)


@router.get(
    "",
    summary="List the batches",
    description="Newest first.",
    responses=problems(401, 403, 422, 503),
)
async def list_batches(
    caller: Reader,
    services: ServicesOf,
    page: PageNumber = 1,
    page_size: PageSize = 20,
    state: Annotated[BatchState | None, Query(description="Only batches in this state.")] = None,
) -> Page[BatchView]:
    """One page of the tenant's batches."""
    batches, total = await services.batches.list_of_tenant(caller.tenant_id, page, page_size, state)
    items = [batch_view(each) for each in batches]
    return Page(items=items, page=page, page_size=page_size, total=total)


@router.get(
    "/{batch_id}",
    summary="Read a batch",
    description="With its progress and the addresses of its parts.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_batch(batch_id: BatchId, caller: Reader, services: ServicesOf) -> BatchWithProgress:
    """The batch and how far it is."""
    batch = await services.batches.read(caller.tenant_id, check_id("batch", batch_id))
    progress = await services.batches.progress(batch.id)
    return BatchWithProgress(**dict(batch_view(batch)), progress=progress_view(progress))


@router.post(
    "/{batch_id}/complete",
    status_code=202,
    summary="Complete a batch",
    description="The second phase: freezes the files and starts the work. A repetition is the same batch, "
    "and the way on after a 503.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
)
async def complete_batch(batch_id: BatchId, caller: Submitter, services: ServicesOf) -> CompletedBatch:
    """The batch with its files counted and its workflow started, and an estimate of its cost."""
    batch = await services.batches.complete(caller.tenant_id, check_id("batch", batch_id))
    # a batch that is further has its workflow; asking again could start one that has ended long ago
    if batch.state is BatchState.UPLOADED:
        await services.orchestrator.start_batch(batch)
    try:
        estimate = await estimate_of(services, batch)
    except UnpricedModel:
        estimate = None
    return CompletedBatch(**dict(batch_view(batch)), estimate=estimate)


@router.post(
    "/{batch_id}/cancel",
    status_code=202,
    summary="Cancel a batch",
    description="A pending batch is cancelled at once, a running one by its workflow. A batch that has ended "
    "is answered as it is, with 200.",
    responses={
        200: {"model": BatchView, "description": "The batch has ended."},
        **problems(401, 403, 404, 422, 503),
    },
)
async def cancel_batch(
    batch_id: BatchId, response: Response, caller: Submitter, services: ServicesOf
) -> BatchView:
    """The batch, cancelled or about to be."""
    batch = await services.batches.read(caller.tenant_id, check_id("batch", batch_id))
    if batch.state in BATCH_MACHINE.final:
        response.status_code = 200
        return batch_view(batch)
    cancelled = await services.batches.cancel_before_start(caller.tenant_id, batch.id)
    if cancelled is not None:
        return batch_view(cancelled)
    # read again: it may have been completed in between
    batch = await services.batches.read(caller.tenant_id, batch.id)
    if batch.state in (BatchState.UPLOADED, BATCH_MACHINE.rerun):
        # its start may have met an absent Temporal: a workflow that is there can cancel itself
        await services.orchestrator.start_batch(batch)
    await services.orchestrator.cancel_batch(batch)
    return batch_view(await services.batches.read(caller.tenant_id, batch.id))


def batch_view(batch: Batch) -> BatchView:
    """The batch as the API shows it."""
    opening = batch.opening
    address = f"/v1/batches/{batch.id}"
    return BatchView(
        batch_id=batch.id,
        status=batch.state,
        kind=opening.kind,
        name=opening.name,
        exam_id=opening.exam_id,
        baseline=opening.baseline,
        baseline_batch_id=batch.baseline_batch_id,
        model=opening.model,
        vehicle_id=opening.vehicle_id,
        vin=opening.vin,
        expected_workers=opening.expected_workers,
        max_concurrent=opening.max_concurrent,
        limit_usd=None if opening.limit_nanodollars is None else format_usd(opening.limit_nanodollars),
        rubric_version=batch.rubric_version,
        generation=batch.generation,
        total_files=batch.total_files,
        failure_code=batch.failure_code,
        trace_id=batch.trace_id,
        workflow_id=batch_workflow_id(batch.id, batch.generation),
        created_at=batch.created_at,
        updated_at=batch.updated_at,
        links={"self": address} | {each: f"{address}/{each}" for each in ("files", "events", "report")},
    )


def progress_view(progress: Progress) -> ProgressView:
    """The progress as the API shows it."""
    return ProgressView(
        stage=progress.stage,
        percentage=progress.percentage,
        updated_at=progress.updated_at,
        counts=CountsView(**vars(progress.counts)),
        spent_usd=format_usd(progress.spent_nanodollars),
        settling_usd=format_usd(progress.settling_nanodollars),
        pause=None
        if progress.pause is None
        else PauseView(
            scope=progress.pause.scope, missing_usd=format_usd(progress.pause.missing_nanodollars)
        ),
    )

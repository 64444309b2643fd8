"""What a batch will cost, before it is started (X23, L12)."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from api.bodies import body_schema, parse_body, read_body
from api.dependencies import Reader, Services, ServicesOf, Submitter, check_id
from api.errors import problems
from api.money import format_usd
from api.wire import MAX_NAME_LENGTH, BatchId, PlainText
from domain.batch import MAX_FILES, Batch
from domain.completion import PROVIDER_SEPARATOR
from domain.errors import UnpricedModel
from domain.estimates import (
    BatchEstimate,
    CostRange,
    FileSize,
    estimate_batch,
    estimate_diagnosis,
    tokens_factor,
)
from domain.exam import Exam, read_exam
from domain.prices import family_of

router = APIRouter(prefix="/v1", tags=["estimates"])

_RANGE = {"calls": 160, "tokens_in": 180_000, "tokens_out": 60_000, "cost_est_usd": "0.081"}
_ESTIMATE: dict[str, Any] = {
    "files": 80,
    "model": "openai:gpt-4o-mini",
    "prices_version": "2",
    "likely": _RANGE,
    "most": {
        **_RANGE,
        "calls": 640,
        "tokens_in": 1_900_000,
        "tokens_out": 1_280_000,
        "cost_est_usd": "1.053",
    },
}


class FileRequest(BaseModel):
    """A file that would be handed in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: PlainText = Field(max_length=MAX_NAME_LENGTH)
    size_bytes: int = Field(ge=0, le=1024**4)


class EstimateRequest(BaseModel):
    """An exam as it would be handed in, a model, and the files."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "exam": {"title": "Networks, midterm", "questions": []},
                    "model": "openai:gpt-4o-mini",
                    "files": [{"name": "li-lei.txt", "size_bytes": 2_100}],
                }
            ]
        },
    )

    exam: dict[str, Any]
    model: PlainText = Field("local", min_length=1, max_length=100)
    files: list[FileRequest] = Field(min_length=1, max_length=MAX_FILES)


class RangeView(BaseModel):
    """Calls, tokens and money; the money as a decimal string of dollars."""

    calls: int
    tokens_in: int
    tokens_out: int
    cost_est_usd: str


class EstimateView(BaseModel):
    """What it will cost: as usual, and at the very most, with every reply as long as may be and repaired."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ESTIMATE]})

    files: int
    model: str
    prices_version: str
    likely: RangeView
    most: RangeView


async def _requested(request: Request, caller: Submitter, services: ServicesOf) -> EstimateRequest:
    body = await read_body(request, services.limits.max_exam_bytes, "max_exam_bytes")
    return parse_body(EstimateRequest, body)


@router.post(
    "/estimates",
    summary="Estimate a batch that is not there yet",
    description="From the exam, the model and the sizes of the files; nothing is stored.",
    responses=problems(401, 403, 413, 422, 503),
    openapi_extra=body_schema(EstimateRequest),
)
async def estimate(
    caller: Submitter, services: ServicesOf, requested: Annotated[EstimateRequest, Depends(_requested)]
) -> EstimateView:
    """The estimate."""
    files = [FileSize(each.name, each.size_bytes) for each in requested.files]
    return await _estimated(services, read_exam(requested.exam), files, requested.model)


@router.get(
    "/batches/{batch_id}/estimate",
    summary="Estimate a batch",
    description="From the files that it has by now.",
    responses=problems(401, 403, 404, 422, 503),
)
async def estimate_stored_batch(batch_id: BatchId, caller: Reader, services: ServicesOf) -> EstimateView:
    """The estimate."""
    batch = await services.batches.read(caller.tenant_id, check_id("batch", batch_id))
    return await estimate_of(services, batch)


async def estimate_of(services: Services, batch: Batch) -> EstimateView:
    """The estimate of a batch with the files that it has; raises `UnpricedModel`."""
    exam = None
    if batch.opening.exam_id is not None:
        exam = await services.exams.read(batch.opening.exam_id, batch.rubric_version)
    files = await services.batches.file_sizes(batch.id)
    return await _estimated(services, exam, files, batch.opening.model)


async def _estimated(
    services: Services, exam: Exam | None, files: list[FileSize], model: str
) -> EstimateView:
    """Of grading by that exam, or of a diagnosis where there is none."""
    try:
        prices = await services.prices.of_model(model)
    except UnpricedModel:
        # a mistyped name is better told as one than as a model without a price
        if PROVIDER_SEPARATOR not in model:
            services.models.check(model)
        raise
    factor = tokens_factor(await services.token_ratios.of_family(family_of(model)))
    if exam is None:
        return _view(estimate_diagnosis(files, model, prices, factor))
    return _view(estimate_batch(exam, files, model, prices, factor))


def _view(estimate: BatchEstimate) -> EstimateView:
    return EstimateView(
        files=estimate.files,
        model=estimate.model,
        prices_version=estimate.prices_version,
        likely=_range(estimate.likely),
        most=_range(estimate.most),
    )


def _range(costs: CostRange) -> RangeView:
    return RangeView(
        calls=costs.calls,
        tokens_in=costs.tokens_in,
        tokens_out=costs.tokens_out,
        cost_est_usd=format_usd(costs.cost),
    )

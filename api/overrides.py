"""Overrides: a human's marks instead of a machine's, which are kept (G4.2)."""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.bodies import body_schema, parse_body, read_body
from api.dependencies import Reader, Services, ServicesOf, Submitter, check_id
from api.errors import problems
from api.idempotency import Creation, IdempotencyKey, create_once, request_fingerprint
from api.trace import trace_id_of
from api.wire import PlainText, SubmissionId
from domain.errors import IllegalTransition, NotFound
from domain.gateway import Caller
from domain.identity import override_workflow_id
from domain.overrides import MAX_REASON_LENGTH, Override

router = APIRouter(prefix="/v1/submissions", tags=["submissions"])

_ID = "0197c1de-3333-7000-8000-000000000000"
_OVERRIDE_ID = "0197c1de-5555-7000-8000-000000000000"
_ASKED: dict[str, Any] = {
    "question_id": "q2",
    "points": {"c1": 1.5},
    "reason": "The sketch on the back answers it.",
}

_OVERRIDE: dict[str, Any] = {
    "override_id": _OVERRIDE_ID,
    "question_id": "q2",
    "generation": 1,
    "reason": _ASKED["reason"],
    "made_by": "0197c1de-6666-7000-8000-000000000000",
    "status": "completed",
    "score_before": 1.0,
    "score_after": 2.5,
    "created_at": "2026-01-02T03:05:06+00:00",
}

OverrideId = Annotated[str, Path(max_length=100, description="The override's id.", examples=[_OVERRIDE_ID])]


class OverrideRequest(BaseModel):
    """One question's marks by a human; criteria that are not named keep theirs."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_ASKED]})

    question_id: PlainText = Field(min_length=1, max_length=100)
    points: dict[str, float] = Field(min_length=1, description="By criterion, between 0 and its maximum.")
    reason: PlainText = Field(min_length=1, max_length=MAX_REASON_LENGTH)


class OverrideBegun(BaseModel):
    """An override that is being applied: the list of overrides shows how it ended."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "override_id": _OVERRIDE_ID,
                    "submission_id": _ID,
                    "workflow_id": override_workflow_id(_ID, _OVERRIDE_ID),
                }
            ]
        }
    )

    override_id: str
    submission_id: str
    workflow_id: str

    @classmethod
    def of(cls, submission_id: str, override_id: str) -> Self:
        """The answer for that id."""
        workflow_id = override_workflow_id(submission_id, override_id)
        return cls(override_id=override_id, submission_id=submission_id, workflow_id=workflow_id)


class OverrideView(BaseModel):
    """An override; `status` is its saga's: pending, completed, compensated or needs_intervention."""

    model_config = ConfigDict(json_schema_extra={"examples": [_OVERRIDE]})

    override_id: str
    question_id: str
    generation: int
    reason: str
    made_by: str
    status: str
    score_before: float
    score_after: float
    created_at: str


class OverrideList(BaseModel):
    """All overrides of a submission, newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"submission_id": _ID, "overrides": [_OVERRIDE]}]}
    )

    submission_id: str
    overrides: list[OverrideView]


async def _requested(request: Request, caller: Submitter, services: ServicesOf) -> OverrideRequest:
    body = await read_body(request, services.limits.max_body_bytes, "max_body_bytes")
    return parse_body(OverrideRequest, body)


@router.post(
    "/{submission_id}/overrides",
    status_code=202,
    summary="Override a mark",
    description="The human's marks become the official ones in results, cache and report, all of them or "
    "none: whatever fails on the way, everything is put back. What they replace is kept. A submission that "
    "is not graded, or has another override under way, is a 409.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=body_schema(OverrideRequest),
)
async def override_mark(
    submission_id: SubmissionId,
    request: Request,
    response: Response,
    caller: Submitter,
    services: ServicesOf,
    requested: Annotated[OverrideRequest, Depends(_requested)],
    idempotency_key: IdempotencyKey = None,
) -> OverrideBegun:
    """The override, under way."""
    submission_id = check_id("submission", submission_id)
    file = await services.batches.submission(caller.tenant_id, submission_id)
    trace_id = trace_id_of(request.scope)

    async def create(override_id: str) -> OverrideBegun:
        override = _override(override_id, caller, file.id, file.batch_id, requested, trace_id)
        await services.overrides.check(override)
        await services.orchestrator.start_override(override)
        return OverrideBegun.of(file.id, override_id)

    async def read(override_id: str) -> OverrideBegun:
        known = await services.overrides.list_of_submission(caller.tenant_id, file.id)
        if override_id not in {each.override_id for each in known}:
            raise NotFound(f"There is no override {override_id}.")
        return OverrideBegun.of(file.id, override_id)

    fingerprint = request_fingerprint("override", file.id.encode(), requested.model_dump_json().encode())
    creation = Creation(create, read)
    once = await create_once(services, caller.tenant_id, idempotency_key, fingerprint, creation)
    once.mark(response)
    return once.created


@router.get(
    "/{submission_id}/overrides",
    summary="List a submission's overrides",
    description="All that were ever applied, newest first, retracted ones included.",
    responses=problems(401, 403, 404, 422, 503),
)
async def list_overrides(submission_id: SubmissionId, caller: Reader, services: ServicesOf) -> OverrideList:
    """The overrides, newest first."""
    submission_id = check_id("submission", submission_id)
    found = await services.overrides.list_of_submission(caller.tenant_id, submission_id)
    return OverrideList(submission_id=submission_id, overrides=[OverrideView(**vars(each)) for each in found])


@router.post(
    "/{submission_id}/overrides/{override_id}/retry",
    status_code=202,
    summary="Go on with an override that needs intervention",
    description="For one that could not be undone: once the cause is seen to, that is tried again. Anything "
    "else is a 409.",
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def retry_override(
    submission_id: SubmissionId, override_id: OverrideId, caller: Submitter, services: ServicesOf
) -> OverrideBegun:
    """Wake the override's workflow."""
    submission_id = check_id("submission", submission_id)
    override_id = check_id("override", override_id)
    await _check_waits(services, caller, submission_id, override_id)
    await services.orchestrator.retry_file(override_workflow_id(submission_id, override_id))
    return OverrideBegun.of(submission_id, override_id)


async def _check_waits(services: Services, caller: Caller, submission_id: str, override_id: str) -> None:
    known = await services.overrides.list_of_submission(caller.tenant_id, submission_id)
    status = next((each.status for each in known if each.override_id == override_id), None)
    if status is None:
        raise NotFound(f"There is no override {override_id}.", field="override_id")
    if status != "needs_intervention":
        raise IllegalTransition(
            f"Override {override_id} is {status}; only one that needs_intervention can be retried.",
            field="override_id",
        )


def _override(
    override_id: str, caller: Caller, submission_id: str, batch_id: str, asked: OverrideRequest, trace_id: str
) -> Override:
    return Override(
        override_id=override_id,
        tenant_id=caller.tenant_id,
        batch_id=batch_id,
        submission_id=submission_id,
        question_id=asked.question_id,
        reason=asked.reason,
        made_by=caller.key_id,
        points=asked.points,
        trace_id=trace_id,
    )

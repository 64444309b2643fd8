"""Events from outside for the workflow of a batch or of one of its files (G6.2)."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from api.bodies import body_schema, parse_body, read_body
from api.dependencies import Reader, ServicesOf, Submitter
from api.errors import problems
from api.pages import Page, PageNumber, PageSize
from api.trace import trace_id_of
from api.wire import Time
from domain.errors import NotFound
from domain.external_events import DeliveryState, ExternalEvent, StoredEvent
from domain.identity import WorkflowRef

router = APIRouter(prefix="/v1/workflows", tags=["workflow events"])

_WORKFLOW_ID = "batch/0197c1de-1111-7000-8000-000000000000/file/0197c1de-3333-7000-8000-000000000000"
_EVENT: dict[str, Any] = {"event_id": "disk-7-replaced", "type": "retry", "data": {"by": "the operator"}}

WorkflowId = Annotated[
    str,
    Path(
        description="A batch's workflow, `batch/{batch_id}`, a file's, `batch/{batch_id}/file/{file_id}`, or "
        "that of a diagnosis, `batch/{batch_id}/diagnosis`; a re-run's has its generation in it, as "
        "`batch/{batch_id}/g2`.",
        examples=[_WORKFLOW_ID],
    ),
]


class EventRequest(BaseModel):
    """Something that happened outside; the same `event_id` is the same event."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_EVENT]})

    event_id: str
    type: str = Field(
        description="`retry` wakes a file that needs intervention. A file's agent hears events of every "
        "type, and they are kept."
    )
    data: dict[str, Any] = Field(default_factory=dict, description="A JSON object of at most 32 KiB.")


class EventView(BaseModel):
    """An event and how far it is; `reason` says why it is not delivered, yet or for good."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_EVENT,
                    "workflow_id": _WORKFLOW_ID,
                    "state": "delivered",
                    "reason": "",
                    "attempts": 1,
                    "received_at": "2026-01-02T03:05:06+00:00",
                    "settled_at": "2026-01-02T03:05:06.120000+00:00",
                }
            ]
        }
    )

    workflow_id: str
    event_id: str
    type: str
    data: dict[str, Any]
    state: DeliveryState
    reason: str
    attempts: int
    received_at: Time
    settled_at: Time | None


async def _requested(request: Request, caller: Submitter, services: ServicesOf) -> ExternalEvent:
    body = await read_body(request, services.limits.max_body_bytes, "max_body_bytes")
    requested = parse_body(EventRequest, body)
    return ExternalEvent.checked(requested.event_id, requested.type, requested.data)


@router.post(
    "/{workflow_id:path}/events",
    status_code=202,
    summary="Tell a workflow of an event",
    description="The event is stored and then delivered to the workflow as exactly one signal, however often "
    "it is sent; the running agent of a file, or of a diagnosis, has it in its state from its next step on; "
    "an `event_id` with other content is a 409. An event for a workflow that has not begun waits for it; for "
    "one that has ended it becomes `undeliverable`, which the list of events shows. A workflow takes at most "
    "1,000 events.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=body_schema(EventRequest),
)
async def send_event(
    workflow_id: WorkflowId,
    request: Request,
    caller: Submitter,
    services: ServicesOf,
    event: Annotated[ExternalEvent, Depends(_requested)],
) -> EventView:
    """The event as it is stored."""
    workflow = _workflow(workflow_id)
    stored, new = await services.workflow_events.store(
        caller.tenant_id, workflow, event, trace_id_of(request.scope)
    )
    if new:
        await services.event_channel.publish(str(workflow), event)
    return _view(stored)


@router.get(
    "/{workflow_id:path}/events",
    summary="List a workflow's events",
    description="Those that were sent to it, newest first, each with its delivery's state.",
    responses=problems(401, 403, 404, 422, 503),
)
async def list_events(
    workflow_id: WorkflowId,
    caller: Reader,
    services: ServicesOf,
    page: PageNumber = 1,
    page_size: PageSize = 20,
) -> Page[EventView]:
    """One page of events."""
    listed, total = await services.workflow_events.list_of_workflow(
        caller.tenant_id, _workflow(workflow_id), page, page_size
    )
    return Page(items=[_view(each) for each in listed], page=page, page_size=page_size, total=total)


def _workflow(workflow_id: str) -> WorkflowRef:
    try:
        return WorkflowRef.parse(workflow_id)
    except ValueError as error:
        raise NotFound("There is no workflow of that id.", field="workflow_id") from error


def _view(stored: StoredEvent) -> EventView:
    return EventView(
        workflow_id=stored.workflow_id,
        **vars(stored.event),
        state=stored.state,
        reason=stored.reason,
        attempts=stored.attempts,
        received_at=stored.received_at,
        settled_at=stored.settled_at,
    )

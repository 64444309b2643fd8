"""Events from outside that a workflow may wait for: their form, their bounds, their way in (G6.2)."""

import json
import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, Self

from domain.batch import Pause
from domain.errors import InvalidInput, LimitExceeded
from domain.identity import WorkflowRef
from domain.states import BatchState

MAX_DATA_BYTES = 32 * 1024
#: longer data is not repeated in the state of a graph: it stays in Postgres, under the event's id
MAX_STATE_DATA_BYTES = 4 * 1024
#: events of one workflow that are stored; each is a signal in its history
MAX_EVENTS = 1_000
#: as what a human says with `POST /v1/submissions/{id}/retry`
RETRY = "retry"

_EVENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,99}")
_TYPE = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
#: a NUL, as JSON writes it, which no text in Postgres may have
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_NAMES = ("event_id", "type", "data")


@dataclass
class ExternalEvent:
    """Something that happened outside, as a workflow hears of it; one `event_id` is one event."""

    event_id: str
    type: str
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def checked(cls, event_id: object, type_: object, data: object) -> Self:
        """The event; raises `InvalidInput` or `LimitExceeded` with the name of the field."""
        if not isinstance(event_id, str) or not _EVENT_ID.fullmatch(event_id):
            raise InvalidInput(
                "event_id: expected 1 to 100 letters, digits and _ . : @ -, a letter or digit first.",
                field="event_id",
            )
        if not isinstance(type_, str) or not _TYPE.fullmatch(type_):
            raise InvalidInput(
                "type: expected 1 to 64 lower-case letters, digits and _ . -, beginning with a letter.",
                field="type",
            )
        return cls(event_id, type_, _checked_data(data))

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Self:
        """The event of a bare message; raises as `checked`."""
        if unknown := sorted(set(message) - set(_NAMES)):
            raise InvalidInput(
                f"{unknown[0]}: unknown field; known here: {', '.join(_NAMES)}.", field=unknown[0]
            )
        return cls.checked(message.get("event_id"), message.get("type"), message.get("data", {}))

    def request_id(self, workflow_id: str) -> str:
        """The same for every delivery of the event, so that Temporal takes only one."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"assay:{workflow_id}/{self.event_id}"))


def _checked_data(data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InvalidInput("data: expected a JSON object.", field="data")
    try:
        # as Temporal's payloads have it; and half a surrogate pair is no character that Postgres keeps
        text = json.dumps(data, allow_nan=False)
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"data: not JSON that can be stored: {error}", field="data") from error
    if len(text) > MAX_DATA_BYTES:
        raise LimitExceeded(
            f"data: {len(text):,} bytes of JSON; an event may have {MAX_DATA_BYTES:,}.", field="data"
        )
    if _NUL.search(text):
        raise InvalidInput("data: a text holds the control character U+0000.", field="data")
    return data


class DeliveryState(StrEnum):
    """How far an event is on its way to its workflow."""

    STORED = "stored"
    DELIVERED = "delivered"
    UNDELIVERABLE = "undeliverable"


@dataclass(frozen=True)
class StoredEvent:
    """An event in Postgres; `reason` says why it could not be delivered, or was not yet."""

    id: int
    workflow_id: str
    event: ExternalEvent
    state: DeliveryState
    reason: str
    attempts: int
    received_at: datetime
    settled_at: datetime | None
    trace_id: str = ""


class ExternalEvents(Protocol):
    """Events from outside, stored before anything else is done with them."""

    async def store(
        self, tenant_id: str, workflow: WorkflowRef, event: ExternalEvent, trace_id: str
    ) -> tuple[StoredEvent, bool]:
        """The event, and whether it is new; a repetition is answered as it is.

        Raises `IdempotencyMismatch` for another event under the same id, `LimitExceeded` for too many, and
        `NotFound` for a workflow that is not the tenant's.
        """
        ...

    async def list_of_workflow(
        self, tenant_id: str, workflow: WorkflowRef, page: int, page_size: int
    ) -> tuple[list[StoredEvent], int]:
        """One page of events, newest first, and how many there are; raises `NotFound`."""
        ...


class EventChannel(Protocol):
    """Says that an event was stored; nobody depends on hearing it."""

    async def publish(self, workflow_id: str, event: ExternalEvent) -> None:
        """Publish it, if that is possible."""
        ...


@dataclass(frozen=True)
class HeardEvent:
    """An event as a running agent hears of it; `data` is JSON, `None` where it is too long for a state."""

    event_id: str
    type: str
    data: str | None
    received_at: str


@dataclass(frozen=True)
class News:
    """What goes on outside a running agent: how its batch stands, and the events it has not heard of.

    `changed_at` orders what is said of the batch.
    """

    batch_state: BatchState
    resumptions: int
    limit_nanodollars: int | None
    changed_at: str
    pause: Pause | None = None
    events: tuple[HeardEvent, ...] = ()


class Outside(Protocol):
    """What a running agent can learn of the world between two steps (G2.2)."""

    async def news(self, workflow: WorkflowRef, heard: Collection[str]) -> News | None:
        """How the batch stands, with the workflow's events but for those ids; `None` for one that is gone."""
        ...

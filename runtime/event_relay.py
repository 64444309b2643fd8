"""The event relay: every stored event becomes exactly one signal; a bare message at most one (G6.2).

Temporal takes one signal for each request id, which comes from the event's own id: what is delivered again
after a crash, or by two relays, is nothing new. An event whose workflow has not begun waits for it.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter
from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from db.postgres.external_events import PostgresExternalEvents
from db.postgres.locks import PostgresFences
from db.redis.workflow_events import STORED
from domain.errors import AssayError, InvalidInput, LimitExceeded, NotFound, TemporalUnavailable, Unavailable
from domain.external_events import DeliveryState, ExternalEvent, StoredEvent
from domain.identity import WorkflowRef

SIGNAL = "external_event"
#: a taken event is this relay's for so long: longer than a delivery takes
TAKEN_SECONDS = 15.0
#: an event that could not be delivered in this time never will be
GIVE_UP_AFTER = timedelta(hours=24)
_AT_ONCE = 50
#: how late a stored event is whose message was lost
POLL_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_PRUNE_SECONDS = 3600.0
_RPC_TIMEOUT = timedelta(seconds=5)
#: what a message may have beside the event's data, in characters
_MESSAGE_LENGTH = 64 * 1024


class EventFigures:
    """What became of events from outside; in the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.outcomes = Counter(
            "external_events",
            "Events from outside by how they ended: delivered, undeliverable, forwarded, dropped, malformed.",
            ["outcome"],
            registry=registry,
        )

    def count(self, outcome: str) -> None:
        """One more."""
        self.outcomes.labels(outcome).inc()


class EventSignals:
    """Sends an event to its workflow, with a request id of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def send(self, workflow_id: str, event: ExternalEvent) -> None:
        """Signal the workflow; a repetition does nothing.

        Raises `NotFound` if no such workflow is open, and `TemporalUnavailable`.
        """
        payloads = await self._client.data_converter.encode([event])
        request = SignalWorkflowExecutionRequest(
            namespace=self._client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            signal_name=SIGNAL,
            input=Payloads(payloads=payloads),
            identity=self._client.identity,
            request_id=event.request_id(workflow_id),
        )
        try:
            await self._client.workflow_service.signal_workflow_execution(request, timeout=_RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            if isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND:
                raise NotFound(f"No workflow {workflow_id} is open.", field="workflow_id") from error
            raise TemporalUnavailable(f"Temporal does not answer: {str(error)[:200]}") from error


class EventRelay:
    """Delivers stored events and forwards bare messages; any number of relays may do so at once."""

    def __init__(
        self,
        events: PostgresExternalEvents,
        fences: PostgresFences,
        signals: EventSignals,
        figures: EventFigures,
        *,
        taken_seconds: float = TAKEN_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._events = events
        self._fences = fences
        self._signals = signals
        self._figures = figures
        self._taken_seconds = taken_seconds
        self._poll_seconds = poll_seconds
        self._rung = asyncio.Event()
        self._log = structlog.get_logger("assay.events")

    async def run(self) -> None:
        """Relay until cancelled; an absent Postgres is waited for."""
        loop = asyncio.get_running_loop()
        prune_at = loop.time()
        while True:
            self._rung.clear()
            try:
                if loop.time() >= prune_at:
                    prune_at = loop.time() + _PRUNE_SECONDS
                    await self._prune()
                if await self.relay_once():
                    continue
            except Unavailable as error:
                self._log.warning("event_relay_waits", code=error.code, reason=error.message)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._rung.wait()

    async def relay_once(self) -> int:
        """Try to deliver what is due; answers how many events that were."""
        taken = await self._events.take(_AT_ONCE, for_seconds=self._taken_seconds)
        await asyncio.gather(*(self._deliver(each) for each in taken))
        return len(taken)

    async def hear(self, workflow_id: str, message: str) -> None:
        """Take a message of the channel: forward a bare one, at most once; never raises."""
        try:
            document = _document(message)
            if document.get(STORED) is True:
                self._rung.set()
                return
            event, workflow = ExternalEvent.read(document), _workflow(workflow_id)
        except (InvalidInput, LimitExceeded) as error:
            self._figures.count("malformed")
            self._log.warning("event_malformed", field=error.field, reason=error.message)
            return
        try:
            await self._signals.send(str(workflow), event)
            self._figures.count("forwarded")
        except AssayError as error:
            self._figures.count("dropped")
            self._log.info("event_dropped", workflow_id=workflow_id, code=error.code)

    async def _deliver(self, stored: StoredEvent) -> None:
        try:
            await self._signals.send(stored.workflow_id, stored.event)
        except NotFound as error:
            if await self._events.has_ended(stored):
                await self._give_up(stored, "workflow_ended")
            else:
                await self._put_off(stored, error)
        except TemporalUnavailable as error:
            await self._put_off(stored, error)
        else:
            await self._events.settle(stored, DeliveryState.DELIVERED)
            self._figures.count("delivered")

    async def _put_off(self, stored: StoredEvent, error: AssayError) -> None:
        if datetime.now(UTC) - stored.received_at > GIVE_UP_AFTER:
            await self._give_up(stored, "not_delivered_in_time")
            return
        pause_seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(stored.attempts, 10))
        await self._events.postpone(stored, error.code, for_seconds=pause_seconds)

    async def _give_up(self, stored: StoredEvent, reason: str) -> None:
        await self._events.settle(stored, DeliveryState.UNDELIVERABLE, reason)
        self._figures.count("undeliverable")
        self._log.warning("event_undeliverable", workflow_id=stored.workflow_id, reason=reason)

    async def _prune(self) -> None:
        await self._events.prune()
        await self._fences.prune()


def _document(message: str) -> Mapping[str, Any]:
    if len(message) > _MESSAGE_LENGTH:
        raise LimitExceeded(f"body: longer than {_MESSAGE_LENGTH:,} characters.", field="body")
    try:
        document = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("body: not JSON.", field="body") from error
    if not isinstance(document, dict):
        raise InvalidInput("body: expected a JSON object.", field="body")
    return document


def _workflow(workflow_id: str) -> WorkflowRef:
    try:
        return WorkflowRef.parse(workflow_id)
    except ValueError as error:
        raise InvalidInput(f"workflow_id: {error}.", field="workflow_id") from error

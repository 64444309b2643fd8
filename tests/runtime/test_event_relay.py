"""The event relay: in order, again after a crash without effect, patient while Temporal is away."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle

from db.postgres.external_events import PostgresExternalEvents
from db.postgres.locks import PostgresFences
from domain.batch import Batch
from domain.external_events import ExternalEvent
from domain.identity import WorkflowRef
from runtime.event_relay import SIGNAL, EventRelay, EventSignals
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, open_batch
from tests.workflows import plant
from workflows.batch import BatchWorkflow


@pytest.fixture
async def batch(resources: Resources) -> AsyncIterator[Batch]:
    """A batch whose workflow has begun, and whose worker is away: signals wait in its history."""
    made = await open_batch(resources, {"a.json": a_submission()})
    await services(resources).orchestrator.start_batch(made)
    yield made
    await plant.handle_of(resources, made).terminate()


def relay_over(resources: Resources, client: Client, taken_seconds: float = 15) -> EventRelay:
    return EventRelay(
        PostgresExternalEvents(resources.postgres),
        PostgresFences(resources.postgres),
        EventSignals(client),
        resources.event_figures,
        taken_seconds=taken_seconds,
    )


async def store(resources: Resources, batch: Batch, *event_ids: str) -> None:
    events = PostgresExternalEvents(resources.postgres)
    for event_id in event_ids:
        await events.store(
            "local", WorkflowRef(batch.id), ExternalEvent(event_id, "news", {"n": event_id}), ""
        )


async def heard(handle: WorkflowHandle[Any, Any]) -> list[str]:
    """The ids of the events in the workflow's history."""
    signals = plant.of_type(await plant.history(handle), "WORKFLOW_EXECUTION_SIGNALED")
    attributes = [each.workflow_execution_signaled_event_attributes for each in signals]
    assert {each.signal_name for each in attributes} <= {SIGNAL}
    return [json.loads(each.input.payloads[0].data)["event_id"] for each in attributes]


async def everything(relay: EventRelay) -> int:
    """Relay until nothing is due; answers how many deliveries were tried."""
    tried = 0
    while moved := await relay.relay_once():
        tried += moved
    return tried


async def states(resources: Resources) -> list[tuple[str, str, int]]:
    rows = await resources.postgres.rows("SELECT state, reason, attempts FROM external_events ORDER BY id")
    return [(row["state"], row["reason"], row["attempts"]) for row in rows]


def outcome(resources: Resources, name: str) -> float:
    return resources.event_figures.outcomes.labels(name)._value.get()


async def test_a_workflow_hears_its_events_in_order_though_several_relays_are_at_work(
    resources: Resources, batch: Batch
) -> None:
    names = [f"e-{number}" for number in range(8)]
    await store(resources, batch, *names)
    relays = [relay_over(resources, resources.temporal) for _ in range(3)]
    async with asyncio.timeout(60):
        while len(await heard(plant.handle_of(resources, batch))) < len(names):
            await asyncio.gather(*map(everything, relays))
    assert await heard(plant.handle_of(resources, batch)) == names
    assert {state for state, _, _ in await states(resources)} == {"delivered"}
    assert outcome(resources, "delivered") == len(names)


async def test_an_event_that_was_delivered_and_not_marked_is_one_signal(
    resources: Resources, batch: Batch
) -> None:
    await store(resources, batch, "e-1")
    relay = relay_over(resources, resources.temporal)
    await everything(relay)
    await resources.postgres.run(
        "UPDATE external_events SET state = 'stored', settled_at = NULL, due_at = now()"
    )
    assert await everything(relay) == 1
    await relay.hear(f"batch/{batch.id}", json.dumps({"event_id": "e-1", "type": "news"}))
    assert await heard(plant.handle_of(resources, batch)) == ["e-1"]
    assert await states(resources) == [("delivered", "", 2)]


async def test_events_wait_while_temporal_is_away_and_bare_messages_are_dropped(
    resources: Resources, batch: Batch
) -> None:
    nowhere = await Client.connect("127.0.0.1:1", lazy=True)
    relay = relay_over(resources, nowhere)
    await store(resources, batch, "e-1", "e-2")
    assert await everything(relay) == 1, "the second waits for the first"
    assert await states(resources) == [("stored", "temporal_unavailable", 1), ("stored", "", 0)]
    await relay.hear(f"batch/{batch.id}", json.dumps({"event_id": "e-3", "type": "news"}))
    assert outcome(resources, "dropped") == 1
    assert await everything(relay) == 0, "it is not due yet"
    await resources.postgres.run("UPDATE external_events SET due_at = now()")
    await everything(relay_over(resources, resources.temporal))
    assert await heard(plant.handle_of(resources, batch)) == ["e-1", "e-2"]


@pytest.mark.parametrize(
    ("workflow_id", "message", "field"),
    [
        ("batch/b", "{", "body"),
        ("batch/b", "[" * 5000, "body"),
        ("batch/b", "x" * 70_000, "body"),
        ("batch/b", "{}", "event_id"),
        ("batch/b", '{"event_id": "e"}', "type"),
        ("batch/b", '{"event_id": "e", "type": "t", "data": 1}', "data"),
        ("batch/b", '{"event_id": "e", "type": "t", "data": {"a": NaN}}', "data"),
        ("batch/b", '{"event_id": "e", "type": "t", "stored": 1}', "stored"),
        ("batch/b/window/1", '{"event_id": "e", "type": "t"}', "workflow_id"),
        ("", '{"event_id": "e", "type": "t"}', "workflow_id"),
    ],
)
async def test_a_malformed_message_is_counted_and_named_and_goes_nowhere(
    resources: Resources,
    caplog: pytest.LogCaptureFixture,
    workflow_id: str,
    message: str,
    field: str,
) -> None:
    await relay_over(resources, resources.temporal).hear(workflow_id, message)
    assert outcome(resources, "malformed") == 1
    assert f"'field': '{field}'" in caplog.text


async def test_the_workflow_keeps_what_it_was_told(resources: Resources, batch: Batch) -> None:
    await store(resources, batch, "e-1", "e-2")
    relay = relay_over(resources, resources.temporal)
    await everything(relay)
    async with plant.running(plant.orchestration(resources)):
        kept = await plant.handle_of(resources, batch).query(BatchWorkflow.events)
    assert kept == [ExternalEvent("e-1", "news", {"n": "e-1"}), ExternalEvent("e-2", "news", {"n": "e-2"})]

"""Progress over HTTP: a snapshot, then every numbered event once, then the end."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from api.watching import End, Message, follow, watch_batch
from db.redis.diagnosis_texts import RedisDiagnosisTexts
from domain.batch import ProgressEvent
from domain.diagnosis import DiagnosisDelta
from runtime.resources import Resources
from runtime.server import services

# the relay beside the workers numbers the events
pytestmark = pytest.mark.usefixtures("workers")

Event = tuple[str, int | None, dict[str, Any]]


def events_of(text: str) -> list[Event]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.split("\n") if line and line[0] != ":")
        if fields:
            number = int(fields["id"]) if "id" in fields else None
            found.append((fields["event"], number, json.loads(fields["data"])))
    return found


async def test_a_final_batch_is_told_from_its_first_event_to_its_end(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    await api.post(f"/v1/batches/{batch_id}/cancel")

    answer = await api.get(f"/v1/batches/{batch_id}/events", params={"after": 0}, timeout=30)
    (first, start, snapshot), *events, (last, _, end) = events_of(answer.text)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (first, start, snapshot["state"], snapshot["last_number"]) == ("snapshot", 0, "cancelled", 0)
    assert [number for _, number, _ in events] == list(range(1, len(events) + 1))
    assert [name for name, _, _ in events] == ["BatchCreated", "StatusChanged"]
    assert (last, end["state"], end["last_number"]) == ("end", "cancelled", len(events))


async def test_a_reconnect_gets_what_it_has_not_had_and_then_nothing(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    await api.post(f"/v1/batches/{batch_id}/cancel")
    url = f"/v1/batches/{batch_id}/events"
    everything = events_of((await api.get(url, params={"after": 0}, timeout=30)).text)[1:-1]

    rest = await api.get(url, headers={"Last-Event-ID": "1"}, timeout=30)
    nothing = await api.get(url, headers={"Last-Event-ID": str(len(everything))}, timeout=30)

    assert events_of(rest.text)[1:-1] == everything[1:]
    assert nothing.status_code == 204


@pytest.mark.parametrize("number", ["-1", "x", "999999", "1" * 30])
async def test_a_number_that_no_event_has_is_refused(
    api: httpx.AsyncClient, batch_id: str, number: str
) -> None:
    by_query = await api.get(f"/v1/batches/{batch_id}/events", params={"after": number})
    by_header = await api.get(f"/v1/batches/{batch_id}/events", headers={"Last-Event-ID": number})

    assert (by_query.status_code, by_header.status_code) == (422, 422)


async def test_the_events_of_a_batch_that_is_not_there_are_not_found(api: httpx.AsyncClient) -> None:
    answer = await api.get("/v1/batches/0197c1de-1111-7000-8000-000000000000/events")

    assert answer.status_code == 404


async def test_a_diagnosis_is_heard_while_it_is_written_and_never_again(
    api: httpx.AsyncClient, session_resources: Resources
) -> None:
    made = services(session_resources)
    batch_id = (await api.post("/v1/batches", json={"kind": "diagnosis"})).json()["batch_id"]
    watch = await watch_batch(made, "local", batch_id)
    texts = RedisDiagnosisTexts(session_resources.redis)
    found: list[Message] = []
    async with asyncio.timeout(30), aclosing(follow(made, watch, 0)) as messages:
        async for message in messages:
            found.append(message)
            if isinstance(message, ProgressEvent) and message.event_type == "BatchCreated":
                speaking = asyncio.create_task(_speak(texts, batch_id))
            if isinstance(message, DiagnosisDelta):
                speaking.cancel()
                await api.post(f"/v1/batches/{batch_id}/cancel")
    numbers = [each.number for each in found if isinstance(each, ProgressEvent)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert isinstance(found[-1], End)
    assert {each.text for each in found if isinstance(each, DiagnosisDelta)} == {"The slot. "}
    again = await api.get(f"/v1/batches/{batch_id}/events", params={"after": 0}, timeout=30)
    assert "diagnosis.delta" not in again.text


async def _speak(texts: RedisDiagnosisTexts, batch_id: str) -> None:
    """Again and again, as nobody knows when a listener begins."""
    while True:
        async with texts.publishing(batch_id) as say:
            say("The slot. ")
        await asyncio.sleep(0.05)

"""Events from outside over HTTP: stored once, told how far they are, refused with the field's name."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from domain.external_events import MAX_DATA_BYTES, MAX_EVENTS
from domain.identity import WorkflowRef
from runtime.resources import Resources
from runtime.worker import event_relay
from tests.api.conftest import OpenBatch
from tests.api.test_keys import another_tenant, client_of, made
from tests.db.stage import until

NOWHERE = "0197c1de-1111-7000-8000-000000000000"
EVENT: dict[str, Any] = {"event_id": "e-1", "type": "retry", "data": {"by": "李雷", "disk": 7}}


def path_of(batch_id: str, file_id: str | None = None) -> str:
    return f"/v1/workflows/{WorkflowRef(batch_id, file_id)}/events"


async def listed(api: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    page = (await api.get(path, params={"page_size": 100})).raise_for_status().json()
    assert page["total"] == len(page["items"])
    return list(page["items"])


async def test_an_event_is_stored_once_however_often_it_is_sent(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    first = await api.post(path_of(batch_id), json=EVENT)
    assert first.status_code == 202, first.text
    stored = first.json()
    assert {name: stored[name] for name in EVENT} == EVENT
    assert (stored["workflow_id"], stored["state"], stored["settled_at"]) == (
        f"batch/{batch_id}",
        "stored",
        None,
    )
    again = await api.post(path_of(batch_id), json=EVENT)
    # a relay beside this test may have tried to deliver it in between
    (found,) = await listed(api, path_of(batch_id))
    assert again.status_code == 202
    for each in (again.json(), found):
        assert {**each, "attempts": 0, "reason": ""} == stored


@pytest.mark.parametrize("changed", [{"type": "other"}, {"data": {"by": "someone"}}])
async def test_an_event_id_stands_for_one_event(
    api: httpx.AsyncClient, batch_id: str, changed: dict[str, Any]
) -> None:
    (await api.post(path_of(batch_id), json=EVENT)).raise_for_status()
    answer = await api.post(path_of(batch_id), json={**EVENT, **changed})
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_mismatch")
    assert answer.json()["field"] == "event_id"
    assert len(await listed(api, path_of(batch_id))) == 1


async def test_the_same_id_at_another_workflow_is_another_event(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    file = (await api.put(f"/v1/batches/{batch_id}/files/a.json", content=b"{}")).json()
    file_id = file["file_id"]
    for path in (path_of(batch_id), path_of(batch_id, file_id)):
        assert (await api.post(path, json=EVENT)).status_code == 202
    assert [each["workflow_id"] for each in await listed(api, path_of(batch_id, file_id))] == [
        f"batch/{batch_id}/file/{file_id}"
    ]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "event_id"),
        ({**EVENT, "event_id": ""}, 422, "event_id"),
        ({**EVENT, "event_id": "a/b"}, 422, "event_id"),
        ({**EVENT, "event_id": "a" * 101}, 422, "event_id"),
        ({**EVENT, "event_id": 7}, 422, "event_id"),
        ({**EVENT, "type": "Retry"}, 422, "type"),
        ({**EVENT, "data": "x"}, 422, "data"),
        ({**EVENT, "data": {"a": "b\0"}}, 422, "data"),
        ({**EVENT, "more": 1}, 422, "more"),
        ({**EVENT, "data": {"a": "x" * MAX_DATA_BYTES}}, 413, "data"),
        ({**EVENT, "data": {"a": "x" * 70_000}}, 413, "body"),
    ],
)
async def test_what_is_no_event_is_refused_with_the_fields_name(
    api: httpx.AsyncClient, batch_id: str, body: dict[str, Any], status: int, field: str
) -> None:
    answer = await api.post(path_of(batch_id), json=body)
    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text
    assert await listed(api, path_of(batch_id)) == []


@pytest.mark.parametrize(
    "data", ['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": ' + "[" * 2000 + "]" * 2000 + "}"]
)
async def test_json_that_postgres_would_not_keep_is_refused(
    api: httpx.AsyncClient, batch_id: str, data: str
) -> None:
    answer = await api.post(path_of(batch_id), content=f'{{"event_id": "e", "type": "t", "data": {data}}}')
    assert answer.status_code == 422, answer.text
    # a backslash before it makes it a text about a NUL
    kept = {**EVENT, "data": {"a": "\\u0000"}}
    assert (await api.post(path_of(batch_id), json=kept)).json()["data"] == kept["data"]


@pytest.mark.parametrize(
    "workflow_id",
    [
        f"batch/{NOWHERE}",
        f"batch/{NOWHERE}/file/{NOWHERE}",
        "batch/not-an-id",
        "batch/a/b",
        f"batch/{NOWHERE}/g1",
        f"batch/{NOWHERE}/g1/window/0",
        "something",
        quote("batch/../file/..", safe=""),
    ],
)
async def test_what_is_not_there_is_not_found(api: httpx.AsyncClient, workflow_id: str) -> None:
    for answer in (
        await api.post(f"/v1/workflows/{workflow_id}/events", json=EVENT),
        await api.get(f"/v1/workflows/{workflow_id}/events"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text


async def test_a_generation_to_come_and_anothers_file_are_not_found(
    api: httpx.AsyncClient, open_batch: OpenBatch
) -> None:
    one, other = await open_batch(), await open_batch()
    file_id = (await api.put(f"/v1/batches/{one}/files/a.json", content=b"{}")).json()["file_id"]
    for path in (path_of(other, file_id), f"/v1/workflows/batch/{one}/g2/events"):
        assert (await api.post(path, json=EVENT)).status_code == 404


async def test_another_tenant_and_a_key_that_may_only_read_send_nothing(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    async with another_tenant(api) as stranger:
        for answer in (
            await stranger.post(path_of(batch_id), json=EVENT),
            await stranger.get(path_of(batch_id)),
        ):
            assert answer.status_code == 404
    reading = await made(api, scopes=["read"])
    async with client_of(api, reading["secret"]) as reader:
        assert (await reader.post(path_of(batch_id), json=EVENT)).status_code == 403
        assert await listed(reader, path_of(batch_id)) == []


async def test_an_event_waits_for_its_workflow_and_is_undeliverable_once_that_is_over(
    api: httpx.AsyncClient, batch_id: str, session_resources: Resources
) -> None:
    (await api.post(path_of(batch_id), json=EVENT)).raise_for_status()
    relay = event_relay(session_resources)

    async def tried() -> dict[str, Any] | None:
        await relay.relay_once()
        (event,) = await listed(api, path_of(batch_id))
        return event if event["attempts"] and event["reason"] else None

    assert (await until(tried))["state"] == "stored", "the batch has not begun"
    (await api.post(f"/v1/batches/{batch_id}/cancel")).raise_for_status()

    async def settled() -> dict[str, Any] | None:
        event: dict[str, Any] | None = await tried()
        return event if event and event["settled_at"] else None

    event = await until(settled)
    assert (event["state"], event["reason"]) == ("undeliverable", "workflow_ended")


async def test_an_event_is_given_up_after_a_day(
    api: httpx.AsyncClient, batch_id: str, session_resources: Resources
) -> None:
    (await api.post(path_of(batch_id), json=EVENT)).raise_for_status()
    await session_resources.postgres.run(
        "UPDATE external_events SET received_at = %s WHERE workflow_id = %s",
        [datetime.now(UTC) - timedelta(hours=25), f"batch/{batch_id}"],
    )
    relay = event_relay(session_resources)

    async def given_up() -> bool:
        await relay.relay_once()
        (event,) = await listed(api, path_of(batch_id))
        return (event["state"], event["reason"]) == ("undeliverable", "not_delivered_in_time")

    assert await until(given_up)


async def test_a_workflow_takes_so_many_events_and_no_more(
    api: httpx.AsyncClient, batch_id: str, session_resources: Resources
) -> None:
    (await api.post(path_of(batch_id), json=EVENT)).raise_for_status()
    await session_resources.postgres.run(
        "INSERT INTO external_events"
        " (tenant_id, batch_id, generation, workflow_id, event_id, type, data, state) "
        "SELECT tenant_id, batch_id, 1, workflow_id, 'more-' || n, type, data, 'delivered' "
        "FROM external_events, generate_series(2, %s) n WHERE workflow_id = %s",
        [MAX_EVENTS, f"batch/{batch_id}"],
    )
    answer = await api.post(path_of(batch_id), json={**EVENT, "event_id": "one-too-many"})
    assert (answer.status_code, answer.json()["field"]) == (413, "workflow_id")
    assert (await api.post(path_of(batch_id), json=EVENT)).status_code == 202, "what is there is there"
    page = (await api.get(path_of(batch_id), params={"page": 2, "page_size": 30})).json()
    assert (page["total"], len(page["items"]), page["page"]) == (MAX_EVENTS, 30, 2)
    assert json.dumps(EVENT["data"], sort_keys=True) == json.dumps(page["items"][0]["data"], sort_keys=True)

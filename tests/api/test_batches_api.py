"""Batches over HTTP: open, complete, read, cancel."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

OpenBatch = Callable[..., Awaitable[str]]

NOWHERE = "0197c1de-1111-7000-8000-000000000000"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_an_opened_batch_is_pending_and_can_be_read(api: httpx.AsyncClient, exam_id: str) -> None:
    body = {"kind": "grading", "exam_id": exam_id, "limit_usd": "0.000000001", "expected_workers": 7}

    opened = await api.post("/v1/batches", json=body, headers={"traceparent": TRACEPARENT})

    assert opened.status_code == 201
    batch = opened.json()
    assert (batch["status"], batch["limit_usd"], batch["max_concurrent"]) == ("pending", "0.000000001", 7)
    assert batch["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert batch["created_at"].endswith("+00:00")
    read = (await api.get(opened.headers["location"])).json()
    assert read["batch_id"] == batch["batch_id"]
    assert read["workflow_id"] == f"batch/{batch['batch_id']}"
    assert read["progress"]["counts"]["completed"] == 0


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"kind": "diagnosis"}, 422, "exam_id"),
        ({"baseline": "healthy"}, 422, "baseline"),
        ({"kind": "diagnosis", "exam_id": None, "baseline": "unheard-of"}, 404, "baseline"),
        ({"kind": "diagnosis", "exam_id": None, "baseline": NOWHERE}, 404, "baseline"),
        ({"kind": "nothing"}, 422, "kind"),
        ({"exam_id": None}, 422, "exam_id"),
        ({"exam_id": NOWHERE}, 404, "exam_id"),
        ({"exam_id": "../etc"}, 404, "exam_id"),
        ({"model": "unheard-of"}, 422, "model"),
        ({"model": "nowhere:large"}, 422, "model"),
        ({"limit_usd": 1.5}, 422, "limit_usd"),
        ({"limit_usd": "1.0000000001"}, 422, "limit_usd"),
        ({"max_concurrent": 0}, 422, "max_concurrent"),
        ({"max_concurrent": 1001}, 422, "max_concurrent"),
        ({"max_concurrent": "10"}, 422, "max_concurrent"),
        ({"expected_workers": 0}, 422, "expected_workers"),
        ({"vin": "x" * 18}, 422, "vin"),
        ({"vin": "a b"}, 422, "vin"),
        ({"vehicle_id": "x" * 256}, 422, "vehicle_id"),
        ({"name": "a\u0000b"}, 422, "name"),
        ({"surprise": 1}, 422, "surprise"),
    ],
)
async def test_a_faulty_opening_is_refused_at_its_field(
    api: httpx.AsyncClient, exam_id: str, change: dict[str, Any], status: int, field: str
) -> None:
    answer = await api.post("/v1/batches", json={"kind": "grading", "exam_id": exam_id, **change})

    assert (answer.status_code, answer.json().get("field")) == (status, field), answer.text


async def test_an_idempotency_key_opens_one_batch(api: httpx.AsyncClient, exam_id: str) -> None:
    body = {"kind": "grading", "exam_id": exam_id}
    headers = {"Idempotency-Key": str(uuid.uuid4())}

    first = await api.post("/v1/batches", json=body, headers=headers)
    second = await api.post("/v1/batches", json=body, headers=headers)
    other = await api.post("/v1/batches", json={**body, "name": "b"}, headers=headers)

    assert first.json()["batch_id"] == second.json()["batch_id"]
    assert second.headers["idempotency-replayed"] == "true"
    assert other.status_code == 409


async def test_concurrent_repetitions_open_one_batch(api: httpx.AsyncClient, exam_id: str) -> None:
    body = {"kind": "grading", "exam_id": exam_id}
    headers = {"Idempotency-Key": str(uuid.uuid4())}

    answers = await asyncio.gather(*(api.post("/v1/batches", json=body, headers=headers) for _ in range(10)))

    assert {each.status_code for each in answers} <= {201, 409}
    assert len({each.json()["batch_id"] for each in answers if each.status_code == 201}) == 1


async def test_a_key_whose_request_was_refused_can_be_used_again(api: httpx.AsyncClient) -> None:
    body = {"kind": "grading", "exam_id": NOWHERE}
    headers = {"Idempotency-Key": str(uuid.uuid4())}

    answers = [await api.post("/v1/batches", json=body, headers=headers) for _ in range(2)]

    assert [each.json()["code"] for each in answers] == ["not_found", "not_found"]


async def test_batches_are_listed_by_page_and_state(api: httpx.AsyncClient, open_batch: OpenBatch) -> None:
    older, newer = await open_batch(name="older"), await open_batch(name="newer")
    await api.post(f"/v1/batches/{older}/cancel")

    pending = (await api.get("/v1/batches", params={"state": "pending", "page_size": 1})).json()
    cancelled = (await api.get("/v1/batches", params={"state": "cancelled", "page_size": 100})).json()

    assert [each["batch_id"] for each in pending["items"]] == [newer]
    assert pending["total"] >= 1
    assert older in [each["batch_id"] for each in cancelled["items"]]


@pytest.mark.parametrize("query", ["colour=red", "page=0", "page_size=101", "page=x", "state=asleep"])
async def test_a_faulty_query_is_refused_at_its_parameter(api: httpx.AsyncClient, query: str) -> None:
    answer = await api.get(f"/v1/batches?{query}")

    assert (answer.status_code, answer.json()["field"]) == (422, query.partition("=")[0])


@pytest.mark.parametrize("batch", [NOWHERE, "nothing", "a%20b", "x" * 200])
async def test_a_batch_that_is_not_there_is_not_found(api: httpx.AsyncClient, batch: str) -> None:
    answer = await api.get(f"/v1/batches/{batch}")

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_request_without_a_key_is_refused_before_its_body_is_read(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/batches", content=b"{", headers={"X-API-Key": "", "Authorization": ""})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_an_address_that_is_not_there_is_a_problem_too(api: httpx.AsyncClient) -> None:
    missing, wrong = await api.get("/v1/nothing"), await api.delete("/v1/batches")

    assert (missing.status_code, missing.json()["code"]) == (404, "route_not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")


async def test_an_empty_batch_cannot_be_completed(api: httpx.AsyncClient, batch_id: str) -> None:
    answer = await api.post(f"/v1/batches/{batch_id}/complete")

    assert (answer.status_code, answer.json()["code"]) == (409, "empty_batch")


async def test_a_completed_batch_counts_its_files_and_takes_no_more(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    await api.put(f"/v1/batches/{batch_id}/files/a.txt", content=b"q1: 443")

    first = await api.post(f"/v1/batches/{batch_id}/complete")
    second = await api.post(f"/v1/batches/{batch_id}/complete")
    late = await api.put(f"/v1/batches/{batch_id}/files/b.txt", content=b"q1: 443")

    assert (first.status_code, first.json()["total_files"]) == (202, 1)
    assert (second.status_code, second.json()["batch_id"]) == (202, batch_id)
    assert (late.status_code, late.json()["code"]) == (409, "batch_frozen")


async def test_a_pending_batch_is_cancelled_at_once_and_stays_so(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    first = await api.post(f"/v1/batches/{batch_id}/cancel")
    second = await api.post(f"/v1/batches/{batch_id}/cancel")

    assert (first.status_code, first.json()["status"]) == (202, "cancelled")
    assert (second.status_code, second.json()["status"]) == (200, "cancelled")


async def test_the_paths_of_the_sources_answer_too(api: httpx.AsyncClient, batch_id: str) -> None:
    answer = await api.get(f"/api/v1/batches/{batch_id}")

    assert answer.json()["batch_id"] == batch_id

"""Exams over HTTP."""

from typing import Any

import httpx
import yaml

EXAM: dict[str, Any] = {
    "title": "Networks",
    "questions": [{"id": "q1", "type": "exact", "prompt": "Port of HTTPS?", "points": 1, "answer": "443"}],
}


async def test_an_exam_that_was_handed_in_is_read_and_listed(api: httpx.AsyncClient) -> None:
    created = await api.post("/v1/exams", json=EXAM)

    assert created.status_code == 201
    assert created.headers["location"] == f"/v1/exams/{created.json()['id']}"
    read = await api.get(created.headers["location"])
    assert read.json() == created.json()
    assert read.json()["questions"][0]["answer"] == "443"
    listed = await api.get("/v1/exams", params={"page_size": 1})
    assert listed.json()["items"][0]["id"] == created.json()["id"]
    assert listed.json()["total"] >= 1


async def test_an_exam_may_be_yaml(api: httpx.AsyncClient) -> None:
    body = yaml.safe_dump({**EXAM, "title": "网络"}, allow_unicode=True).encode()

    created = await api.post("/v1/exams", content=body, headers={"Content-Type": "application/yaml"})

    assert created.status_code == 201
    assert created.json()["title"] == "网络"


async def test_a_faulty_exam_is_refused_at_its_field(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/exams", json={**EXAM, "questions": [{**EXAM["questions"][0], "points": -1}]})

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == "questions[0].points"


async def test_an_exam_over_the_limit_is_refused(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/exams", json={**EXAM, "title": "x" * 6 * 1024 * 1024})

    assert answer.status_code == 413
    assert "max_exam_bytes" in answer.json()["detail"]


async def test_an_exam_with_an_idempotency_key_is_created_once(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": f"exam-{id(object())}"}

    first = await api.post("/v1/exams", json=EXAM, headers=headers)
    second = await api.post("/v1/exams", json=EXAM, headers=headers)
    other = await api.post("/v1/exams", json={**EXAM, "title": "Another"}, headers=headers)

    assert second.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")

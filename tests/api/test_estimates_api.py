"""What a batch will cost, before it is started."""

from decimal import Decimal

import httpx
import pytest

from tests.api.conftest import OpenBatch
from tests.builders import EXAM

FILES = [{"name": "a.txt", "size_bytes": 2_000}, {"name": "b.pdf", "size_bytes": 90_000}]


async def test_an_estimate_needs_no_batch_and_stores_nothing(api: httpx.AsyncClient) -> None:
    body = {"exam": EXAM, "model": "openai:gpt-4o-mini", "files": FILES}
    before = (await api.get("/v1/exams")).json()["total"]

    answer = await api.post("/v1/estimates", json=body)

    assert answer.status_code == 200, answer.text
    estimate = answer.json()
    assert (estimate["files"], estimate["likely"]["calls"]) == (2, 2)
    assert 0 < Decimal(estimate["likely"]["cost_est_usd"]) < Decimal(estimate["most"]["cost_est_usd"])
    assert (await api.get("/v1/exams")).json()["total"] == before


async def test_the_embedded_model_costs_nothing(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/estimates", json={"exam": EXAM, "files": FILES})
    assert answer.json()["most"]["cost_est_usd"] == "0.00"


async def test_a_model_without_a_price_is_told_with_the_way_out(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/estimates", json={"exam": EXAM, "model": "campus:qwen3", "files": FILES})
    assert answer.json()["code"] == "unpriced_model"
    assert "assay prices set campus:qwen3" in answer.json()["detail"]


async def test_a_mistyped_name_is_told_as_one(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/estimates", json={"exam": EXAM, "model": "locl", "files": FILES})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_model")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"files": []}, "files"),
        ({"files": [{"name": "a", "size_bytes": -1}]}, "files[0].size_bytes"),
        ({"exam": {"title": "x"}}, "questions"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_a_faulty_request_is_refused_at_its_field(
    api: httpx.AsyncClient, change: dict[str, object], field: str
) -> None:
    answer = await api.post("/v1/estimates", json={"exam": EXAM, "files": FILES, **change})
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text


async def test_a_batch_is_estimated_from_its_files_and_told_when_completed(
    api: httpx.AsyncClient, open_batch: OpenBatch
) -> None:
    batch_id = await open_batch()
    (await api.put(f"/v1/batches/{batch_id}/files/a.txt", content=b"q1: 443")).raise_for_status()

    stored = await api.get(f"/v1/batches/{batch_id}/estimate")
    completed = await api.post(f"/v1/batches/{batch_id}/complete")

    assert stored.json()["files"] == 1
    assert completed.json()["estimate"] == stored.json()

"""A batch's limit over HTTP, and the way out of a pause."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import OpenBatch

NOWHERE = "0197c1de-1111-7000-8000-000000000000"


async def test_a_limit_can_be_raised_lowered_and_taken_away(
    api: httpx.AsyncClient, open_batch: OpenBatch
) -> None:
    batch_id = await open_batch(limit_usd="2.50")
    for limit in ("12.50", "0.000000001", None):
        answer = await api.post(f"/v1/batches/{batch_id}/limit", json={"limit_usd": limit})
        assert answer.status_code == 200, answer.text
        assert answer.json()["limit_usd"] == limit
        assert answer.json()["status"] == "pending"


@pytest.mark.parametrize("body", [{}, {"limit_usd": 1.5}, {"limit_usd": "-1"}, {"limit_usd": "1", "x": 1}])
async def test_a_faulty_limit_changes_nothing(
    api: httpx.AsyncClient, open_batch: OpenBatch, body: dict[str, Any]
) -> None:
    batch_id = await open_batch(limit_usd="2.50")
    answer = await api.post(f"/v1/batches/{batch_id}/limit", json=body)
    assert answer.status_code == 422, answer.text
    assert (await api.get(f"/v1/batches/{batch_id}")).json()["limit_usd"] == "2.50"


async def test_a_batch_that_has_ended_takes_no_limit(api: httpx.AsyncClient, batch_id: str) -> None:
    (await api.post(f"/v1/batches/{batch_id}/cancel")).raise_for_status()
    answer = await api.post(f"/v1/batches/{batch_id}/limit", json={"limit_usd": "1"})
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


async def test_resuming_a_batch_that_is_not_paused_changes_nothing(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    answer = await api.post(f"/v1/batches/{batch_id}/resume")
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")


@pytest.mark.parametrize("path", ["limit", "resume"])
async def test_what_is_not_there_is_not_found(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.post(f"/v1/batches/{NOWHERE}/{path}", json={"limit_usd": "1"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")

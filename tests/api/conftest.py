"""An exam and batches of it, made through the API itself; `api` comes from `tests/conftest.py`."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

EXAM: dict[str, Any] = {
    "title": "Networks",
    "questions": [{"id": "q1", "type": "exact", "prompt": "Port of HTTPS?", "points": 1, "answer": "443"}],
}

OpenBatch = Callable[..., Awaitable[str]]


@pytest.fixture
async def exam_id(api: httpx.AsyncClient) -> str:
    """The id of a small exam."""
    answer = await api.post("/v1/exams", json=EXAM)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def open_batch(api: httpx.AsyncClient, exam_id: str) -> OpenBatch:
    """Opens a pending batch and answers its id."""

    async def opened(**fields: Any) -> str:
        answer = await api.post("/v1/batches", json={"kind": "grading", "exam_id": exam_id, **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["batch_id"])

    return opened


@pytest.fixture
async def batch_id(open_batch: OpenBatch) -> str:
    """The id of a pending batch."""
    return await open_batch()

"""Health and figures over HTTP."""

import httpx

NO_KEY = {"X-API-Key": "", "Authorization": ""}


async def test_health_needs_no_key(api: httpx.AsyncClient) -> None:
    live = await api.get("/health/live", headers=NO_KEY)
    ready = await api.get("/health/ready", headers=NO_KEY)

    assert live.json() == {"status": "alive"}
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")


async def test_the_figures_need_a_key(api: httpx.AsyncClient) -> None:
    assert (await api.get("/metrics", headers=NO_KEY)).status_code == 401


async def test_the_document_is_served(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json", headers=NO_KEY)).json()

    assert "/v1/batches/{batch_id}/events" in document["paths"]

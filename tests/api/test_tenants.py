"""Tenants and profiles over HTTP."""

import secrets
from typing import Any

import httpx
import pytest

from tests.api.test_keys import another_tenant, client_of, made


def fresh_id() -> str:
    return f"t-{secrets.token_hex(6)}"


async def test_a_tenant_is_made_with_its_first_admin_key(api: httpx.AsyncClient) -> None:
    tenant_id = fresh_id()
    body = {
        "tenant_id": tenant_id,
        "name": "Physics",
        "time_zone": "Asia/Shanghai",
        "daily_limit_usd": "20.00",
    }
    answer = await api.post("/v1/tenants", json=body)
    assert answer.status_code == 201, answer.text
    tenant = answer.json()
    key = tenant.pop("key")
    assert (key["scopes"], key["name"]) == (["admin"], "first admin")
    async with client_of(api, key["secret"]) as admin:
        assert (await admin.get("/v1/tenant")).json() == tenant
        # its admin manages its keys, and no tenants
        await made(admin)
        for attempt in (
            await admin.post("/v1/tenants", json={"tenant_id": fresh_id(), "name": "more"}),
            await admin.get("/v1/tenants"),
        ):
            assert (attempt.status_code, attempt.json()["code"]) == (403, "forbidden")
    page = (await api.get("/v1/tenants", params={"page_size": 100})).json()
    assert tenant in page["items"] or page["total"] > 100


async def test_a_tenants_id_is_given_once(api: httpx.AsyncClient) -> None:
    body = {"tenant_id": fresh_id(), "name": "Physics"}
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    first = await api.post("/v1/tenants", json=body, headers=headers)
    again = await api.post("/v1/tenants", json=body, headers=headers)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert again.json() == {**first.json(), "key": {**first.json()["key"], "secret": None}}
    for headers in ({}, {"Idempotency-Key": secrets.token_hex(8)}):
        other = await api.post("/v1/tenants", json={**body, "name": "Taken over"}, headers=headers)
        assert (other.status_code, other.json()["field"]) == (409, "tenant_id")
    async with client_of(api, first.json()["key"]["secret"]) as admin:
        assert (await admin.get("/v1/tenant")).json()["name"] == "Physics"
        assert (await admin.get("/v1/keys")).json()["total"] == 1


@pytest.mark.parametrize("tenant_id", ["", "..", "a/b", "Local", "-a", "a" * 64, "a.b", "网络", "a\0", "a\n"])
async def test_an_id_that_could_be_a_path_is_no_tenants(api: httpx.AsyncClient, tenant_id: str) -> None:
    answer = await api.post("/v1/tenants", json={"tenant_id": tenant_id, "name": "Physics"})
    assert (answer.status_code, answer.json()["field"]) == (422, "tenant_id"), answer.text


async def test_a_tenant_changes_its_own_settings_and_the_ledger_knows(api: httpx.AsyncClient) -> None:
    async with another_tenant(api) as admin:
        changes = {
            "name": "New name",
            "time_zone": "Pacific/Kiritimati",
            "call_limit_usd": "0.50",
            "daily_limit_usd": "0",
            "mode": "best_effort",
            "requests_per_minute": 600,
        }
        changed = (await admin.patch("/v1/tenant", json=changes)).json()
        assert {name: changed[name] for name in changes} == {**changes, "daily_limit_usd": "0.00"}
        later = (await admin.patch("/v1/tenant", json={"call_limit_usd": None})).json()
        assert later == {**changed, "call_limit_usd": None}
        today = (await admin.get("/v1/costs/today")).json()
        assert (today["scope"], today["spent_usd"]) == ("all", "0.00")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"time_zone": "Mars/Olympus"},
        {"time_zone": "../../etc/passwd"},
        {"time_zone": "localtime"},
        {"time_zone": ""},
        {"time_zone": "a\x00"},
        {"time_zone": None},
        {"daily_limit_usd": "-0.01"},
        {"daily_limit_usd": 5},
        {"max_concurrent": 0},
        {"name": "a\x07"},
        {"tenant_id": "local"},
        {"daily_limit_usd": "1.00", "time_zone": "nowhere"},
    ],
)
async def test_a_faulty_setting_changes_nothing(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    before = (await api.get("/v1/tenant")).json()
    assert (await api.patch("/v1/tenant", json=body)).status_code == 422
    assert (await api.get("/v1/tenant")).json() == before


async def test_a_profile_has_a_budget_of_its_tenants_own(api: httpx.AsyncClient) -> None:
    name = f"p-{secrets.token_hex(4)}"
    assert (await api.get(f"/v1/profiles/{name}")).status_code == 404
    for limit in ("100.00", "0.00", None):
        profile = (await api.put(f"/v1/profiles/{name}", json={"limit_usd": limit})).json()
        assert (profile["profile"], profile["limit_usd"], profile["spent_usd"]) == (name, limit, "0.00")
        assert (await api.get(f"/v1/profiles/{name}")).json() == profile
    async with another_tenant(api) as stranger:
        assert (await stranger.get(f"/v1/profiles/{name}")).status_code == 404
    for body in ({}, {"limit_usd": "x"}, {"limit_usd": "1", "mode": "best_effort"}):
        assert (await api.put(f"/v1/profiles/{name}", json=body)).status_code == 422
    for faulty in ("-p", "a b", "p" * 101, "a%00", "网络"):
        assert (await api.put(f"/v1/profiles/{faulty}", json={"limit_usd": "1"})).status_code == 422

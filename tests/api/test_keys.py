"""API keys over HTTP: made, shown once, limited, revoked; and what somebody tries who should not."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from db.postgres.pool import Postgres
from db.postgres.tenants import key_hash
from runtime.resources import Resources
from tests.conftest import KEY

NOWHERE = "0197c1de-1111-7000-8000-000000000000"


@pytest.fixture
def postgres(session_resources: Resources) -> Postgres:
    """The session's database."""
    return session_resources.postgres


async def made(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """A new key with its secret."""
    answer = await client.post("/v1/keys", json={"name": "test", "scopes": ["read"], **fields})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


@asynccontextmanager
async def client_of(api: httpx.AsyncClient, secret: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with that key."""
    async with httpx.AsyncClient(base_url=api.base_url, headers={"X-API-Key": secret}) as client:
        yield client


@asynccontextmanager
async def another_tenant(api: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the first admin key of a new tenant."""
    tenant_id = f"t-{secrets.token_hex(6)}"
    answer = await api.post("/v1/tenants", json={"tenant_id": tenant_id, "name": "Another"})
    assert answer.status_code == 201, answer.text
    async with client_of(api, answer.json()["key"]["secret"]) as client:
        yield client


async def test_a_key_is_shown_once_and_only_its_hash_is_stored(
    api: httpx.AsyncClient, postgres: Postgres
) -> None:
    await api.put("/v1/profiles/networks", json={"limit_usd": "100.00"})
    answer = await api.post(
        "/v1/keys",
        json={
            "name": "Ms Li's course 网络",
            "scopes": ["submit", "read"],
            "profile": "networks",
            "models": ["openai:*"],
            "limit_usd": "25.00",
            "mode": "strict_budget",
            "requests_per_minute": 60,
            "expires_at": "2030-01-01T08:00:00+08:00",
        },
    )
    key = answer.json()
    assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
    secret = key.pop("secret")
    assert secret.startswith(key["prefix"])
    assert (len(secret), len(key["prefix"])) == (49, 12)
    assert (key["scopes"], key["state"], key["default_max_tokens"]) == (["submit", "read"], "active", 2000)
    assert (key["limit_usd"], key["spent_usd"], key["left_usd"]) == ("25.00", "0.00", "25.00")
    assert key["expires_at"] == "2030-01-01T00:00:00+00:00"

    read = await api.get(answer.headers["Location"])
    assert read.json() == key
    listed = await api.get("/v1/keys", params={"page_size": 1})
    assert listed.json()["items"] == [key]
    rows = await postgres.rows("SELECT * FROM api_keys WHERE sha256 = %s", [key_hash(secret)])
    assert [str(row["id"]) for row in rows] == [key["key_id"]]
    assert secret not in read.text + listed.text + str(rows)


async def test_a_key_does_what_its_scopes_say_and_makes_no_keys(api: httpx.AsyncClient) -> None:
    for scope, allowed in (("read", 200), ("submit", 403), ("model", 403), ("review", 403)):
        async with client_of(api, (await made(api, scopes=[scope]))["secret"]) as client:
            assert (await client.get("/v1/batches")).status_code == allowed
            body = {"name": "more", "scopes": ["admin"]}
            for attempt in (
                await client.post("/v1/keys", json=body),
                await client.get("/v1/keys"),
                await client.get(f"/v1/keys/{NOWHERE}"),
                await client.patch(f"/v1/keys/{NOWHERE}", json={"name": "mine"}),
                await client.delete(f"/v1/keys/{NOWHERE}"),
                await client.patch("/v1/tenant", json={"daily_limit_usd": None}),
                await client.put("/v1/profiles/p", json={"limit_usd": None}),
                await client.get("/v1/tenants"),
            ):
                assert (attempt.status_code, attempt.json()["code"]) == (403, "forbidden")
    async with client_of(api, (await made(api, scopes=["admin"]))["secret"]) as admin:
        assert (await admin.get("/v1/batches")).status_code == 200


async def test_keys_of_another_tenant_are_not_there(api: httpx.AsyncClient) -> None:
    key = await made(api, limit_usd="1.00")
    url = f"/v1/keys/{key['key_id']}"
    async with another_tenant(api) as stranger:
        for attempt in (
            await stranger.get(url),
            await stranger.patch(url, json={"limit_usd": "9.00"}),
            await stranger.delete(url),
        ):
            assert (attempt.status_code, attempt.json()["code"]) == (404, "not_found")
        theirs = (await stranger.get("/v1/keys")).json()
        assert [each["name"] for each in theirs["items"]] == ["first admin"]
    assert (await api.get(url)).json()["limit_usd"] == "1.00"
    for key_id in (NOWHERE, "no-uuid", "..", "a" * 200):
        assert (await api.get(f"/v1/keys/{key_id}")).status_code in (404, 405)


async def test_a_change_holds_at_once_and_leaves_the_rest(api: httpx.AsyncClient) -> None:
    key = await made(api, limit_usd="1.00", mode="best_effort", requests_per_minute=5, models=["local"])
    url = f"/v1/keys/{key['key_id']}"
    changed = (await api.patch(url, json={"limit_usd": "2.50", "models": []})).json()
    assert (changed["limit_usd"], changed["mode"], changed["models"]) == ("2.50", "best_effort", [])
    assert changed["requests_per_minute"] == 5
    changed = (await api.patch(url, json={"requests_per_minute": None, "mode": None, "name": "new"})).json()
    same = {name for name, value in changed.items() if value == key.get(name)}
    assert key.keys() - same == {
        "secret",
        "name",
        "limit_usd",
        "left_usd",
        "models",
        "mode",
        "requests_per_minute",
    }
    assert (changed["mode"], changed["requests_per_minute"], changed["name"]) == (None, None, "new")


@pytest.mark.parametrize("_", range(5))
async def test_changes_at_the_same_time_lose_nothing(api: httpx.AsyncClient, _: int) -> None:
    url = f"/v1/keys/{(await made(api))['key_id']}"
    await api.put("/v1/profiles/p", json={"limit_usd": "1.00"})
    changes: list[dict[str, Any]] = [
        {"limit_usd": "3.00"},
        {"mode": "strict_budget"},
        {"max_concurrent": 7},
        {"name": "both"},
        {"profile": "p"},
    ]
    answers = await asyncio.gather(*(api.patch(url, json=each) for each in changes))
    assert [each.status_code for each in answers] == [200] * len(changes), [each.text for each in answers]
    key = (await api.get(url)).json()
    assert {name: key[name] for each in changes for name in each} == {
        k: v for c in changes for k, v in c.items()
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"scopes": None}, "scopes"),
        ({"name": ""}, "name"),
        ({"name": "   "}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a\x1b[2Jb"}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"limit_usd": "-1"}, "limit_usd"),
        ({"limit_usd": 1.5}, "limit_usd"),
        ({"limit_usd": "1000000000.01"}, "limit_usd"),
        ({"limit_usd": "1e3"}, "limit_usd"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -1}, "tokens_per_minute"),
        ({"max_concurrent": 10**30}, "max_concurrent"),
        ({"max_concurrent": True}, "max_concurrent"),
        ({"default_max_tokens": 0}, "default_max_tokens"),
        ({"default_max_tokens": None}, "default_max_tokens"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"models": ["a b"]}, "models"),
        ({"models": [""]}, "models[0]"),
        ({"models": ["m"] * 101}, "models"),
        ({"profile": "../x"}, "profile"),
        ({"profile": "no-such-profile"}, "profile"),
        ({"name": "a\u202eb"}, "name"),
        ({"models": ["a\u2066b"]}, "models"),
        ({"mode": "free"}, "mode"),
        ({"tenant_id": "other"}, "tenant_id"),
        ({"sha256": "00"}, "sha256"),
    ],
)
async def test_a_faulty_key_is_refused_whole(
    api: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    listed = await api.get("/v1/keys")
    assert listed.status_code == 200, listed.text
    before = listed.json()["total"]
    answer = await api.post("/v1/keys", json={"name": "test", "scopes": ["read"], **body})
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
    assert (await api.get("/v1/keys")).json()["total"] == before


async def test_a_faulty_change_changes_nothing(api: httpx.AsyncClient) -> None:
    key = await made(api, limit_usd="1.00")
    url = f"/v1/keys/{key['key_id']}"
    for body in ({}, {"scopes": ["admin"]}, {"name": None}, {"limit_usd": "2.00", "max_concurrent": 0}):
        assert (await api.patch(url, json=body)).status_code == 422, body
    assert {**(await api.get(url)).json(), "secret": key["secret"]} == key


async def test_a_revoked_key_opens_nothing_from_the_next_request_on(api: httpx.AsyncClient) -> None:
    key = await made(api)
    url = f"/v1/keys/{key['key_id']}"
    async with client_of(api, key["secret"]) as client:
        assert (await client.get("/v1/batches")).status_code == 200
        revoked = (await api.delete(url)).json()
        assert (await client.get("/v1/batches")).status_code == 401
    assert (revoked["state"], revoked["warning"]) == ("revoked", None)
    again = (await api.delete(url)).json()
    assert again["revoked_at"] == revoked["revoked_at"]
    refused = await api.patch(url, json={"limit_usd": "5.00"})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


async def test_an_expired_key_opens_nothing(api: httpx.AsyncClient, postgres: Postgres) -> None:
    key = await made(api, expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    async with client_of(api, key["secret"]) as client:
        assert (await client.get("/v1/batches")).status_code == 200
        await postgres.run("UPDATE api_keys SET expires_at = now() WHERE id = %s", [key["key_id"]])
        assert (await client.get("/v1/batches")).status_code == 401
    assert (await api.get(f"/v1/keys/{key['key_id']}")).json()["state"] == "expired"


async def test_the_last_admin_key_may_be_revoked_and_its_owner_is_told(api: httpx.AsyncClient) -> None:
    async with another_tenant(api) as admin:
        [first] = (await admin.get("/v1/keys")).json()["items"]
        second = await made(admin, scopes=["admin"])
        assert (await admin.delete(f"/v1/keys/{second['key_id']}")).json()["warning"] is None
        last = await admin.delete(f"/v1/keys/{first['key_id']}")
        assert last.status_code == 200
        assert "no admin key left" in last.json()["warning"]
        assert (await admin.get("/v1/keys")).status_code == 401


async def test_a_repetition_makes_no_second_key_and_cannot_know_the_secret(api: httpx.AsyncClient) -> None:
    body = {"name": "once", "scopes": ["read"], "limit_usd": "1.00"}
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    first = await api.post("/v1/keys", json=body, headers=headers)
    again = await api.post("/v1/keys", json=body, headers=headers)
    assert "Idempotency-Replayed" not in first.headers
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert again.json() == {**first.json(), "secret": None}
    other = await api.post("/v1/keys", json={**body, "limit_usd": "9.00"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


async def test_of_repetitions_at_the_same_time_exactly_one_has_the_secret(api: httpx.AsyncClient) -> None:
    body, headers = {"name": "once", "scopes": ["read"]}, {"Idempotency-Key": secrets.token_hex(8)}
    answers = await asyncio.gather(*(api.post("/v1/keys", json=body, headers=headers) for _ in range(8)))
    assert [each.status_code for each in answers] == [201] * 8
    assert len({each.json()["key_id"] for each in answers}) == 1
    known = [each.json()["secret"] for each in answers if each.json()["secret"]]
    assert len(known) == 1
    assert [("Idempotency-Replayed" in each.headers) for each in answers].count(False) == 1
    async with client_of(api, known[0]) as client:
        assert (await client.get("/v1/batches")).status_code == 200


async def test_an_idempotency_key_of_a_tenant_opens_nothing_to_another(api: httpx.AsyncClient) -> None:
    body, headers = {"name": "once", "scopes": ["read"]}, {"Idempotency-Key": secrets.token_hex(8)}
    ours = (await api.post("/v1/keys", json=body, headers=headers)).json()
    async with another_tenant(api) as stranger:
        theirs = (await stranger.post("/v1/keys", json=body, headers=headers)).json()
    assert theirs["key_id"] != ours["key_id"]
    assert theirs["secret"]


async def test_no_answer_has_the_key_that_it_was_asked_with(api: httpx.AsyncClient) -> None:
    answers = [await api.get(path) for path in ("/v1/keys", "/v1/tenant", "/v1/tenants")]
    assert all(KEY not in each.text for each in answers)

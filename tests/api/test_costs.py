"""What a tenant has spent, over HTTP; of its own books only."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest

from domain.completion import Payer
from runtime.resources import SystemClock
from tests.api.test_keys import another_tenant, client_of, made
from tests.db.purse import a_call, a_payer, a_settlement, held, opened_ledger


@dataclass(frozen=True)
class Spender:
    """A tenant that has paid for three calls and holds a fourth, and its reader."""

    reader: httpx.AsyncClient
    payer: Payer
    key_id: str


@pytest.fixture(scope="module")
async def spender(api: httpx.AsyncClient, session_database_url: str) -> AsyncIterator[Spender]:
    """Three calls of 0.04 USD, and 0.10 USD held."""
    async with another_tenant(api) as admin:
        key = await made(admin, limit_usd="1.00")
        await admin.put("/v1/profiles/class", json={"limit_usd": "2.00"})
        tenant_id = (await admin.get("/v1/tenant")).json()["tenant_id"]
        payer = a_payer(tenant_id=tenant_id, api_key_id=key["key_id"])
        async with opened_ledger(session_database_url, SystemClock()) as ledger:
            for _ in range(3):
                await ledger.settle(await held(ledger, a_call(payer)), a_settlement(40_000_000))
            await held(ledger, a_call(payer, 100_000_000))
        async with client_of(api, key["secret"]) as reader:
            yield Spender(reader, payer, key["key_id"])
        shown = (await admin.get(f"/v1/keys/{key['key_id']}")).json()
        assert (shown["spent_usd"], shown["held_usd"], shown["left_usd"]) == ("0.12", "0.10", "0.78")


async def got(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    answer = await client.get(f"/v1/costs/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_books_say_what_was_spent_and_held(spender: Spender) -> None:
    reader, payer = spender.reader, spender.payer
    balances = await got(reader, "balances")
    assert (balances["total"], balances["page"], balances["page_size"]) == (4, 1, 20)
    assert {each["spent_usd"] for each in balances["items"]} == {"0.12"}
    [profile] = (await got(reader, "balances", scope="profile", subject="class"))["items"]
    assert profile == {
        "scope": "profile", "subject": "class", "limit_usd": "2.00", "held_usd": "0.10",
        "spent_usd": "0.12", "left_usd": "1.78", "requests": 3, "tokens": 90,
    }  # fmt: skip
    [day] = (await got(reader, "days"))["items"]
    assert (day["spent_usd"], day["held_usd"], day["requests"]) == ("0.12", "0.10", 3)
    today = await got(reader, "today")
    assert today == {"day": day["day"], "scope": "all", "profile": None, "spent_usd": "0.12"}
    of_profile = await got(reader, "today", scope="profile", profile="class")
    assert (of_profile["profile"], of_profile["spent_usd"]) == ("class", "0.12")
    assert (await got(reader, "today", scope="profile", profile="other"))["spent_usd"] == "0.00"

    statement = await got(reader, "statement", batch_id=payer.batch_id)
    kinds = sorted(each["event_type"] for each in statement["items"])
    assert kinds == ["commit"] * 3 + ["precheck_hold"] * 4
    assert {each["api_key_id"] for each in statement["items"]} == {spender.key_id}
    [*_, commit] = [each for each in statement["items"] if each["event_type"] == "commit"]
    assert (commit["actual_usd"], commit["usage"]["tokens_out"], commit["day"]) == ("0.04", 10, day["day"])
    assert (await got(reader, "statement", batch_id="another"))["total"] == 0


async def test_pages_are_disjoint_and_whole(spender: Spender) -> None:
    for path in ("statement", "balances"):
        whole = (await got(spender.reader, path, page_size=100))["items"]
        pages = [await got(spender.reader, path, page=number, page_size=3) for number in (1, 2, 3)]
        assert [each for page in pages for each in page["items"]] == whole
        assert {page["total"] for page in pages} == {len(whole)}


async def test_days_are_chosen_by_their_dates(spender: Spender) -> None:
    today = SystemClock().now().date()
    tomorrow, before = today + timedelta(days=1), today - timedelta(days=2)
    for path, items in (("days", 1), ("statement", 7)):
        assert (await got(spender.reader, path, first=before, last=tomorrow))["total"] == items
        assert (await got(spender.reader, path, first="2001-01-01", last="2001-02-01"))["total"] == 0


async def test_nobody_sees_what_another_tenant_spent(api: httpx.AsyncClient, spender: Spender) -> None:
    async with another_tenant(api) as stranger:
        for path in ("balances", "statement", "days"):
            assert (await got(stranger, path))["total"] == 0
        assert (await got(stranger, "balances", scope="api_key", subject=spender.key_id))["total"] == 0
        assert (await got(stranger, "statement", batch_id=spender.payer.batch_id))["total"] == 0
        assert (await got(stranger, "today"))["spent_usd"] == "0.00"
        submitter = await made(stranger, scopes=["submit", "model", "review"])
    async with client_of(api, submitter["secret"]) as client:
        for path in ("balances", "statement", "days", "today"):
            assert (await client.get(f"/v1/costs/{path}")).status_code == 403


@pytest.mark.parametrize(
    "query",
    [
        "balances?tenant_id=local",
        "balances?scope=call",
        "balances?subject=a%00b",
        "balances?page=0",
        "balances?page_size=101",
        "statement?first=2026-01-02&last=2026-01-01",
        "statement?first=1900-01-01&last=2026-01-01",
        "statement?first=yesterday",
        "statement?batch_id=%00",
        "statement?api_key_id=x",
        "days?last=9999-12-31&first=0001-01-01",
        "days?scope=all",
        "today?scope=profile",
        "today?profile=class",
        "today?scope=batch",
        "today?scope=profile&profile=%00",
    ],
)
async def test_a_faulty_question_is_told_apart(api: httpx.AsyncClient, query: str) -> None:
    answer = await api.get(f"/v1/costs/{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), answer.text


@pytest.mark.parametrize("last", ["0001-01-01", "9999-12-31"])
async def test_the_calendars_ends_are_days_like_others(api: httpx.AsyncClient, last: str) -> None:
    assert (await got(api, "days", last=last))["total"] == 0

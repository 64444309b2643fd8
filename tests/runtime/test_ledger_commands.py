"""`assay ledger …` over a real database."""

import asyncio
import json
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from domain.ledger import Account, Scope
from domain.money import Money
from runtime.cli import app
from runtime.resources import SystemClock
from tests.db.purse import a_call, a_payer, a_settlement, held, opened_ledger


@pytest.fixture
def tenant(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tenant that has paid for one call and holds another, in the installation that is looked at."""
    monkeypatch.setenv("ASSAY_POSTGRES__URL", database_url)
    payer = a_payer()

    async def pay() -> None:
        async with opened_ledger(database_url, SystemClock()) as ledger:
            await ledger.books.set_limit(Account(payer.tenant_id, Scope.PROFILE, "class"), Money(10**9))
            await ledger.settle(await held(ledger, a_call(payer)), a_settlement(40_000_000))
            await held(ledger, a_call(payer, 100_000_000))

    asyncio.run(pay())
    monkeypatch.setenv("ASSAY_TENANT_ID", payer.tenant_id)
    return payer.tenant_id


def ask(*arguments: str) -> Any:
    """What a command prints for programs."""
    done = CliRunner().invoke(app, ["ledger", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_ledger_is_shown_in_dollars(tenant: str) -> None:
    (profile,) = ask("balance", "--scope", "profile")
    assert profile == {
        "scope": "profile", "subject": "class", "limit_usd": "1.00", "held_usd": "0.10",
        "spent_usd": "0.04", "left_usd": "0.86", "requests": 1, "tokens": 30,
    }  # fmt: skip
    (day,) = ask("spend")
    assert (day["spent_usd"], day["held_usd"]) == ("0.04", "0.10")
    assert ask("spend", "--profile", "class")["spent_usd"] == "0.04"
    statement = ask("statement", "--days", "2")
    assert sorted(each["event_type"] for each in statement) == ["commit", "precheck_hold", "precheck_hold"]
    assert ask("spend", "--tenant", "another") == []


@pytest.mark.parametrize("command", ["balance", "spend", "statement", "verify"])
def test_people_get_text(tenant: str, command: str) -> None:
    done = CliRunner().invoke(app, ["ledger", command])
    assert done.exit_code == 0
    assert {"balance": "0.86", "spend": "0.04", "statement": "precheck_hold", "verify": "3 events"}[
        command
    ] in done.stdout


def test_verify_fails_when_something_differs(tenant: str, database_url: str) -> None:
    assert ask("verify") == {"events": 3, "whole": True, "differences": []}
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE ledger_accounts SET spent_nanodollars = 0 WHERE scope = 'batch'")
    done = CliRunner().invoke(app, ["ledger", "verify"])
    assert done.exit_code == 1
    assert "differs" in done.stdout


def test_a_scope_without_accounts_is_named(tenant: str) -> None:
    done = CliRunner().invoke(app, ["ledger", "balance", "--scope", "call"])
    assert done.exit_code == 2
    assert "no scope with an account" in done.output

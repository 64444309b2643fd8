"""`assay key …` and `assay tenant …` over a real database."""

import asyncio
import json
import secrets
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from db.postgres.tenants import PostgresKeys
from domain.errors import AssayError, Conflict, InvalidInput, NotFound, Unauthenticated
from domain.gateway import Caller
from runtime.cli import app
from tests.db.stage import opened_postgres

NOWHERE = "0197c1de-1111-7000-8000-000000000000"


@pytest.fixture
def tenant(session_database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh tenant, that of the installation that is looked at."""
    monkeypatch.setenv("ASSAY_POSTGRES__URL", session_database_url)
    tenant_id = f"t-{secrets.token_hex(6)}"
    assert run("tenant", "create", tenant_id).exit_code == 0
    monkeypatch.setenv("ASSAY_TENANT_ID", tenant_id)
    return tenant_id


def run(*arguments: str) -> Result:
    """A command, as it is called."""
    return CliRunner().invoke(app, arguments)


def ask(*arguments: str) -> Any:
    """What a command prints for programs."""
    done = run(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def refusal(*arguments: str) -> BaseException | None:
    """What a command ends with; `main` says it and makes an exit code of it."""
    done = run(*arguments)
    assert done.exit_code != 0, done.output
    return done.exception


def caller_of(url: str, secret: str) -> Caller:
    """The caller of that secret."""

    async def authenticate() -> Caller:
        async with opened_postgres(url) as postgres:
            return await PostgresKeys(postgres).authenticate(secret)

    return asyncio.run(authenticate())


def test_the_secret_alone_is_standard_output_once(tenant: str, session_database_url: str) -> None:
    done = run("key", "create", "Ms Li", "--scope", "submit", "--scope", "read", "--max-concurrent", "4")
    assert done.exit_code == 0, done.output
    secret = done.stdout.rstrip("\n")
    assert len(secret.split()) == 1
    assert "shown this once" in done.stderr
    caller = caller_of(session_database_url, secret)
    assert (caller.tenant_id, caller.scopes) == (tenant, {"submit", "read"})
    for later in (("list",), ("list", "--json"), ("show", caller.key_id)):
        shown = run("key", *later).output
        assert caller.key_id in shown
        assert secret not in shown


def test_a_key_is_limited_and_revoked(tenant: str, session_database_url: str) -> None:
    made = ask("key", "create", "k", "--scope", "model", "--model", "openai:*", "--limit", "25.00")
    assert (made["limit_usd"], made["models"]) == ("25.00", ["openai:*"])
    unknown = refusal("key", "limit", made["key_id"], "--profile", "class")
    assert "assay ledger limit class USD" in str(unknown)
    ask("ledger", "limit", "class", "100.00")
    changed = ask(
        "key", "limit", made["key_id"], "--limit", "none", "--model", "none", "--requests-per-minute", "60",
        "--expires", "2030-01-01T00:00:00+08:00", "--mode", "best_effort", "--profile", "class",
    )  # fmt: skip
    assert (changed["limit_usd"], changed["models"], changed["requests_per_minute"]) == (None, [], 60)
    assert (changed["expires_at"], changed["profile"]) == ("2029-12-31T16:00:00+00:00", "class")
    assert caller_of(session_database_url, made["secret"]).profile == "class"
    assert ask("key", "limit", made["key_id"], "--profile", "none")["profile"] == ""
    assert ask("key", "revoke", made["key_id"])["state"] == "revoked"
    with pytest.raises(Unauthenticated):
        caller_of(session_database_url, made["secret"])
    assert isinstance(refusal("key", "limit", made["key_id"], "--limit", "1.00"), Conflict)


def test_the_last_admin_key_is_revoked_with_a_warning_that_tells_the_way_out(tenant: str) -> None:
    [first] = ask("key", "list")
    done = run("key", "revoke", first["key_id"])
    assert done.exit_code == 0
    assert f"--scope admin --tenant {tenant}" in done.stderr
    assert ask("key", "create", "new", "--scope", "admin")["scopes"] == ["admin"]


def test_a_tenant_is_limited_and_listed(tenant: str) -> None:
    stated = ("--daily-limit", "20.00", "--time-zone", "Asia/Shanghai", "--name", "Physics")
    changed = ask("tenant", "limit", tenant, *stated)
    assert (changed["daily_limit_usd"], changed["time_zone"], changed["name"]) == (
        "20.00", "Asia/Shanghai", "Physics",
    )  # fmt: skip
    assert ask("tenant", "limit", tenant, "--daily-limit", "none")["daily_limit_usd"] is None
    assert ask("tenant", "show", tenant)["name"] == "Physics"
    assert tenant in [each["tenant_id"] for each in ask("tenant", "list")]
    assert "Physics" in run("tenant", "list").stdout


def test_another_tenants_key_is_not_there(tenant: str) -> None:
    made = ask("key", "create", "k", "--scope", "read")
    other = f"o-{secrets.token_hex(6)}"
    ask("tenant", "create", other)
    for command in (("show",), ("revoke",), ("limit", "--limit", "1.00")):
        name, *options = command
        done = refusal("key", name, made["key_id"], *options, "--tenant", other)
        assert isinstance(done, NotFound)
    assert ask("key", "show", made["key_id"])["state"] == "active"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("key", "create", "k", "--scope", "root"), InvalidInput),
        (("key", "create", "", "--scope", "read"), InvalidInput),
        (("key", "create", "a\x1b[2J", "--scope", "read"), InvalidInput),
        (("key", "create", "k", "--scope", "read", "--limit", "-1"), InvalidInput),
        (("key", "create", "k", "--scope", "read", "--max-concurrent", "0"), InvalidInput),
        (("key", "create", "k", "--scope", "read", "--tokens-per-minute", "9" * 30), InvalidInput),
        (("key", "create", "k", "--scope", "read", "--expires", "2020-01-01T00:00:00Z"), InvalidInput),
        (("key", "create", "k", "--scope", "read", "--expires", "2030-01-01"), InvalidInput),
        (("key", "create", "k", "--scope", "read", "--mode", "free"), InvalidInput),
        (("key", "create", "k", "--scope", "read", "--tenant", "nobody"), NotFound),
        (("key", "create", "k", "--scope", "read", "--profile", "typo"), InvalidInput),
        (("key", "show", NOWHERE), NotFound),
        (("key", "show", "no-uuid"), NotFound),
        (("tenant", "create", "../x"), InvalidInput),
        (("tenant", "show", "nobody"), NotFound),
        (("tenant", "limit", "nobody", "--daily-limit", "1.00"), NotFound),
        (("ledger", "limit", "a/b", "1.00"), InvalidInput),
        (("ledger", "limit", "p", "1.x"), InvalidInput),
        (("ledger", "mode", NOWHERE, "best_effort"), NotFound),
        (("ledger", "mode", NOWHERE, "free"), InvalidInput),
    ],
)
def test_what_is_wrong_is_said(tenant: str, arguments: tuple[str, ...], error: type[AssayError]) -> None:
    assert isinstance(refusal(*arguments), error)


@pytest.mark.parametrize("arguments", [("key", "limit", NOWHERE), ("tenant", "limit", "nobody")])
def test_a_change_of_nothing_is_a_mistake(tenant: str, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert "at least one option" in done.output


def test_a_tenants_id_is_given_once(tenant: str) -> None:
    assert isinstance(refusal("tenant", "create", tenant), Conflict)


def test_a_profile_has_a_budget(tenant: str) -> None:
    assert ask("ledger", "limit", "class", "100.00")["limit_usd"] == "100.00"
    assert "100.00" in run("ledger", "balance", "--scope", "profile").stdout
    assert ask("ledger", "limit", "class", "none")["limit_usd"] is None

"""`assay key …`: make, list, limit and revoke API keys; straight on Postgres."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, cast
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Column, Table

from domain.completion import DEFAULT_MAX_TOKENS
from domain.errors import InvalidInput
from domain.keys import KEY_SCOPES, ApiKey, KeyChanges, KeyTerms, MadeKey, check_expiry
from domain.ledger import Mode
from domain.money import Money
from runtime.settings import Settings
from runtime.terminal import terminal

NONE = "none"
MOST_SHOWN = 500

key_commands = typer.Typer(
    name="key",
    help="API keys: who may do what, and for how much.\n\n"
    "Example: assay key create 'Ms Li' --scope submit --scope read --limit 25.00",
    no_args_is_help=True,
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]
Tenant = Annotated[str | None, typer.Option(help="The tenant; that of this installation by default.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `assay key list` shows it.")]
Scopes = Annotated[
    list[str],
    typer.Option("--scope", help=f"{', '.join(KEY_SCOPES)}; may be repeated, admin implies all."),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A pattern such as openai:*; may be repeated. All models without it."),
]
Profile = Annotated[str | None, typer.Option(help="A budget of the tenant that its calls count against.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(help="Of a reply, where a call does not say.", show_default=str(DEFAULT_MAX_TOKENS)),
]
RequestsPerMinute = Annotated[str | None, typer.Option(metavar="COUNT", help='A number, or "none".')]
TokensPerMinute = Annotated[str | None, typer.Option(metavar="COUNT", help='A number, or "none".')]
MaxConcurrent = Annotated[str | None, typer.Option(metavar="COUNT", help='Calls at once, or "none".')]
Usd = Annotated[str | None, typer.Option(metavar="USD", help='Decimal dollars such as 25.00, or "none".')]
ModeName = Annotated[
    str | None, typer.Option("--mode", metavar="MODE", help='strict_budget, best_effort, or "none".')
]
Expires = Annotated[
    str | None, typer.Option(metavar="TIME", help='RFC 3339 with offset: 2027-01-01T00:00:00Z, or "none".')
]

Answer = TypeVar("Answer")
out = terminal()
err = terminal(stderr=True)


@key_commands.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom or what it is for.")],
    scope: Scopes,
    model: Models = None,
    profile: Profile = None,
    limit: Usd = None,
    mode: ModeName = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    max_concurrent: MaxConcurrent = None,
    default_max_tokens: MaxTokens = None,
    expires: Expires = None,
    tenant: Tenant = None,
    json_: Json = False,
) -> None:
    """Make a key. Its secret is written to standard output, this once: only its hash is stored.

    Example: KEY=$(assay key create "Ms Li" --scope submit --scope read --limit 25.00)
    """
    stated = stated_terms(
        profile=profile,
        models=None if model is None else tuple(model),
        limit=limit,
        mode=mode,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        default_max_tokens=default_max_tokens,
        expires_at=expires,
    )
    terms = KeyTerms(name=name, scopes=tuple(scope), **stated)  # type: ignore[arg-type]  # it checks them
    tenant_id = tenant or Settings().tenant_id
    show_made(ask(lambda stores: stores.keys.create(tenant_id, str(uuid4()), terms)), json_)


@key_commands.command("list")
def list_(tenant: Tenant = None, json_: Json = False) -> None:
    """List the keys of a tenant, newest first, with what was spent with each.

    Example: assay key list
    """
    tenant_id = tenant or Settings().tenant_id
    keys, total = ask(lambda stores: stores.keys.list_of_tenant(tenant_id, 1, MOST_SHOWN))
    if json_:
        print_json([key_document(each) for each in keys])
        return
    # whatever the width: a cut id is of no use to the next command
    whole = [Column("key", min_width=36, no_wrap=True), Column("prefix", min_width=12, no_wrap=True)]
    table = Table(*whole, "name", "state", "scopes", "limit", "spent", "expires", box=None)
    for each in keys:
        shown = key_document(each)
        budget = (shown["limit_usd"] or "–", shown["spent_usd"])
        expires = "–" if each.terms.expires_at is None else f"{each.terms.expires_at:%Y-%m-%d}"
        scopes = ", ".join(each.terms.scopes)
        table.add_row(
            each.id, escape(each.prefix), escape(each.terms.name), shown["state"], scopes, *budget, expires
        )
    out.print(table, soft_wrap=False)
    say_rest(len(keys), total)


@key_commands.command()
def show(key_id: KeyId, tenant: Tenant = None, json_: Json = False) -> None:
    """Show what a key may do, and what was spent with it.

    Example: assay key show 0197c1de-…
    """
    tenant_id = tenant or Settings().tenant_id
    show_document(key_document(ask(lambda stores: stores.keys.read(tenant_id, key_id))), json_)


@key_commands.command()
def limit(
    key_id: KeyId,
    limit: Usd = None,
    mode: ModeName = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    max_concurrent: MaxConcurrent = None,
    default_max_tokens: MaxTokens = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help='A pattern such as openai:*; may be repeated; "none": all models.'),
    ] = None,
    profile: Annotated[str | None, typer.Option(help='A budget of the tenant, or "none".')] = None,
    expires: Expires = None,
    tenant: Tenant = None,
    json_: Json = False,
) -> None:
    """Change what a key may use, from its next request on; what is left out stays.

    Example: assay key limit 0197c1de-… --limit 50.00 --requests-per-minute 60 --expires none
    """
    stated = stated_terms(
        profile="" if profile == NONE else profile,
        models=() if model == [NONE] else None if model is None else tuple(model),
        limit=limit,
        mode=mode,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        default_max_tokens=default_max_tokens,
        expires_at=expires,
    )
    check_something(stated)
    tenant_id = tenant or Settings().tenant_id
    changes = cast("KeyChanges", stated)
    show_document(key_document(ask(lambda stores: stores.keys.change(tenant_id, key_id, changes))), json_)


@key_commands.command()
def revoke(key_id: KeyId, tenant: Tenant = None, json_: Json = False) -> None:
    """Revoke a key, for ever and from its next request on; calls under way are settled.

    Example: assay key revoke 0197c1de-…
    """
    tenant_id = tenant or Settings().tenant_id
    revoked = ask(lambda stores: stores.keys.revoke(tenant_id, key_id))
    if json_:
        print_json({**key_document(revoked.key), "warning": revoked.warning})
        return
    out.print(f"{revoked.key.id}: revoked.")
    if revoked.warning:
        err.print(f"[yellow]{escape(revoked.warning)}[/yellow]")


# --- for the commands of tenants, too ---


class Stores:
    """The stores of keys and tenants, over one database."""

    def __init__(self, postgres: Any) -> None:
        from db.postgres.tenants import PostgresKeys, PostgresTenants

        self.keys = PostgresKeys(postgres)
        self.tenants = PostgresTenants(postgres)


def ask(question: Callable[[Stores], Awaitable[Answer]]) -> Answer:
    """What the stores answer; they are opened for this one question."""
    from runtime.database import open_database

    async def asked() -> Answer:
        async with open_database(Settings()) as postgres:
            return await question(Stores(postgres))

    return asyncio.run(asked())


def stated_terms(**options: Any) -> dict[str, Any]:
    """The options that were stated, in the domain's words, checked; "none" takes a limit away."""
    stated = {name: _term(name, value) for name, value in options.items() if value is not None}
    check_expiry(stated.get("expires_at"), datetime.now(UTC))
    return stated


def _term(name: str, value: Any) -> Any:
    if name not in _PARSERS:
        return value
    try:
        return None if value == NONE else _PARSERS[name](value)
    except ValueError as error:
        raise InvalidInput(f'{name}: {error}; or "{NONE}".', field=name) from error


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "requests_per_minute": int,
    "tokens_per_minute": int,
    "max_concurrent": int,
    "limit": Money.from_usd,
    "call_limit": Money.from_usd,
    "daily_limit": Money.from_usd,
    "mode": Mode,
    "expires_at": datetime.fromisoformat,
}


def check_something(stated: dict[str, Any]) -> None:
    """Raise `BadParameter` where nothing shall change."""
    if not stated:
        raise typer.BadParameter("State at least one option that shall change; --help lists them.")


def show_made(made: MadeKey, json_: bool) -> None:
    """Write the secret to standard output alone, so that a script can keep it; the rest beside it."""
    if json_:
        print_json({**key_document(made.key), "secret": made.secret})
        return
    key = made.key
    what = f"{key.id} ({', '.join(key.terms.scopes)}) of the tenant {key.tenant_id}"
    err.print(f"Key {escape(what)}. Keep its secret, which is shown this once:")
    sys.stdout.write(f"{made.secret}\n")


def show_document(document: dict[str, Any], json_: bool) -> None:
    """The document as JSON, or as a line a field."""
    if json_:
        print_json(document)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in document.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(name, escape("–" if value in (None, [], "") else shown))
    out.print(table, soft_wrap=False)


def say_rest(shown: int, total: int) -> None:
    """Say that a list was cut."""
    if total > shown:
        err.print(f"The first {shown} of {total:,}; the API has them all, a page at a time.")


def print_json(document: Any) -> None:
    """The document on standard output."""
    out.print_json(json.dumps(document, ensure_ascii=False))


def key_document(key: ApiKey) -> dict[str, Any]:
    """The key as the API shows it."""
    from api.keys import KeyView

    return KeyView.of(key, datetime.now(UTC)).model_dump(mode="json")

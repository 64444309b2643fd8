"""`assay tenant …`: make, list and limit tenants; straight on Postgres."""

from typing import Annotated, Any, cast
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Table

from domain.keys import KeyTerms, TenantChanges, TenantTerms
from domain.keys import Tenant as TenantEntry
from runtime.key_commands import (
    MOST_SHOWN,
    Json,
    MaxConcurrent,
    ModeName,
    RequestsPerMinute,
    TokensPerMinute,
    Usd,
    ask,
    check_something,
    key_document,
    out,
    print_json,
    say_rest,
    show_document,
    show_made,
    stated_terms,
)

tenant_commands = typer.Typer(
    name="tenant",
    help="Tenants: whose everything is, and what they may spend.\n\n"
    "Example: assay tenant create computer-science --name 'Department of Computer Science'",
    no_args_is_help=True,
)
TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id.")]
TimeZone = Annotated[str | None, typer.Option(help="IANA, such as Asia/Shanghai; its day begins in it.")]


@tenant_commands.command()
def create(
    tenant_id: Annotated[
        str, typer.Argument(metavar="TENANT", help="An id: lower-case letters, digits, hyphens.")
    ],
    name: Annotated[str | None, typer.Option(help="The id by default.")] = None,
    time_zone: TimeZone = None,
    daily_limit: Usd = None,
    call_limit: Usd = None,
    json_: Json = False,
) -> None:
    """Make a tenant with its first admin key, whose secret is written to standard output, this once.

    Example: KEY=$(assay tenant create computer-science --time-zone Asia/Shanghai --daily-limit 20.00)
    """
    stated = stated_terms(time_zone=time_zone, daily_limit=daily_limit, call_limit=call_limit)
    terms = TenantTerms(name=name or tenant_id, **stated)
    first = KeyTerms(name="first admin", scopes=("admin",))
    tenant, made = ask(lambda stores: stores.tenants.create(tenant_id, terms, str(uuid4()), first))
    if json_:
        key = {**key_document(made.key), "secret": made.secret}
        print_json({**tenant_document(tenant), "key": key})
    else:
        show_made(made, json_)


@tenant_commands.command("list")
def list_(json_: Json = False) -> None:
    """List the tenants with their limits.

    Example: assay tenant list
    """
    tenants, total = ask(lambda stores: stores.tenants.list_all(1, MOST_SHOWN))
    if json_:
        print_json([tenant_document(each) for each in tenants])
        return
    table = Table("tenant", "name", "time zone", "daily limit", "call limit", "mode", box=None)
    for each in tenants:
        shown = tenant_document(each)
        limits = [shown[name] or "–" for name in ("daily_limit_usd", "call_limit_usd", "mode")]
        table.add_row(each.id, escape(each.terms.name), each.terms.time_zone, *limits)
    out.print(table, soft_wrap=False)
    say_rest(len(tenants), total)


@tenant_commands.command()
def show(tenant_id: TenantId, json_: Json = False) -> None:
    """Show a tenant's settings.

    Example: assay tenant show computer-science
    """
    show_document(tenant_document(ask(lambda stores: stores.tenants.read(tenant_id))), json_)


@tenant_commands.command()
def limit(
    tenant_id: TenantId,
    daily_limit: Usd = None,
    call_limit: Usd = None,
    mode: ModeName = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    max_concurrent: MaxConcurrent = None,
    time_zone: TimeZone = None,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    json_: Json = False,
) -> None:
    """Change what a tenant may use, from the next call on; what is left out stays.

    Example: assay tenant limit computer-science --daily-limit 20.00 --requests-per-minute none
    """
    stated = stated_terms(
        daily_limit=daily_limit,
        call_limit=call_limit,
        mode=mode,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        time_zone=time_zone,
        name=name,
    )
    check_something(stated)
    changes = cast("TenantChanges", stated)
    show_document(tenant_document(ask(lambda stores: stores.tenants.change(tenant_id, changes))), json_)


def tenant_document(tenant: TenantEntry) -> dict[str, Any]:
    """The tenant as the API shows it."""
    from api.tenants import TenantView

    return TenantView.of(tenant).model_dump(mode="json")

"""`assay ledger …`: what was spent, what is held, and whether it all adds up; straight from Postgres."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from domain.errors import InvalidInput
from domain.ledger import AccountBalance, DaySpend, LedgerEvent, Mode, Scope
from domain.money import Money
from runtime.settings import Settings
from runtime.terminal import terminal

FAILED = 1

ledger_commands = typer.Typer(
    name="ledger",
    help="What was spent, what is held, and whether it all adds up.\n\nExample: assay ledger spend --days 30",
    no_args_is_help=True,
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]
Tenant = Annotated[str | None, typer.Option(help="The tenant; that of this installation by default.")]
Days = Annotated[int, typer.Option(min=1, max=3660, help="So many days, today included.")]

Answer = TypeVar("Answer")
out = terminal()


@ledger_commands.command()
def verify(json_: Json = False) -> None:
    """Fold all events anew and compare every balance, hold and journaled reply with them.

    Example: assay ledger verify
    """
    events, wrong = _asked(lambda books: books.verify())
    if json_:
        _print_json({"events": events, "whole": not wrong, "differences": wrong})
    else:
        for each in wrong:
            out.print(
                f"[red]differs[/red] {escape(each['what'])}: {each['stored']}; events: {each['folded']}"
            )
        out.print(f"{events:,} events; " + ("something differs." if wrong else "everything adds up."))
    raise typer.Exit(FAILED if wrong else 0)


@ledger_commands.command()
def balance(
    scope: Annotated[str | None, typer.Option(help="api_key, batch, profile or tenant_day.")] = None,
    subject: Annotated[str | None, typer.Option(help="The key's, batch's or profile's id, or a day.")] = None,
    tenant: Tenant = None,
    json_: Json = False,
) -> None:
    """Show accounts: their limits, what is held, what was spent, what is left.

    Example: assay ledger balance --scope batch
    """
    chosen = _scope(scope)
    found = _asked(lambda books: books.balances(_tenant(tenant), chosen, subject))
    if json_:
        _print_json([_balance_document(each) for each in found])
        return
    table = Table("scope", "subject", "limit", "held", "spent", "left", "requests", box=None)
    for each in found:
        document = _balance_document(each)
        names = ("limit_usd", "held_usd", "spent_usd", "left_usd")
        amounts = [str(document[name] or "–") for name in names]
        table.add_row(each.account.scope, escape(each.account.subject), *amounts, f"{each.requests:,}")
    out.print(table, soft_wrap=False)


@ledger_commands.command()
def statement(
    days: Days = 1,
    batch: Annotated[str | None, typer.Option(help="Only this batch's events.")] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many events.")] = 100,
    tenant: Tenant = None,
    json_: Json = False,
) -> None:
    """List ledger events, newest first.

    Example: assay ledger statement --days 7 --batch 0197c1de-…
    """

    async def read(books: Any) -> list[LedgerEvent]:
        last: date = await books.today(_tenant(tenant))
        first = last - timedelta(days=days - 1)
        events: list[LedgerEvent] = await books.statement(
            _tenant(tenant), first, last, batch_id=batch, count=count
        )
        return events

    found = _asked(read)
    if json_:
        _print_json([_event_document(each) for each in found])
        return
    table = Table("when", "event", "call", "model", "estimated", "actual", box=None)
    for each in found:
        call = f"{each.call_id}/{each.attempt}"
        when = each.occurred_at.isoformat(" ", "seconds")
        table.add_row(when, each.event_type, call, escape(each.model), each.estimated.usd, each.actual.usd)
    out.print(table, soft_wrap=False)


@ledger_commands.command()
def spend(
    days: Days = 7,
    profile: Annotated[str | None, typer.Option(help="Only this profile, today.")] = None,
    tenant: Tenant = None,
    json_: Json = False,
) -> None:
    """Show what was spent day by day, in the tenant's time zone.

    Example: assay ledger spend --days 30
    """
    if profile is not None:
        amount = _asked(lambda books: books.spend_today(_tenant(tenant), scope="profile", profile=profile))
        _print_json({"profile": profile, "spent_usd": amount.usd}) if json_ else out.print(amount.usd)
        return

    async def read(books: Any) -> list[DaySpend]:
        last: date = await books.today(_tenant(tenant))
        found: list[DaySpend] = await books.days(_tenant(tenant), last - timedelta(days=days - 1), last)
        return found

    found = _asked(read)
    if json_:
        _print_json([_day_document(each) for each in found])
        return
    table = Table("day", "spent", "held", "requests", "tokens", box=None)
    for each in found:
        table.add_row(str(each.day), each.spent.usd, each.held.usd, f"{each.requests:,}", f"{each.tokens:,}")
    out.print(table, soft_wrap=False)


@ledger_commands.command()
def limit(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="The profile's name.")],
    usd: Annotated[str, typer.Argument(metavar="USD", help='Decimal dollars such as 100.00, or "none".')],
    tenant: Tenant = None,
    json_: Json = False,
) -> None:
    """State a profile's budget: a ceiling over all that was ever spent in it, by whichever key.

    Example: assay ledger limit networks 100.00
    """
    amount = _stated("usd", usd, Money.from_usd)
    found = _stored(lambda tenants: tenants.set_profile(_tenant(tenant), profile, amount))
    document = _balance_document(found)
    _print_json(document) if json_ else out.print(
        f"{escape(profile)}: limit {document['limit_usd'] or '–'}, spent {document['spent_usd']}"
    )


@ledger_commands.command()
def mode(
    batch_id: Annotated[str, typer.Argument(metavar="BATCH", help="The batch.")],
    mode: Annotated[str, typer.Argument(metavar="MODE", help='strict_budget, best_effort, or "none".')],
    tenant: Tenant = None,
) -> None:
    """State a batch's mode; of its key's, its tenant's and its own, the strictest that is stated counts.

    Example: assay ledger mode 0197c1de-… strict_budget
    """
    stated = _stated("mode", mode, Mode)
    _stored(lambda tenants: tenants.set_batch_mode(_tenant(tenant), batch_id, stated))
    out.print(f"{escape(batch_id)}: {stated or 'no mode of its own'}; known everywhere within a minute.")


# --- the inside ---


def _stored(question: Callable[[Any], Awaitable[Answer]]) -> Answer:
    """What the store of tenants answers; it is opened for this one question."""
    from db.postgres.tenants import PostgresTenants
    from runtime.database import open_database

    async def ask() -> Answer:
        async with open_database(Settings()) as postgres:
            return await question(PostgresTenants(postgres))

    return asyncio.run(ask())


def _stated(name: str, text: str, parse: Callable[[str], Answer]) -> Answer | None:
    try:
        return None if text == "none" else parse(text)
    except ValueError as error:
        raise InvalidInput(f'{name}: {error}; or "none".', field=name) from error


def _asked(question: Callable[[Any], Awaitable[Answer]]) -> Answer:
    """What the ledger's books answer; they are opened for this one question."""
    from db.postgres.ledger import PostgresLedgerBooks
    from runtime.database import open_database
    from runtime.resources import SystemClock

    async def ask() -> Answer:
        async with open_database(Settings()) as postgres:
            return await question(PostgresLedgerBooks(postgres, SystemClock()))

    return asyncio.run(ask())


def _tenant(named: str | None) -> str:
    return named or Settings().tenant_id


def _scope(named: str | None) -> Scope | None:
    known = [each.value for each in Scope if each is not Scope.CALL]
    if named is not None and named not in known:
        raise typer.BadParameter(f"{named!r} is no scope with an account; known: {', '.join(known)}.")
    return None if named is None else Scope(named)


def _print_json(document: Any) -> None:
    out.print_json(json.dumps(document, ensure_ascii=False))


def _balance_document(balance: AccountBalance) -> dict[str, Any]:
    from api.costs import BalanceView

    return BalanceView.of(balance).model_dump(mode="json")


def _day_document(day: DaySpend) -> dict[str, Any]:
    from api.costs import DayView

    return DayView.of(day).model_dump(mode="json")


def _event_document(event: LedgerEvent) -> dict[str, Any]:
    from api.costs import EventView

    return EventView.of(event).model_dump(mode="json")

"""`assay prices …`: what models cost. Lists are added and never changed: what a call cost stays explained."""

import asyncio
import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from domain.money import NANODOLLARS
from domain.prices import EMBEDDED_PROVIDER, Unit, own_prices
from runtime.settings import Settings
from runtime.terminal import terminal

BAD_INPUT = 2
MOST_SHOWN = 500
_MILLION = 1_000_000

price_commands = typer.Typer(
    name="prices",
    help="What models cost.\n\nExample: assay prices show 'openai:gpt-4o%'",
    no_args_is_help=True,
)
Usd = Annotated[str | None, typer.Option(help="Decimal dollars.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]


@price_commands.command("import")
def import_() -> None:
    """Add the public catalogue that came with this version of Assay; a repetition adds nothing.

    Example: assay prices import
    """
    from gateway.catalogue import catalogue

    prices = catalogue()
    added = asyncio.run(_add(prices))
    models = len({(each.provider, each.model) for each in prices.prices})
    terminal().print(
        f"{prices.source}: {models} models added." if added else f"{prices.source} is there already."
    )


@price_commands.command("set")
def set_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Such as campus:qwen3, campus:* or local.")],
    tokens_in: Usd = None,
    tokens_out: Usd = None,
    tokens_cached: Usd = None,
    images: Usd = None,
    audio_seconds: Usd = None,
) -> None:
    """State what a model costs here: dollars for a million tokens, for one image, for one second.

    It wins over the catalogue, and holds for calls from a minute later on.

    Example: assay prices set campus:qwen3 --tokens-in 0.10 --tokens-out 0.40
    """
    stated = {
        Unit.TOKENS_IN: tokens_in,
        Unit.TOKENS_OUT: tokens_out,
        Unit.TOKENS_CACHED: tokens_cached,
        Unit.IMAGES: images,
        Unit.AUDIO_SECONDS: audio_seconds,
    }
    prices = own_prices(model, [(unit, usd) for unit, usd in stated.items() if usd is not None])
    asyncio.run(_add(prices))
    shown = ", ".join(f"{unit} {usd} USD" for unit, usd in stated.items() if usd is not None)
    terminal().print(f"{escape(model)}: {shown}; for calls from a minute from now on.")


@price_commands.command()
def show(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="A model, or part of its name with %.")
    ] = "%",
    json_: Json = False,
) -> None:
    """Show the prices in force: dollars for a million tokens, for one image, for one second.

    Example: assay prices show 'openai:%mini%'
    """
    rows = asyncio.run(_shown(pattern))
    if json_:
        sys.stdout.write(json.dumps([_document(row) for row in rows], indent=2) + "\n")
        return
    if not rows:
        # a bare name is looked for as part of one
        terminal().print(
            f"No price fits {escape(pattern)}. Write % for what may stand around it: '%{escape(pattern)}%'; "
            "`assay prices import` adds the public catalogue."
        )
        raise typer.Exit(BAD_INPUT)
    table = Table("model", "unit", Column("USD", justify="right"), "above tokens", "list", box=None)
    for row in rows:
        shown = _document(row)
        above = f"{row['above_tokens']:,}" if row["above_tokens"] else ""
        table.add_row(
            shown["model"], shown["unit"], shown["usd"], above, f"{row['source']} ({row['version']})"
        )
    terminal().print(table, soft_wrap=False)
    if len(rows) == MOST_SHOWN:
        terminal().print(f"Only the first {MOST_SHOWN} rows; narrow the pattern.")


def _document(row: Any) -> dict[str, Any]:
    provider = "" if row["provider"] == EMBEDDED_PROVIDER else f"{row['provider']}:"
    units = 1 if row["unit"].startswith("tokens") else _MILLION
    usd = Decimal(row["nanodollars_per_million"]) / NANODOLLARS / units
    return {
        "model": f"{provider}{row['model']}",
        "unit": row["unit"],
        "usd": f"{usd.normalize():f}",
        "per": "million tokens" if units == 1 else "unit",
        "above_tokens": row["above_tokens"],
        "source": row["source"],
        "version": row["version"],
    }


async def _add(prices: Any) -> bool:
    async with _prices() as store:
        added: bool = await store.add(prices)
        return added


async def _shown(pattern: str) -> Sequence[Any]:
    async with _prices() as store:
        rows: Sequence[Any] = await store.show(pattern, MOST_SHOWN)
        return rows


def _prices() -> Any:
    from contextlib import asynccontextmanager

    from db.postgres.prices import PostgresPrices
    from gateway.catalogue import canonical_name, catalogue
    from runtime.database import open_database

    @asynccontextmanager
    async def opened() -> Any:
        async with open_database(Settings()) as postgres:
            yield PostgresPrices(postgres, catalogue=catalogue, canonical=canonical_name)

    return opened()

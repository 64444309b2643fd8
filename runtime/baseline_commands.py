"""`assay baseline …`: names for the batches of logs that others are compared with."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Column, Table

from api.html import visible
from runtime.rerun_commands import installed_client
from runtime.terminal import terminal

if TYPE_CHECKING:
    from runtime.client import ApiClient

baseline_commands = typer.Typer(
    name="baseline",
    help="Names for the batches that others are compared with.\n\nExample: assay baseline list",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The baseline's name.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]

out = terminal()
_PAGE = 100


@baseline_commands.command("set")
def set_(
    name: Name,
    batch_id: Annotated[str, typer.Argument(metavar="BATCH", help="A diagnosis batch that has ended.")],
) -> None:
    """Give a batch the name, in place of what had it.

    Example: assay baseline set healthy 0197c1de-…
    """
    with installed_client() as client:
        baseline = client.put(_address(name), {"batch_id": batch_id})
    out.print(f"{escape(visible(baseline['name']))}: batch {baseline['batch_id']}")


@baseline_commands.command("list")
def list_(json_: Json = False) -> None:
    """List the names, and the batches that they stand for.

    Example: assay baseline list
    """
    with installed_client() as client:
        baselines = list(_all(client))
    if json_:
        out.print_json(json.dumps({"baselines": baselines}, ensure_ascii=False))
        return
    table = Table("name", Column("batch", no_wrap=True), "since", box=None)
    for each in baselines:
        table.add_row(escape(visible(each["name"])), each["batch_id"], each["updated_at"])
    out.print(table if baselines else "No baseline has been set.", soft_wrap=False)


@baseline_commands.command()
def remove(name: Name) -> None:
    """Forget the name; its batch stays, and so do comparisons with it.

    Example: assay baseline remove healthy
    """
    with installed_client() as client:
        client.delete(_address(name))
    out.print(f"{escape(visible(name))}: removed")


def _all(client: "ApiClient") -> Iterator[dict[str, Any]]:
    page = 1
    while items := client.get("/v1/baselines", page=page, page_size=_PAGE)["items"]:
        yield from items
        page += 1


def _address(name: str) -> str:
    return f"/v1/baselines/{quote(name, safe='')}"

"""`assay retry-failed`, `fork`, `retry` and `sagas`: what went wrong, and going on with it."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Column, Table

from runtime.settings import Settings
from runtime.terminal import terminal

if TYPE_CHECKING:
    from runtime.client import ApiClient

rerun_commands = typer.Typer()

Batch = Annotated[str, typer.Argument(metavar="BATCH", help="The batch.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]
Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Follow the batch until it has ended.")]

out = terminal()
err = terminal(stderr=True)


@rerun_commands.command("retry-failed")
def retry_failed(batch_id: Batch, watch: Watch = False, json_: Json = False) -> None:
    """Run a batch's failed and cancelled submissions again; the others keep their results.

    Example: assay retry-failed 0197c1de-… --watch
    """
    with installed_client() as client:
        say_rerun(client, client.post(f"/v1/batches/{batch_id}/retry-failed"), watch=watch, json_=json_)


@rerun_commands.command()
def fork(
    batch_id: Batch,
    node: Annotated[
        str | None,
        typer.Option(help="Go on from before it ran first; such as check_evidence."),
    ] = None,
    step: Annotated[int | None, typer.Option(min=-1, help="Go on from the checkpoint of this step.")] = None,
    submission: Annotated[
        list[str] | None, typer.Option(help="Of these alone; may be repeated. All failed ones without.")
    ] = None,
    watch: Watch = False,
    json_: Json = False,
) -> None:
    """Go on with a batch's failed submissions from a step: what came before is kept and not paid again.

    Example: assay fork 0197c1de-… --node check_evidence --watch
    """
    request = {"node": node, "step": step, "submissions": submission}
    stated = {name: value for name, value in request.items() if value is not None}
    with installed_client() as client:
        say_rerun(client, client.post(f"/v1/batches/{batch_id}/fork", stated), watch=watch, json_=json_)


@rerun_commands.command()
def retry(
    submission: Annotated[str, typer.Argument(metavar="SUBMISSION", help="One that needs intervention.")],
) -> None:
    """Let a submission that needs intervention go on where it was, once the cause is seen to.

    Example: assay retry 0197c1de-…
    """
    with installed_client() as client:
        answer = client.post(f"/v1/submissions/{submission}/retry")
    out.print(f"{answer['submission_id']}: goes on")


@rerun_commands.command()
def sagas(
    status: Annotated[
        Literal["pending", "completed", "compensated", "needs_intervention"] | None,
        typer.Option(help="Only those of this status."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    json_: Json = False,
) -> None:
    """List the sagas that persist assessments, newest first; straight from Postgres.

    Example: assay sagas --status needs_intervention
    """
    from db.postgres.grading import PostgresAssessments
    from runtime.database import open_database

    async def read() -> list[dict[str, Any]]:
        async with open_database(Settings()) as postgres:
            return await PostgresAssessments(postgres).sagas(status, count)

    found = [_saga_document(row) for row in asyncio.run(read())]
    if json_:
        out.print_json(json.dumps(found, ensure_ascii=False))
        return
    table = Table(Column("saga", no_wrap=True), "status", "steps", "begun", "reason", box=None)
    for each in found:
        steps = ", ".join(f"{step['name']} {step['status']}" for step in each["steps"])
        begun = each["started_at"][:19].replace("T", " ")
        table.add_row(each["saga_id"], each["status"], steps, begun, escape(each["error"] or ""))
    out.print(table, soft_wrap=False)


@contextmanager
def installed_client() -> "Iterator[ApiClient]":
    """A client of the API that the settings name, or of the installation that runs here."""
    from runtime.client import ApiClient, ApiUnreachable
    from runtime.local import running_installation

    settings = Settings()
    running = running_installation(settings.folder.resolve())
    url = settings.api.url or (running.api_url if running else None)
    key = settings.api.key.get_secret_value() if settings.api.key else (running.key if running else None)
    if url is None or key is None:
        raise ApiUnreachable(
            f"Nothing runs in {settings.folder}. Start it with `assay up`, "
            "or set ASSAY_API__URL and ASSAY_API__KEY."
        )
    with ApiClient(url, key) as client:
        yield client


def say_rerun(client: "ApiClient", batch: dict[str, Any], *, watch: bool, json_: bool) -> None:
    """Say that the batch runs again, or follow it to its end, which decides the exit code."""
    from runtime.watching import exit_code, watch_batch

    batch_id = batch["batch_id"]
    if watch:
        state = watch_batch(client, batch_id, console=err)
        batch = client.get(f"/v1/batches/{batch_id}")
    if json_:
        out.print_json(json.dumps(batch, ensure_ascii=False))
    elif watch:
        out.print(state)
    else:
        again = f"{batch_id} runs again, in generation {batch['generation']}."
        out.print(f"{again} Follow it with: assay watch {batch_id}")
    raise typer.Exit(exit_code(state) if watch else 0)


def _saga_document(row: dict[str, Any]) -> dict[str, Any]:
    ended = row["completed_at"]
    return {
        "saga_id": row["saga_id"],
        "status": row["final_status"],
        "steps": row["steps"],
        "started_at": row["started_at"].isoformat(),
        "completed_at": None if ended is None else ended.isoformat(),
        "error": row["error_message"],
    }

"""`assay thread …`: the history of a submission's agents, listed, shown, compared and gone on from."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from runtime.rerun_commands import Json, Watch, installed_client, say_rerun
from runtime.terminal import terminal

thread_commands = typer.Typer(
    name="thread",
    help="The history of a submission's agents, checkpoint by checkpoint.\n\n"
    "Example: assay thread list 0197c1de-…",
    no_args_is_help=True,
)
Submission = Annotated[str, typer.Argument(metavar="SUBMISSION", help="The submission.")]
Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's id, as `assay thread list` shows it.")
]
Thread = Annotated[
    str | None,
    typer.Option("--thread", help="Whose, where a fork has a copy of it; the newest thread's without."),
]

out = terminal()


@thread_commands.command("list")
def list_(submission: Submission, json_: Json = False) -> None:
    """List the checkpoints that are still kept, newest first.

    Example: assay thread list 0197c1de-…
    """
    with installed_client() as client:
        answer = client.get(f"/v1/submissions/{submission}/checkpoints")
    if json_:
        _print_json(answer)
        return
    table = Table(
        Column("checkpoint", no_wrap=True), "generation", "step", "after", "next", "saved", "bytes", box=None
    )
    for each in answer["checkpoints"]:
        flags = " ".join(name for name in ("delta", "compressed") if each[f"is_{name}"])
        table.add_row(
            each["checkpoint_id"],
            str(each["generation"]),
            str(each["step"]),
            escape(", ".join(each["nodes"]) or "–"),
            escape(", ".join(each["next_nodes"]) or "–"),
            each["created_at"][:19].replace("T", " "),
            f"{each['data_size_bytes']:,} {flags}".rstrip(),
        )
    out.print(table, soft_wrap=False)


@thread_commands.command()
def show(submission: Submission, checkpoint: Checkpoint, thread: Thread = None, json_: Json = False) -> None:
    """Show an agent's state as it was saved with a checkpoint.

    Example: assay thread show 0197c1de-… 1f0e2a3b-…
    """
    with installed_client() as client:
        parameters = {} if thread is None else {"thread_id": thread}
        answer = client.get(f"/v1/submissions/{submission}/checkpoints/{checkpoint}", **parameters)
    if json_:
        _print_json(answer)
        return
    out.print(
        f"Generation {answer['generation']}, step {answer['step']}, after "
        f"{escape(', '.join(answer['nodes']) or '–')}, next {escape(', '.join(answer['next_nodes']) or '–')}"
    )
    _show_values(answer["state"])
    for each in answer["pending"]:
        out.print(f"written by the next step: {escape(each['channel'])} {_shortened(each['value'])}")
    for channel, reason in answer["unreadable"].items():
        out.print(f"[red]{escape(channel)}[/red]: {escape(reason)}")


@thread_commands.command()
def compare(
    submission: Submission,
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="A checkpoint's id.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Another checkpoint's id.")],
    json_: Json = False,
) -> None:
    """Show what differs between two checkpoints, by channel and question.

    Example: assay thread compare 0197c1de-… 1f0e2a3b-… 1f0e2a4c-…
    """
    with installed_client() as client:
        answer = client.get(f"/v1/submissions/{submission}/checkpoints/{after}", against=before)
    if json_:
        _print_json(answer["changes"])
        return
    _show_changes(answer["changes"])


@thread_commands.command()
def fork(submission: Submission, checkpoint: Checkpoint, watch: Watch = False, json_: Json = False) -> None:
    """Go on with a submission from a checkpoint: what came after it is done anew. Its batch must have ended.

    Example: assay thread fork 0197c1de-… 1f0e2a3b-… --watch
    """
    with installed_client() as client:
        batch = client.post(f"/v1/submissions/{submission}/fork", {"checkpoint_id": checkpoint})
        say_rerun(client, batch, watch=watch, json_=json_)


def _show_values(state: Mapping[str, Any]) -> None:
    table = Table("channel", "question", "value", box=None)
    for channel, value in state.items():
        rows = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, content in rows:
            table.add_row(escape(channel), escape(str(key)), _shortened(content))
    out.print(table, soft_wrap=False)


def _show_changes(changes: Sequence[Mapping[str, Any]]) -> None:
    table = Table("channel", "question", "", "before", "after", box=None)
    for each in changes:
        # the one that is not there is no value `null`
        before = "" if each["change"] == "added" else _shortened(each["before"])
        after = "" if each["change"] == "removed" else _shortened(each["after"])
        table.add_row(escape(each["channel"]), escape(each["key"] or ""), each["change"], before, after)
    out.print(table, soft_wrap=False)


def _shortened(value: Any) -> str:
    """A value on one line; a question's entry by its points."""
    if isinstance(value, Mapping) and isinstance(value.get("result"), Mapping):
        result = value["result"]
        return f"{result.get('score'):g} of {result.get('max_score'):g}, {value.get('calls')} calls"
    text = json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= 200 else text[:199] + "…")


def _print_json(document: Any) -> None:
    out.print_json(json.dumps(document, ensure_ascii=False))

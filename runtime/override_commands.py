"""`assay override`, `overrides`: a human's marks instead of the machine's, and what became of them."""

import json
import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from runtime.rerun_commands import Json, installed_client
from runtime.terminal import terminal

if TYPE_CHECKING:
    from runtime.client import ApiClient

override_commands = typer.Typer()

#: three quick steps of a saga; while a worker or a server is away they take as long as that
WAIT_SECONDS = 60.0
#: the API has no stream of overrides; a saga that meets nothing takes about as long as this
_ASK_EVERY_SECONDS = 0.2
_UNDONE = 1
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")

Submission = Annotated[str, typer.Argument(metavar="SUBMISSION", help="The submission.")]

out = terminal()
err = terminal(stderr=True)


@override_commands.command()
def override(
    submission: Submission,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question's id, such as q2.")],
    marks: Annotated[
        list[str],
        typer.Argument(metavar="CRITERION=POINTS", help="Such as c1=1.5; other criteria keep theirs."),
    ],
    reason: Annotated[str, typer.Option(help="Why; it is kept with the mark.")],
    json_: Json = False,
) -> None:
    """Give marks instead of the machine's, which are kept; `assay report --criteria --json` names criteria.

    Example: assay override 0197c1de-… q2 c1=1.5 --reason "The sketch on the back answers it."
    """
    asked = {"question_id": question, "points": _points_of(marks), "reason": reason}
    with installed_client() as client:
        begun = client.post(f"/v1/submissions/{submission}/overrides", asked)
        ended = _ended(client, submission, begun["override_id"])
    if json_:
        out.print_json(json.dumps(ended, ensure_ascii=False))
    else:
        _say(submission, ended)
    raise typer.Exit(0 if ended["status"] == "completed" else _UNDONE)


@override_commands.command()
def overrides(submission: Submission, json_: Json = False) -> None:
    """List the marks that humans gave to a submission, newest first.

    Example: assay overrides 0197c1de-…
    """
    with installed_client() as client:
        answer = client.get(f"/v1/submissions/{submission}/overrides")
    if json_:
        out.print_json(json.dumps(answer, ensure_ascii=False))
        return
    table = Table(
        Column("override", no_wrap=True), "question", "status", "points", "made", "reason", box=None
    )
    for each in answer["overrides"]:
        made = each["created_at"][:19].replace("T", " ")
        table.add_row(
            each["override_id"],
            escape(each["question_id"]),
            each["status"],
            _change(each),
            made,
            escape(each["reason"]),
        )
    out.print(table, soft_wrap=False)


def _points_of(marks: list[str]) -> dict[str, float]:
    stated: dict[str, float] = {}
    for each in marks:
        criterion, _, written = each.rpartition("=")
        if not criterion or not _NUMBER.fullmatch(written):
            hint = "CRITERION=POINTS"
            raise typer.BadParameter(f"{each!r} is no mark; write one such as c1=1.5", param_hint=hint)
        stated[criterion] = float(written)
    return stated


def _ended(client: "ApiClient", submission: str, override_id: str) -> dict[str, Any]:
    """The override once its saga has ended, or as it stands when that takes too long."""
    override: dict[str, Any] = {"override_id": override_id, "status": "pending"}
    give_up = time.monotonic() + WAIT_SECONDS
    while override["status"] == "pending" and time.monotonic() < give_up:
        time.sleep(_ASK_EVERY_SECONDS)
        known = client.get(f"/v1/submissions/{submission}/overrides")["overrides"]
        override = next((each for each in known if each["override_id"] == override_id), override)
    return override


def _say(submission: str, ended: dict[str, Any]) -> None:
    if ended["status"] == "completed":
        out.print(f"{escape(ended['question_id'])}: {_change(ended)} points.")
    elif ended["status"] == "pending":
        see = f"assay overrides {escape(submission)}"
        err.print(f"Not applied within {WAIT_SECONDS:.0f} s. What becomes of it is shown by: {see}")
    else:
        err.print(f"The marks were not changed: the override is {ended['status']}.")


def _change(override: dict[str, Any]) -> str:
    return f"{override['score_before']:g} → {override['score_after']:g}"

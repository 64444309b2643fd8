"""Handing in a batch and showing its outcome, in a terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from domain.errors import InvalidInput
from domain.exam import Exam
from domain.states import FileState, StateMachine
from runtime.client import ApiClient
from runtime.handing_in import (
    Submissions,
    TableColumns,
    abandon,
    hand_in,
    is_table,
    read_submissions,
    refuse_bad_names,
)

_USUAL_COLUMNS = TableColumns()
_SCORES = ("mean", "median", "lowest", "highest")
_BARS = "·▁▂▃▄▅▆▇█"
_HARDEST_SHOWN = 5
_DESCRIPTION_WIDTH = 70


def _ignore(_: object) -> None:
    """Nobody wants to hear it."""


def grade(
    client: ApiClient,
    exam: Path,
    files: Sequence[Path],
    *,
    console: Console,
    model: str,
    max_concurrent: int,
    name: str,
    limit_usd: str | None = None,
    columns: TableColumns = _USUAL_COLUMNS,
    on_read: Callable[[Submissions], None] = _ignore,
    on_refused: Callable[[str], None] = _ignore,
) -> str:
    """Hand in the exam and the files, and start the batch; answers its id.

    `.csv` files are tables, a row a student; `on_read` hears how they were read, before anything is handed
    in, and `on_refused` of each row that could not be. A batch that cannot be handed in whole is cancelled.
    """
    refuse_bad_names(files)
    exam_id = client.create_exam(exam)["id"]
    # the API has said what is wrong with the exam; only tables need its questions here
    prompts = _prompts(_read_exam(exam)) if any(map(is_table, files)) else {}
    submissions = read_submissions(files, prompts, columns)
    on_read(submissions)
    opening = {"kind": "grading", "exam_id": exam_id, "model": model, "max_concurrent": max_concurrent}
    opening |= {"name": name, "limit_usd": limit_usd}
    batch_id: str = client.post("/v1/batches", opening)["batch_id"]
    try:
        refused = hand_in(client, batch_id, submissions, console)
        client.post(f"/v1/batches/{batch_id}/complete")
    except BaseException:
        abandon(client, batch_id, console)
        raise
    for line in refused:
        on_refused(line)
    return batch_id


def _read_exam(path: Path) -> Exam:
    from runtime.exam_commands import read_file

    return read_file(path).exam()


def _prompts(exam: Exam) -> dict[str, str]:
    return {question.id: question.prompt for question in exam.questions}


def show_tables(submissions: Submissions, console: Console) -> None:
    """Which column of each table is read as what, and which questions have none."""
    for table in submissions.tables:
        mapping = table.mapping
        pairs = ", ".join(f"{question} from {column!r}" for question, column in mapping["columns"].items())
        rows = _counted(mapping["rows"], "student")
        said = f"{table.path}: {rows}, named by column {mapping['student_column']!r}; {pairs}."
        console.print(said, soft_wrap=True, markup=False)
        if missing := mapping["questions_without_column"]:
            console.print(
                f"[yellow]Warning[/yellow] {escape(str(table.path))} has no column for "
                f"{escape(', '.join(missing))}: every student gets 0 points there. "
                f"If it has one, say which: --map {escape(missing[0])}=COLUMN",
                soft_wrap=True,
            )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def estimate(
    client: ApiClient,
    exam: Path,
    files: Sequence[Path],
    model: str,
    columns: TableColumns = _USUAL_COLUMNS,
    on_refused: Callable[[str], None] = _ignore,
) -> dict[str, Any]:
    """What grading these files would cost, as the API says it; a table counts as its students.

    `on_refused` hears of the rows, and of the tables, that could not be handed in and are not counted.
    """
    from runtime.exam_commands import read_file

    document = read_file(exam)
    # the mistakes, before anything is asked
    prompts = _prompts(document.exam())
    unreadable: list[InvalidInput] = []
    submissions = read_submissions(files, prompts, columns, unreadable.append)
    if unreadable and not submissions.sizes:
        raise unreadable[0]
    for error in unreadable:
        on_refused(error.message)
    for line in (line for table in submissions.tables for line in table.refused):
        on_refused(line)
    asked = {"exam": document.value, "model": model, "files": submissions.sizes}
    estimated: dict[str, Any] = client.post("/v1/estimates", asked)
    return estimated


def show_estimate(estimated: Mapping[str, Any], console: Console) -> None:
    """Calls, tokens and dollars, as usual and at most."""
    table = Table("", *(_number(name) for name in ("calls", "tokens in", "tokens out", "USD")), box=None)
    for name, key in (("likely", "likely"), ("at most", "most")):
        costs = estimated[key]
        amounts = (f"{costs[each]:,}" for each in ("calls", "tokens_in", "tokens_out"))
        table.add_row(name, *amounts, costs["cost_est_usd"])
    console.print(f"{_counted(estimated['files'], 'file')} by {escape(estimated['model'])}")
    console.print(table)
    console.print(
        "At most: every reply as long as may be, and asked for again. A batch's limit is its own ceiling.",
        style="dim",
    )


def show_report(report: Mapping[str, Any], console: Console, *, rows: int | None = None) -> None:
    """The batch's marks, what needs a look, and what failed."""
    batch = report["batch"]
    counts = " · ".join(f"{state} {count}" for state, count in report["counts"].items() if count)
    console.print(f"[bold]{escape(batch['exam_title'] or batch['name'])}[/bold]  {batch['status']}  {counts}")
    scores = report["scores"]
    if scores["graded"]:
        console.print("Scores: " + ", ".join(f"{name} {scores[name]:g}" for name in _SCORES))
    _show_distribution(report, console)
    if report["advisory"]:
        console.print(
            "[yellow]Advisory: the marks of open questions are a model's proposals; a human decides.[/yellow]"
        )
    _show_questions(report, console)
    _show_hardest(report, console)
    _show_reasons(report, console)
    _show_submissions(report["submissions"], console, rows)


def _show_distribution(report: Mapping[str, Any], console: Console) -> None:
    counts = [each["count"] for each in report.get("distribution", {}).get("bins", ())]
    if highest := max(counts, default=0):
        # an empty tenth is told from a small one
        bars = "".join(_BARS[math.ceil(count * (len(_BARS) - 1) / highest)] for count in counts)
        console.print(f"Scores by tenths of the maximum: 0 % {bars} 100 %")


def _show_questions(report: Mapping[str, Any], console: Console) -> None:
    table = Table("question", *(_number(name) for name in ("graded", "mean", "of")), box=None)
    for each in report["questions"]:
        table.add_row(
            each["question_id"], str(each["graded"]), f"{each['mean_score']:.2f}", f"{each['max_score']:g}"
        )
    console.print(table)


def _show_hardest(report: Mapping[str, Any], console: Console) -> None:
    hardest = report.get("criteria_hardest_first", ())[:_HARDEST_SHOWN]
    if not hardest:
        return
    what = Column("what it asks for", no_wrap=True, overflow="ellipsis", max_width=_DESCRIPTION_WIDTH)
    table = Table(Column("hardest criteria", no_wrap=True), _number("share"), what, box=None)
    for each in hardest:
        place = f"{each['question_id']}/{each['criterion_id']}"
        table.add_row(place, f"{each['mean_share']:.0%}", escape(" ".join(each["description"].split())))
    console.print(table)


def _show_reasons(report: Mapping[str, Any], console: Console) -> None:
    reasons = [
        f"{each['kind'].replace('_', ' ')} {each['count']} times in {each['submissions']}"
        for each in report.get("review_reasons", ())
    ]
    if reasons:
        console.print(f"To be looked at: {report['needs_review']} submissions ({'; '.join(reasons)})")


def _number(name: str) -> Column:
    return Column(name, justify="right")


def _show_submissions(submissions: Sequence[Mapping[str, Any]], console: Console, rows: int | None) -> None:
    # one long name must not take the other columns' place
    name = Column("submission", overflow="fold", max_width=max(console.width // 2, 1))
    state, points = Column("state", no_wrap=True), Column("score", justify="right", no_wrap=True)
    table = Table(name, state, points, "look at", box=None)
    # what has failed comes first: it must not be among the rows that are left out
    for each in sorted(submissions, key=lambda each: each["state"] == FileState.COMPLETED)[:rows]:
        score = "" if each["score"] is None else f"{each['score']:g} of {each['max_score']:g}"
        reasons = each["failure_message"] or look_at(each["review_reasons"])
        table.add_row(escape(each["name"]), each["state"], score, escape(reasons))
    console.print(table)
    if rows is not None and len(submissions) > rows:
        console.print(f"… and {len(submissions) - rows} more.")


def look_at(reasons: Sequence[str]) -> str:
    """Review reasons such as `q6: low_confidence:c3`, gathered by what is the matter."""
    places: dict[str, dict[str, list[str]]] = {}
    for reason in reasons:
        question, _, what = reason.partition(": ")
        matter, _, criterion = what.partition(":")
        places.setdefault(matter, {}).setdefault(question, []).extend([criterion] if criterion else [])
    return "; ".join(
        f"{matter.replace('_', ' ')}: " + ", ".join(" ".join([q, *criteria]) for q, criteria in found.items())
        for matter, found in places.items()
    )


def show_machine(machine: StateMachine[Any], census: Mapping[str, int], console: Console) -> None:
    """A state machine's table, with how many are where."""
    table = Table("state", "now", "may become", box=None)
    for state, targets in machine.moves.items():
        legal = ", ".join(target for target in type(state) if target in targets)
        table.add_row(state, str(census.get(state, "")), legal or f"final; a re-run makes it {machine.rerun}")
    console.print(table)

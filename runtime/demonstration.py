"""The demonstration: a class's answers graded by the whole river, and its outcome checked."""

import time
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from domain.errors import AssayError
from domain.exam import read_exam
from domain.states import FILE_MACHINE
from domain.submission import read_submission
from runtime.client import ApiClient
from runtime.grading import grade, show_report
from runtime.local import Installation
from runtime.watching import watch_batch

_BATCH_PAGE = "/namespaces/{namespace}/workflows/batch%2F{batch_id}"
_ROWS_SHOWN = 12
_QUOTES_SHOWN = 6


def run_demonstration(
    installation: Installation, console: Console, progress: Console, *, json_: bool
) -> dict[str, Any]:
    """Grade, show and check; answers a summary and the invariants that are broken."""
    with (
        as_file(files("runtime.demo")) as folder,
        # no patience: after a Ctrl-C this thread is waited for, and the API is gone
        ApiClient(installation.api_url, installation.key, patience_seconds=0) as client,
    ):
        answers = sorted((folder / "answers").iterdir())
        began = time.monotonic()
        batch_id = grade(
            client,
            folder / "exam.yaml",
            answers,
            console=progress,
            model="local",
            max_concurrent=10,
            name="Demonstration",
        )
        page = batch_page(installation, batch_id)
        progress.print(f"Follow it in the Temporal Web UI: {page}", soft_wrap=True)
        state = watch_batch(client, batch_id, console=progress)
        seconds = round(time.monotonic() - began, 1)
        report = client.report(batch_id)
        marks = [
            client.get(f"/v1/batches/{batch_id}/files/{each['file_id']}/results")
            for each in client.files(batch_id)
        ]
        broken = list(_broken(folder, answers, state, report, marks))
    summary = {
        "batch_id": batch_id,
        "state": state,
        "files": report["total_files"],
        "completed": report["counts"]["completed"],
        "failed": report["counts"]["failed"],
        "needs_review": report["needs_review"],
        "seconds": seconds,
        "temporal_ui": page,
    }
    if not json_:
        _show(summary, report, marks, console)
    return {"summary": summary, "broken": broken}


def batch_page(installation: Installation, batch_id: str) -> str:
    """The batch's page in the Temporal Web UI."""
    return installation.temporal_ui_url + _BATCH_PAGE.format(
        namespace=installation.temporal_namespace, batch_id=batch_id
    )


def _show(
    summary: dict[str, Any], report: dict[str, Any], marks: list[dict[str, Any]], console: Console
) -> None:
    show_report(report, console, rows=_ROWS_SHOWN)
    console.print("\n[bold]Evidence, verbatim[/bold]")
    table = Table(Column("submission", no_wrap=True), "criterion", "points", "quote", box=None)
    for submission, question, criterion in list(_evidence(marks))[:_QUOTES_SHOWN]:
        points = f"{criterion['points']:g}/{criterion['max_points']:g}"
        where = f"{question['question_id']}/{criterion['criterion_id']}"
        table.add_row(
            escape(submission), where, points, escape(shorten(criterion["quote"], 90, placeholder=" …"))
        )
    console.print(table)
    console.print(
        f"\n{summary['files']} files in {summary['seconds']} s, uploading included: "
        f"{summary['completed']} graded, {summary['failed']} unreadable, "
        f"{summary['needs_review']} for review."
    )
    console.print(f"Temporal Web UI: {summary['temporal_ui']}", soft_wrap=True)


def _evidence(marks: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """One well-earned criterion of an open question for each submission, not always the same one."""
    for number, mark in enumerate(marks):
        earned = [
            (question, criterion)
            for question in mark["results"]
            for criterion in question["criteria"]
            if question["advisory"] and criterion["quote"] and criterion["points"]
        ]
        if earned:
            yield mark["name"], *earned[number * 3 % len(earned)]


def _broken(
    folder: Path, answers: list[Path], state: str, report: dict[str, Any], marks: list[dict[str, Any]]
) -> Iterator[str]:
    """What is not as it must be: counts, final states, sums, quotes."""
    counts = report["counts"]
    if sum(counts.values()) != len(answers):
        yield f"{len(answers)} files were handed in, the counts add up to {sum(counts.values())}"
    if unfinished := [each["name"] for each in marks if each["state"] not in FILE_MACHINE.final]:
        yield f"not in a final state: {', '.join(unfinished)}"
    if sorted(each["name"] for each in marks) != [path.name for path in answers]:
        yield "the files that came out are not the files that went in"
    exam = read_exam(yaml.safe_load((folder / "exam.yaml").read_text()))
    ids = [question.id for question in exam.questions]
    unreadable = 0
    for mark in marks:
        path = folder / "answers" / mark["name"]
        try:
            given = read_submission(path.name, path.read_bytes(), ids)
        except AssayError:
            unreadable += 1
            continue
        yield from _broken_marks(mark, given)
    if counts["failed"] != unreadable:
        yield f"{unreadable} files are unreadable, {counts['failed']} failed"
    if state != ("partial" if unreadable else "completed"):
        yield f"the batch ended {state}"


def _broken_marks(mark: dict[str, Any], given: dict[str, str]) -> Iterator[str]:
    total = round(sum(each["score"] for each in mark["results"]), 2)
    if mark["score"] != total:
        yield f"{mark['name']}: score {mark['score']} is not the sum {total}"
    for question in mark["results"]:
        answer = given.get(question["question_id"], "")
        for criterion in question["criteria"]:
            if criterion["quote"] not in answer:
                yield f"{mark['name']} {question['question_id']}: a quote is not in the answer"

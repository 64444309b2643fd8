"""The demonstration: two classes' answers graded by the whole river, compared, and their outcome checked."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from runtime.client import ApiClient
from runtime.demo.classes import SchoolClass, open_classes
from runtime.demo.comparison import Comparison, compare
from runtime.demo.invariants import Outcome, broken_invariants, is_suspected
from runtime.demo.reading import read_class_answers
from runtime.demo.showing import show_outcome
from runtime.grading import grade
from runtime.local import Installation
from runtime.watching import watch_batch

_BATCH_PAGE = "/namespaces/{namespace}/workflows/batch%2F{batch_id}"
_MAX_CONCURRENT = 10
_RESULTS_AT_ONCE = 8


def run_demonstration(
    installation: Installation,
    folder: Path,
    console: Console,
    progress: Console,
    *,
    json_: bool,
    staying: bool,
) -> dict[str, Any]:
    """Grade, compare, show and check; answers a summary and the invariants that are broken.

    The reports for reading are written to `folder`; `staying` says that the servers stay up afterwards.
    """
    # no patience: after a Ctrl-C this thread is waited for, and the API is gone
    with (
        open_classes() as classes,
        ApiClient(installation.api_url, installation.key, patience_seconds=0) as client,
    ):
        began = time.monotonic()
        batches = {each.name: _hand_in(client, each, installation, progress) for each in classes}
        states = {name: watch_batch(client, batch_id, console=progress) for name, batch_id in batches.items()}
        seconds = round(time.monotonic() - began, 1)
        outcomes = [_gather(client, each, batches[each.name], states[each.name], folder) for each in classes]
    compared = [
        (outcome, compare(outcome.school_class, outcome.results, outcome.answers)) for outcome in outcomes
    ]
    summary = _summary(installation, seconds, compared)
    if not json_:
        _show(summary, compared, console, staying=staying)
    return {
        "summary": summary,
        "broken": [each for outcome in outcomes for each in broken_invariants(outcome)],
    }


def batch_page(installation: Installation, batch_id: str) -> str:
    """The batch's page in the Temporal Web UI."""
    return installation.temporal_ui_url + _BATCH_PAGE.format(
        namespace=installation.temporal_namespace, batch_id=batch_id
    )


def report_address(installation: Installation, batch_id: str) -> str:
    """Where the API serves the batch's report for reading."""
    return f"{installation.api_url}/v1/batches/{batch_id}/report?format=html"


def _hand_in(
    client: ApiClient, school_class: SchoolClass, installation: Installation, progress: Console
) -> str:
    """Hand in as users do, and do not wait: both classes are graded at the same time."""
    batch_id = grade(
        client,
        school_class.exam_file,
        school_class.answer_files,
        console=progress,
        model="local",
        max_concurrent=_MAX_CONCURRENT,
        name=f"Demonstration, {school_class.name}",
    )
    page = batch_page(installation, batch_id)
    progress.print(f"Follow {school_class.name} in the Temporal Web UI: {page}", soft_wrap=True)
    return batch_id


def _gather(client: ApiClient, school_class: SchoolClass, batch_id: str, state: str, folder: Path) -> Outcome:
    page = folder / f"{batch_id}.html"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # marks of people: nobody else reads them
    page.touch(mode=0o600)
    page.write_bytes(client.report_file(batch_id, "html"))
    return Outcome(
        school_class=school_class,
        batch_id=batch_id,
        state=state,
        report=client.report(batch_id),
        results=_results(client, batch_id),
        answers=asyncio.run(read_class_answers(school_class)),
        page=page,
    )


def _results(client: ApiClient, batch_id: str) -> list[dict[str, Any]]:
    """Every submission's marks, in the order of the files."""
    paths = [f"/v1/batches/{batch_id}/files/{each['file_id']}/results" for each in client.files(batch_id)]
    with ThreadPoolExecutor(_RESULTS_AT_ONCE) as pool:
        return list(pool.map(client.get, paths))


# --- what it comes to --------------------------------------------------------------------------------


def _summary(
    installation: Installation, seconds: float, compared: list[tuple[Outcome, Comparison]]
) -> dict[str, Any]:
    classes = [_class_summary(installation, *each) for each in compared]
    sums = {
        name: sum(each[name] for each in classes) for name in ("files", "completed", "failed", "needs_review")
    }
    return {**sums, "seconds": seconds, "classes": classes}


def _class_summary(installation: Installation, outcome: Outcome, comparison: Comparison) -> dict[str, Any]:
    report = outcome.report
    return {
        "class": outcome.school_class.name,
        "title": outcome.school_class.exam.title,
        "batch_id": outcome.batch_id,
        "state": outcome.state,
        "files": report["total_files"],
        "completed": report["counts"]["completed"],
        "failed": report["counts"]["failed"],
        "needs_review": report["needs_review"],
        "advisory": report["advisory"],
        "agreement": comparison.document(),
        "review_queue": list(_queue(report)),
        "suspected_injections": [each["name"] for each in outcome.results if is_suspected(each)],
        "broken_files": list(_broken_files(report)),
        "report": str(outcome.page),
        "report_api": report_address(installation, outcome.batch_id),
        "temporal_ui": batch_page(installation, outcome.batch_id),
    }


def _queue(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Who waits for a person and why, the most urgent first."""
    reasons = {each["submission_id"]: each["review_reasons"] for each in report["submissions"]}
    for each in report["review_queue"]:
        yield {"name": each["name"], "reasons": reasons[each["submission_id"]]}


def _broken_files(report: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for each in report["submissions"]:
        if each["state"] == "failed":
            yield {"name": each["name"], "code": each["failure_code"], "message": each["failure_message"]}


def _show(
    summary: Mapping[str, Any],
    compared: list[tuple[Outcome, Comparison]],
    console: Console,
    *,
    staying: bool,
) -> None:
    for outcome, comparison in compared:
        show_outcome(outcome, comparison, console)
    console.rule()
    console.print(
        f"{summary['files']} submissions of two classes in {summary['seconds']} s, uploading included: "
        f"{summary['completed']} graded, {summary['failed']} unreadable, "
        f"{summary['needs_review']} for review."
    )
    for each in summary["classes"]:
        page = Path(each["report"]).as_uri()
        console.print(f"[bold]Report, {each['class']}[/bold]: {page}", soft_wrap=True)
        if staying:
            console.print(f"  from the API, with its key: {each['report_api']}", soft_wrap=True)
        console.print(f"  Temporal Web UI: {each['temporal_ui']}", soft_wrap=True)

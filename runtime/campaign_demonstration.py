"""The demonstration of a diagnosis: a failed update campaign beside a healthy one, and what must be found."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from domain.states import BatchState
from runtime.client import ApiClient
from runtime.demo.campaign import CAUSES, failed_logs, healthy_logs
from runtime.demonstration import batch_page, report_address
from runtime.diagnosing import diagnose, show_diagnosis
from runtime.local import Installation
from runtime.watching import watch_batch

BASELINE = "demonstration-healthy"
_VEHICLE = "^(V[0-9]+)-"
_MAX_CONCURRENT = 10


def run_campaign_demonstration(
    installation: Installation,
    folder: Path,
    console: Console,
    progress: Console,
    *,
    json_: bool,
    staying: bool,
) -> dict[str, Any]:
    """Diagnose, show and check; answers a summary and what was not found or invented.

    The reports for reading are written to `folder`; `staying` says that the servers stay up afterwards.
    """
    with (
        TemporaryDirectory(prefix="assay-campaign-") as logs,
        ApiClient(installation.api_url, installation.key, patience_seconds=0) as client,
    ):
        began = time.monotonic()
        first = _diagnosed(
            client, installation, progress, "February: all updated", healthy_logs(), Path(logs)
        )
        client.put(f"/v1/baselines/{BASELINE}", {"batch_id": first["batch"]["batch_id"]})
        again = _diagnosed(
            client, installation, progress, "February again", healthy_logs(), Path(logs), baseline=BASELINE
        )
        failed = _diagnosed(
            client,
            installation,
            progress,
            "March: failed campaign",
            failed_logs(),
            Path(logs),
            baseline=BASELINE,
        )
        seconds = round(time.monotonic() - began, 1)
        pages = [_page(client, each, folder) for each in (again, failed)]
    broken = [*_not_unremarkable(again), *_not_found(failed)]
    if not json_:
        for report, page in zip((again, failed), pages, strict=True):
            _show(report, page, installation, console, staying=staying)
        console.print(f"Three batches of {failed['total_files']} logs in {seconds} s, uploading included.")
    return {"summary": _summary(installation, (first, again, failed), pages, seconds), "broken": broken}


def _diagnosed(
    client: ApiClient,
    installation: Installation,
    progress: Console,
    name: str,
    logs: Mapping[str, bytes],
    folder: Path,
    *,
    baseline: str | None = None,
) -> dict[str, Any]:
    paths = []
    for file_name, content in logs.items():
        paths.append(folder / file_name)
        paths[-1].write_bytes(content)
    batch_id = diagnose(
        client,
        paths,
        console=progress,
        model="local",
        max_concurrent=_MAX_CONCURRENT,
        name=f"Demonstration, {name}",
        baseline=baseline,
        vehicle=_VEHICLE,
    )
    progress.print(f"{name} in the Temporal Web UI: {batch_page(installation, batch_id)}", soft_wrap=True)
    watch_batch(client, batch_id, console=progress)
    report: dict[str, Any] = client.report(batch_id)
    return report


def _page(client: ApiClient, report: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    page = folder / f"{report['batch']['batch_id']}.html"
    page.touch(mode=0o600)
    page.write_bytes(client.report_file(report["batch"]["batch_id"], "html"))
    return page


# --- what must hold ----------------------------------------------------------------------------------


def _not_unremarkable(report: Mapping[str, Any]) -> Iterator[str]:
    """A healthy batch beside a healthy baseline: nothing stands out, and nothing is invented."""
    yield from _not_completed(report)
    diagnosis = report["diagnosis"] or {}
    if diagnosis.get("verdict") != "unremarkable" or diagnosis.get("findings"):
        yield f"the healthy batch was called {diagnosis.get('verdict')}"


def _not_found(report: Mapping[str, Any]) -> Iterator[str]:
    """Each hidden cause is found, on its vehicles, by lines; and no other one."""
    yield from _not_completed(report)
    found = {each["cause_id"]: each for each in (report["diagnosis"] or {}).get("findings", ())}
    for cause, vehicles in CAUSES.items():
        finding = found.pop(cause, None)
        if finding is None:
            yield f"{cause} was not found"
        elif set(finding["vehicles"]) != set(vehicles):
            yield f"{cause} was found on {', '.join(finding['vehicles'])} instead of {', '.join(vehicles)}"
        elif not finding["evidence"]:
            yield f"{cause} has no evidence"
    for cause in found:
        yield f"{cause} was invented"


def _not_completed(report: Mapping[str, Any]) -> Iterator[str]:
    batch = report["batch"]
    if batch["status"] != BatchState.COMPLETED:
        yield f"batch {batch['batch_id']} ended {batch['status']}"


# --- what it comes to --------------------------------------------------------------------------------


def _show(
    report: Mapping[str, Any], page: Path, installation: Installation, console: Console, *, staying: bool
) -> None:
    console.rule()
    show_diagnosis(report, console)
    console.print(f"[bold]Report[/bold]: {page.as_uri()}", soft_wrap=True)
    if staying:
        address = report_address(installation, report["batch"]["batch_id"])
        console.print(f"  from the API, with its key: {address}", soft_wrap=True)


def _summary(
    installation: Installation, reports: tuple[dict[str, Any], ...], pages: list[Path], seconds: float
) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "batches": [
            {
                "batch_id": each["batch"]["batch_id"],
                "name": each["batch"]["name"],
                "state": each["batch"]["status"],
                "files": each["total_files"],
                "verdict": (each["diagnosis"] or {}).get("verdict"),
                "risk_level": (each["diagnosis"] or {}).get("risk_level"),
                "causes": {
                    finding["cause_id"]: finding["vehicles"]
                    for finding in (each["diagnosis"] or {}).get("findings", ())
                },
                "temporal_ui": batch_page(installation, each["batch"]["batch_id"]),
            }
            for each in reports
        ],
        "reports": [str(page) for page in pages],
    }

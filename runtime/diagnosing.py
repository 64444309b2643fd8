"""Handing in a batch of logs and showing its diagnosis, in a terminal."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Column, Table

from api.html import visible
from domain.diagnosis import RiskLevel, Verdict
from domain.errors import InvalidInput
from runtime.client import ApiClient
from runtime.handing_in import abandon, refuse_bad_names

_UPLOADS_AT_ONCE = 8
_SHOWN_LINES = 3
_SHOWN_ANOMALIES = 12
_TITLE_WIDTH = 64
_RISK_STYLES = {
    RiskLevel.NONE: "green",
    RiskLevel.LOW: "green",
    RiskLevel.MEDIUM: "yellow",
    RiskLevel.HIGH: "red",
    RiskLevel.CRITICAL: "bold red",
}


def diagnose(
    client: ApiClient,
    files: Sequence[Path],
    *,
    console: Console,
    model: str,
    max_concurrent: int,
    name: str = "",
    baseline: str | None = None,
    vehicle: str | None = None,
    limit_usd: str | None = None,
) -> str:
    """Hand in the logs and start the batch; answers its id.

    `vehicle` is a pattern whose first group in a file's name is the vehicle's id. A batch that cannot be
    handed in whole is cancelled.
    """
    refuse_bad_names(files)
    vehicles = vehicle_ids(files, vehicle)
    opening = {"kind": "diagnosis", "model": model, "max_concurrent": max_concurrent, "name": name}
    opening |= {"baseline": baseline, "limit_usd": limit_usd}
    batch_id: str = client.post("/v1/batches", opening)["batch_id"]
    try:
        _upload(client, batch_id, vehicles, console)
        client.post(f"/v1/batches/{batch_id}/complete")
    except BaseException:
        abandon(client, batch_id, console)
        raise
    return batch_id


def vehicle_ids(files: Sequence[Path], pattern: str | None) -> dict[Path, str]:
    """Each file's vehicle; raises `InvalidInput` for a pattern that is none, or fits no file at all."""
    if pattern is None:
        return dict.fromkeys(files, "")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InvalidInput(f"--vehicle: {pattern!r} is no pattern: {error}.", field="vehicle") from error
    if compiled.groups < 1:
        raise InvalidInput(
            f"--vehicle: {pattern!r} has no group; put the vehicle's id in brackets, as in '(V[0-9]+)-'.",
            field="vehicle",
        )
    found = {path: compiled.search(path.name) for path in files}
    if not any(found.values()):
        raise InvalidInput(f"--vehicle: {pattern!r} fits no file's name.", field="vehicle")
    return {path: (match[1] or "") if match else "" for path, match in found.items()}


def _upload(client: ApiClient, batch_id: str, vehicles: Mapping[Path, str], console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        Progress(*columns, console=console, transient=True) as bar,
        ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool,
    ):
        task = bar.add_task("uploading", total=sum(path.stat().st_size for path in vehicles))

        def upload(path: Path) -> int:
            client.upload(batch_id, path, vehicle_id=vehicles[path])
            return path.stat().st_size

        for size in pool.map(upload, vehicles):
            bar.advance(task, size)


# --- for people --------------------------------------------------------------------------------------


def _shown(text: str) -> str:
    """A text of others, as it stands: in a log may be markup, and signs that steer a terminal."""
    return escape(visible(text))


def show_diagnosis(report: Mapping[str, Any], console: Console) -> None:
    """What is the matter, by which lines, and what stands out."""
    _show_head(report, console)
    diagnosis = report["diagnosis"]
    if diagnosis is None:
        console.print("[yellow]There is no diagnosis.[/yellow]")
    else:
        _show_verdict(diagnosis, console)
        for finding in diagnosis["findings"]:
            _show_finding(finding, console)
        _show_unexplained(diagnosis, console)
    _show_anomalies(report["anomalies"], console)
    for each in report["files"]:
        if each["state"] == "failed":
            console.print(
                f"[red]Failed[/red] {_shown(each['name'])}: {_shown(each['failure_message'] or '')}",
                soft_wrap=True,
            )


def _show_head(report: Mapping[str, Any], console: Console) -> None:
    batch, summary = report["batch"], report["summary"]
    counts = " · ".join(f"{state} {count}" for state, count in report["counts"].items() if count)
    console.print(f"[bold]{_shown(batch['name'] or batch['batch_id'])}[/bold]  {batch['status']}  {counts}")
    if summary is None:
        return
    coverage = f"{summary['parsed_lines'] / summary['lines']:.1%}" if summary["lines"] else "nothing"
    baseline = report["baseline"]
    compared = (
        f"compared with {_shown(baseline['name'] or baseline['batch_id'])} ({baseline['lines']:,} lines)"
        if baseline
        else "compared with no baseline"
    )
    console.print(
        f"{summary['lines']:,} lines in {summary['template_count']:,} templates, {coverage} of them read; "
        f"{compared}; {summary['anomaly_count']:,} anomalies"
    )


def _show_verdict(diagnosis: Mapping[str, Any], console: Console) -> None:
    words = {
        Verdict.ROOT_CAUSE: f"{len(diagnosis['findings'])} root cause"
        + "s" * (len(diagnosis["findings"]) != 1),
        Verdict.INSUFFICIENT_EVIDENCE: "insufficient evidence",
        Verdict.UNREMARKABLE: "nothing stands out",
    }
    risk = RiskLevel(diagnosis["risk_level"])
    console.print(
        f"[bold]Diagnosis: {words[Verdict(diagnosis['verdict'])]}[/bold], "
        f"risk [{_RISK_STYLES[risk]}]{risk}[/]: {_shown(diagnosis['risk_rule'])}"
    )
    console.print(_shown(diagnosis["summary"]))
    if diagnosis["rule_based"]:
        console.print("[yellow]By rules, without a large model.[/yellow]")
    if diagnosis["reused_from"]:
        console.print(f"As diagnosed before, in batch {diagnosis['reused_from']}.")


def _show_finding(finding: Mapping[str, Any], console: Console) -> None:
    vehicles = ", ".join(finding["vehicles"])
    console.print()
    console.print(
        f"[bold]{_shown(finding['title'])}[/bold]  ({finding['confidence']:.0%} sure)"
        + (f"  vehicles {_shown(vehicles)}" if vehicles else "")
    )
    console.print(_shown(finding["explanation"]))
    for quote in finding["evidence"][:_SHOWN_LINES]:
        console.print(f"  {_shown(place_of(quote))}: {_shown(quote['text'])}", style="dim", soft_wrap=True)
    if len(finding["evidence"]) > _SHOWN_LINES:
        console.print(f"  … and {len(finding['evidence']) - _SHOWN_LINES} more lines", style="dim")
    for each in finding["recommendations"]:
        console.print(f"  → {_shown(each)}")


def place_of(quote: Mapping[str, Any]) -> str:
    """Where a line stands: `file:line`, with the member of an archive."""
    member = f"/{quote['member']}" if quote["member"] else ""
    return f"{quote.get('name') or quote['file_id']}{member}:{quote['line']}"


def _show_unexplained(diagnosis: Mapping[str, Any], console: Console) -> None:
    if unexplained := diagnosis["unexplained"]:
        console.print(f"\nNot explained: {len(unexplained)} anomalies ({_shown(', '.join(unexplained[:5]))})")


def _show_anomalies(anomalies: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not anomalies:
        return
    title = Column("what stands out", no_wrap=True, overflow="ellipsis", max_width=_TITLE_WIDTH)
    table = Table("code", "change", Column("count", justify="right"), title, "vehicles", box=None)
    for each in anomalies[:_SHOWN_ANOMALIES]:
        vehicles = ", ".join(each["vehicles"])
        table.add_row(
            each["code"], each["change"], f"{each['count']:,}", _shown(each["title"]), _shown(vehicles)
        )
    console.print()
    console.print(table)
    if len(anomalies) > _SHOWN_ANOMALIES:
        console.print(f"… and {len(anomalies) - _SHOWN_ANOMALIES} more.")

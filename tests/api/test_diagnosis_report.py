"""The report of a diagnosis batch, over HTTP and as a page."""

import asyncio
import csv
import io
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from api.dependencies import Services
from api.diagnosis_page import coverage, diagnosis_page, place
from api.report_reading import WrittenReports, read_report, written_report
from api.reports import _written
from api.singleflight import SingleFlight
from db.postgres.diagnosis_reports import PostgresDiagnosisReports
from db.postgres.documents import jsonb
from db.postgres.logs import PostgresSummaries
from domain.diagnosis import Anomaly, Baseline, BatchSummary, Change, Diagnosis, Finding, RiskLevel, Verdict
from domain.documents import plain
from domain.gathering import Gathering
from domain.logs import Level, LogFile
from runtime.resources import Resources
from runtime.server import services
from tests.api.report_documents import FOREIGN, SCRIPT
from tests.domain.parsed_logs import parsed_log

DIAGNOSE_SQL = """
INSERT INTO ai_diagnoses (batch_id, recorded_at, verdict, signature, model, thread_id, epoch, document)
VALUES (%s, CASE WHEN %s THEN now() END, 'root_cause', 'x', 'local', 'thread', 1, %s)
"""
Batch = Callable[..., Awaitable[tuple[str, BatchSummary]]]


@pytest.fixture
def diagnosed(api: httpx.AsyncClient, session_resources: Resources) -> Batch:
    """Makes a final batch of two logs with a summary and a diagnosis, official or not."""

    async def made(official: bool = True) -> tuple[str, BatchSummary]:
        opened = await api.post("/v1/batches", json={"kind": "diagnosis", "name": "Campaign 7"})
        batch_id = str(opened.json()["batch_id"])
        url = f"/v1/batches/{batch_id}"
        files = [(await api.put(f"{url}/files/{each}", content=b"x")).json() for each in ("=a.log", "b.log")]
        (await api.post(f"{url}/cancel")).raise_for_status()
        summary = summary_of(batch_id, [each["file_id"] for each in files])
        await PostgresSummaries(session_resources.postgres).write(summary, "key", "sha")
        diagnosis = a_diagnosis(summary.anomalies[0])
        await session_resources.postgres.run(DIAGNOSE_SQL, [batch_id, official, jsonb(diagnosis)])
        return batch_id, summary

    return made


def summary_of(batch_id: str, file_ids: list[str]) -> BatchSummary:
    gathering = Gathering()
    for index, file_id in enumerate(file_ids):
        counts = {(Level.INFO, "door <*> opened"): 40, (Level.ERROR, f"=slot {SCRIPT} failed"): index}
        gathering.add(LogFile(file_id, f"{index}.log", "key", 1, vehicle_id=f"v{index}"), parsed_log(counts))
    gathering.add_baseline(LogFile("b", "b.log", "key", 1), parsed_log({(Level.INFO, "door <*> opened"): 40}))
    return gathering.summary(batch_id, 1, Baseline("0197c1de-2222-7000-8000-000000000000", "week 1"))


def a_diagnosis(anomaly: Anomaly) -> Diagnosis:
    finding = Finding(
        "cause", "The slot", FOREIGN, 0.8, (anomaly.code,), ("v1",), ("Sign it again.",), anomaly.quotes
    )
    rule = "A device may not start."
    return Diagnosis(Verdict.ROOT_CAUSE, "It failed.", RiskLevel.HIGH, rule, (finding,), rule_based=True)


async def test_a_report_counts_the_files_and_names_the_lines(
    api: httpx.AsyncClient, diagnosed: Batch
) -> None:
    batch_id, summary = await diagnosed()

    report = (await api.get(f"/v1/batches/{batch_id}/report")).json()

    assert report["total_files"] == sum(report["counts"].values()) == len(report["files"]) == 2
    assert [each["name"] for each in report["files"]] == ["=a.log", "b.log"]
    assert report["summary"]["lines"] == summary.lines
    assert report["baseline"] == {
        "batch_id": summary.baseline.batch_id,
        "name": "week 1",
        "files": 1,
        "lines": 40,
    }  # type: ignore[union-attr]  # it has one
    [anomaly] = report["anomalies"]
    assert (anomaly["code"], anomaly["change"]) == (summary.anomalies[0].code, "new")
    [evidence] = report["diagnosis"]["findings"][0]["evidence"]
    assert (evidence["name"], evidence["line"]) == ("b.log", summary.anomalies[0].quotes[0].line)
    assert report["diagnosis"]["cost_usd"] == "0.00"
    assert report["usage"]["cost_usd"] == "0.00"


async def test_a_diagnosis_that_is_not_official_is_not_in_the_report(
    api: httpx.AsyncClient, diagnosed: Batch
) -> None:
    batch_id, _ = await diagnosed(official=False)

    assert (await api.get(f"/v1/batches/{batch_id}/report")).json()["diagnosis"] is None
    assert "There is no diagnosis" in (await api.get(f"/v1/batches/{batch_id}/report?format=html")).text


@pytest.mark.parametrize(
    ("table", "rows", "cell"),
    [
        (None, 1, ("title", f"'=slot {SCRIPT} failed")),
        ("templates", 2, ("text", "door <*> opened")),
        ("vehicles", 2, ("vehicle_id", "v1")),
        ("files", 2, ("name", "'=a.log")),
    ],
)
async def test_each_table_is_a_csv_that_no_spreadsheet_runs(
    api: httpx.AsyncClient, diagnosed: Batch, table: str | None, rows: int, cell: tuple[str, str]
) -> None:
    batch_id, _ = await diagnosed()
    asked = {"format": "csv"} | ({"table": table} if table else {})

    answer = await api.get(f"/v1/batches/{batch_id}/report", params=asked)

    assert answer.content.startswith(b"\xef\xbb\xbf")
    found = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))
    assert len(found) == rows
    assert found[0][cell[0]] == cell[1]


@pytest.mark.parametrize(
    ("asked", "field"),
    [({"table": "files"}, "table"), ({"detail": "criteria"}, "detail")],
)
async def test_what_a_diagnosis_batch_does_not_have_is_refused(
    api: httpx.AsyncClient, diagnosed: Batch, asked: dict[str, str], field: str
) -> None:
    batch_id, _ = await diagnosed()

    answer = await api.get(f"/v1/batches/{batch_id}/report", params=asked)

    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize("table", ["files", "anomalies"])
async def test_a_grading_batch_has_no_table_of_logs(
    api: httpx.AsyncClient, batch_id: str, table: str
) -> None:
    answer = await api.get(f"/v1/batches/{batch_id}/report", params={"format": "csv", "table": table})

    assert (answer.status_code, answer.json()["field"]) == (422, "table")


async def test_a_report_is_computed_once_for_all_processes_and_copied_until_it_changes(
    diagnosed: Batch, session_resources: Resources
) -> None:
    batch_id, _ = await diagnosed()
    computed = 0

    class CountedReports(PostgresDiagnosisReports):
        async def report(self, tenant_id: str, batch_id: str) -> dict[str, Any]:
            nonlocal computed
            computed += 1
            await asyncio.sleep(0.02)
            return await super().report(tenant_id, batch_id)

    one = replace(services(session_resources), diagnosis_reports=CountedReports(session_resources.postgres))
    processes = [
        replace(
            one,
            reports=SingleFlight(),
            report_writings=SingleFlight(),
            written_reports=WrittenReports(asyncio.get_running_loop().time),
        )
        for _ in range(2)
    ]

    def write(report: Any) -> Any:
        return _written(report, chosen="json", table=None, now=datetime.now(UTC))

    async def read(process: Services) -> bytes:
        mark = await process.report_cache.newest_mark(batch_id)
        return (await written_report(process, ("local", batch_id, "json"), mark, write)).body

    async def read_all() -> set[bytes]:
        return set(await asyncio.gather(*(read(each) for each in processes for _ in range(50))))

    first = await read_all()
    assert (computed, len(first)) == (1, 1)
    for _ in range(3):
        assert await read_all() == first
    copies = [
        each.written_reports.find(("local", batch_id, "json"), await one.report_cache.newest_mark(batch_id))
        for each in processes
    ]
    assert all(copies)
    assert computed == 1

    await session_resources.postgres.run("UPDATE batches SET name = 'Renamed' WHERE id = %s", [batch_id])
    await one.report_cache.forget(batch_id)

    [after] = await read_all()
    assert b"Renamed" in after
    assert computed == 2
    with pytest.raises(Exception, match="There is no batch"):
        await read_report(processes[0], "somebody-else", batch_id)


def test_a_page_shows_what_was_found_and_obeys_no_log() -> None:
    quote = {"file_id": "f", "name": SCRIPT, "member": "inner.log", "line": 7, "text": SCRIPT, "at": ""}
    report = a_report(quote)

    page = diagnosis_page(report, generated_at=datetime(2026, 1, 12, tzinfo=UTC))

    assert "<script" not in page
    assert f"{SCRIPT}:inner.log:7".replace("<", "&lt;").replace(">", "&gt;") in page
    assert "Rule-based." in page
    assert "Not everything was read." in page
    assert "99.99 %" in page
    assert "An equal case." in page
    assert page == diagnosis_page(report, generated_at=datetime(2026, 1, 12, tzinfo=UTC))


def a_report(quote: dict[str, Any]) -> dict[str, Any]:
    gathering = Gathering()
    parsed = parsed_log({(Level.FATAL, f"{SCRIPT} <*>"): 3, (Level.INFO, "door"): 19_997}, incomplete="cut")
    gathering.add(LogFile("f", SCRIPT, "key", 1, vehicle_id=SCRIPT), replace(parsed, lines=20_001))
    summary = plain(gathering.summary("b", 1))
    anomaly = gathering.summary("b", 1).anomalies[0]
    assert anomaly.change is Change.RULE
    for each in (*summary["anomalies"], *summary["templates"]):
        each["quotes"] = [quote]
    diagnosis = plain(replace(a_diagnosis(anomaly), reused_from="earlier"))
    diagnosis["findings"][0]["evidence"] = [quote]
    return {
        "batch": {
            "batch_id": "b",
            "name": SCRIPT,
            "status": "completed",
            "kind": "diagnosis",
            "model": "local",
            "generation": 1,
            "failure_code": None,
        },
        "counts": {},
        "total_files": 1,
        "diagnosis": diagnosis,
        "summary": summary,
        "baseline": None,
        **{name: summary[name] for name in ("anomalies", "templates", "vehicles", "timeline")},
        "failures": [{"code": "unreadable_log", "count": 1, "message": SCRIPT}],
        "files": [
            {
                "name": SCRIPT,
                "state": "failed",
                "vehicle_id": "",
                "format": None,
                "lines": None,
                "coverage": None,
                "failure_message": SCRIPT,
                "incomplete": None,
            }
        ],
        "usage": {"tokens_in": 1, "tokens_out": 2, "cost_nanodollars": 3, "settling_nanodollars": 0},
        "timing": {"opened_at": "2026-01-12T08:00:00+00:00", "completed_at": None, "duration_seconds": None},
    }


@pytest.mark.parametrize(
    ("share", "shown"), [(1, "100 %"), (0.999999, "99.99 %"), (0.5, "50.00 %"), (None, "–")]
)
def test_what_is_not_all_is_never_shown_as_all(share: float | None, shown: str) -> None:
    assert coverage(share) == shown


def test_quotes_keep_their_file_when_it_has_no_name() -> None:
    assert place({"name": "", "file_id": "f", "member": "", "line": 3}) == "f:3"

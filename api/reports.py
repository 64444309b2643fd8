"""The report of a batch: JSON, CSV for spreadsheets, and a page for reading and printing."""

import asyncio
import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.batches import CountsView
from api.dependencies import Reader, Services, ServicesOf, authenticate, check_id, secret_of
from api.diagnosis_page import diagnosis_page
from api.diagnosis_report import DiagnosisReport, DiagnosisTable, diagnosis_table
from api.errors import problems
from api.html import CONTENT_SECURITY_POLICY
from api.money import with_usd
from api.report_page import report_page
from api.report_reading import Report as Read
from api.report_reading import WrittenReport, read_report, written_report
from api.spreadsheets import csv_report
from api.wire import BatchId
from domain.batch import BatchKind, Counts
from domain.errors import AssayError, InvalidInput

router = APIRouter(prefix="/v1/batches", tags=["reports"])

Format = Literal["json", "csv", "html"]
_TYPES: Mapping[str, Format] = {
    "application/json": "json",
    "*/*": "json",
    "text/csv": "csv",
    "text/html": "html",
}
_PAGE_HEADERS = {
    "Content-Security-Policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # what students wrote and what vehicles logged stays out of caches that others share
    "Cache-Control": "private, no-cache",
    "Vary": "Accept",
}
_PATH = re.compile(r"/v1/batches/(?P<batch_id>[^/]+)/report")
_QUALITY = re.compile(r";\s*q=([01](?:\.\d{0,3})?)\s*$")

_ID = "0197c1de-1111-7000-8000-000000000000"
_ROW: dict[str, Any] = {
    "submission_id": "0197c1de-3333-7000-8000-000000000000",
    "name": "李雷.txt",
    "state": "completed",
    "score": 3.5,
    "max_score": 4.0,
    "needs_review": False,
    "review_reasons": [],
    "failure_code": None,
    "failure_message": None,
    "questions": {"q1": 3.5},
}
_REPORT: dict[str, Any] = {
    "batch": {"batch_id": _ID, "status": "completed", "name": "Networks, midterm", "model": "local"},
    "counts": {**vars(Counts()), "completed": 1},
    "total_files": 1,
    "needs_review": 0,
    "advisory": False,
    "scores": {"graded": 1, "mean": 3.5, "median": 3.5, "lowest": 3.5, "highest": 3.5},
    "distribution": {
        "bins": [{"from": n / 10, "to": (n + 1) / 10, "count": int(n == 8)} for n in range(10)],
        "standard_deviation": None,
        "lower_quartile": None,
        "upper_quartile": None,
    },
    "questions": [
        {
            "question_id": "q1",
            "prompt": "What is a socket?",
            "type": "short_answer",
            "graded": 1,
            "mean_score": 3.5,
            "median_score": 3.5,
            "max_score": 4.0,
            "full_share": 0.0,
            "zero_share": 0.0,
            "needs_review": 0,
            "discrimination": None,
            "advisory": False,
            "tokens_in": 812,
            "tokens_out": 64,
        }
    ],
    "criteria_hardest_first": [
        {
            "question_id": "q1",
            "criterion_id": "c1",
            "description": "An end point of a connection.",
            "graded": 1,
            "mean_points": 3.5,
            "max_points": 4.0,
            "mean_share": 0.875,
            "mean_confidence": 0.9,
            "cannot_assess": 0,
        }
    ],
    "confidence": {"criteria": 1, "mean": 0.9, "bins": [{"from": 0.9, "to": 1.0, "count": 1}]},
    "review_reasons": [],
    "review_queue": [],
    "failures": [],
    "usage": {"tokens_in": 812, "tokens_out": 64, "cost_usd": None},
    "timing": {
        "opened_at": "2026-01-12T08:00:00+00:00",
        "completed_at": "2026-01-12T08:00:42+00:00",
        "duration_seconds": 42.0,
    },
    "submissions": [_ROW],
}


class ReportRow(BaseModel):
    """One submission in the report; `questions` are its points by question id."""

    model_config = ConfigDict(extra="allow")

    submission_id: str
    name: str
    state: str
    score: float | None
    max_score: float | None
    needs_review: bool
    review_reasons: list[str]
    failure_code: str | None
    failure_message: str | None
    questions: dict[str, float]


class Report(BaseModel):
    """A batch's report; the counts equal the files."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_REPORT]})

    batch: dict[str, Any]
    counts: CountsView
    total_files: int
    needs_review: int
    advisory: bool
    scores: dict[str, float | int | None]
    distribution: dict[str, Any]
    questions: list[dict[str, Any]]
    criteria_hardest_first: list[dict[str, Any]]
    confidence: dict[str, Any]
    review_reasons: list[dict[str, Any]]
    review_queue: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    usage: dict[str, int | str | None]
    timing: dict[str, str | float | None]
    submissions: list[ReportRow]


@router.get(
    "/{batch_id}/report",
    summary="Read a batch's report",
    description="As JSON; as CSV (`format=csv` or `Accept: text/csv`): UTF-8 with BOM, with a leading "
    "apostrophe in cells that a spreadsheet would take for a formula; or as a self-contained page "
    "(`format=html` or `Accept: text/html`). As CSV a grading batch has one row a student, a diagnosis batch "
    "the `table` that is asked for. The review queue has the 500 most urgent submissions; JSON of a "
    "diagnosis batch names 1,000 files.",
    response_class=Response,
    responses={
        200: {
            "model": Report | DiagnosisReport,
            "description": "The report.",
            "content": {
                "application/json": {"example": _REPORT},
                "text/csv": {"example": "submission_id,name,state,score,max_score\r\n"},
                "text/html": {"example": "<!doctype html>\n<title>Networks</title>"},
            },
        },
        **problems(401, 403, 404, 422, 503),
    },
)
async def read_batch_report(
    batch_id: BatchId,
    caller: Reader,
    services: ServicesOf,
    format: Annotated[  # noqa: A002  # the query parameter's name
        Format | None, Query(description="The format; by default as `Accept` says.")
    ] = None,
    detail: Annotated[
        Literal["criteria"] | None,
        Query(description="`criteria` adds each criterion's points, confidence and quote to JSON and CSV."),
    ] = None,
    table: Annotated[
        DiagnosisTable | None,
        Query(description="Which table of a diagnosis batch CSV has; `anomalies` by default."),
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """The report, from a copy or the cache if the batch is final and it is there."""
    batch_id, chosen = check_id("batch", batch_id), format or _accepted(accept)
    if table is not None and chosen != "csv":
        raise InvalidInput("table: only a report as CSV is one table; add format=csv.", field="table")
    if table == "files":
        written = await _all_files(services, caller.tenant_id, batch_id)
    elif chosen != "html" and detail == "criteria":
        written = await _with_criteria(services, caller.tenant_id, batch_id, chosen)
    else:
        write = partial(_written, chosen=chosen, table=table, now=services.clock.now())
        form = f"{chosen}:{table}" if table else chosen
        mark = await services.report_cache.newest_mark(batch_id)
        written = await written_report(services, (caller.tenant_id, batch_id, form), mark, write)
    return _response(written)


class StraightToReports:
    """Answers what is written already, past the framework, whose way to a route costs more than the rest.

    Whatever else is asked, or refused, goes the whole way.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._route = next(
            each for each in router.routes if getattr(each, "endpoint", None) is read_batch_report
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is written, or pass on."""
        written = await _copy(scope) if scope["type"] == "http" and not scope["query_string"] else None
        if written is None:
            await self._app(scope, receive, send)
        else:
            scope["route"] = self._route
            await _response(written)(scope, receive, send)


async def _copy(scope: Scope) -> WrittenReport | None:
    asked = _PATH.fullmatch(scope["path"])
    if asked is None or scope["method"] != "GET":
        return None
    services: Services = scope["state"]["services"]
    headers = Headers(scope=scope)
    batch_id, form = asked["batch_id"], _accepted(headers.get("accept", ""))
    if not services.written_reports.has(batch_id, form):
        return None
    # Redis is asked while Postgres is asked for the key: a hot report waits for the slower of the two
    marking = asyncio.create_task(services.report_cache.newest_mark(batch_id))
    try:
        caller = await authenticate(services, secret_of(headers), "read")
    except AssayError:
        marking.cancel()
        return None
    return services.written_reports.find((caller.tenant_id, batch_id, form), await marking)


def _response(written: WrittenReport) -> Response:
    return Response(written.body, media_type=written.media_type, headers=written.headers)


def _accepted(accept: str) -> Format:
    """The format that the header asks for first; JSON where it asks for none that there is."""
    offers = []
    for each in accept.split(","):
        quality = _QUALITY.search(each)
        if format_ := _TYPES.get(each.partition(";")[0].strip().lower()):
            offers.append((float(quality.group(1)) if quality else 1.0, format_))
    # of equals the first
    return max(offers, key=lambda offer: offer[0], default=(1.0, "json"))[1]


async def _with_criteria(services: Services, tenant_id: str, batch_id: str, chosen: Format) -> WrittenReport:
    report = await read_report(services, tenant_id, batch_id)
    if _is_diagnosis(report):
        raise InvalidInput("detail: only the report of a grading batch has criteria.", field="detail")
    marks = await services.results.criterion_marks(tenant_id, batch_id)
    rows = [{**row, "criteria": marks.get(row["submission_id"], {})} for row in report["submissions"]]
    write = _as_csv if chosen == "csv" else _as_json
    return await asyncio.to_thread(write, {**report, "submissions": rows}, None)


async def _all_files(services: Services, tenant_id: str, batch_id: str) -> WrittenReport:
    """The one table that a report does not have whole."""
    batch = await services.batches.read(tenant_id, batch_id)
    _check_table("files", batch.opening.kind is BatchKind.DIAGNOSIS)
    files = await services.diagnosis_reports.files(tenant_id, batch_id)
    return await asyncio.to_thread(
        _as_csv, {"batch": {"batch_id": batch_id, "kind": "diagnosis"}, "files": files}, "files"
    )


def _check_table(table: DiagnosisTable | None, diagnosis: bool) -> None:
    if table is not None and not diagnosis:
        raise InvalidInput("table: the report of a grading batch has one table; leave it out.", field="table")


def _written(report: Read, *, chosen: Format, table: DiagnosisTable | None, now: datetime) -> WrittenReport:
    _check_table(table, _is_diagnosis(report))
    if chosen == "json":
        return _as_json(report, None)
    return _as_csv(report, table) if chosen == "csv" else _as_html(report, now)


def _as_json(report: Read, _: DiagnosisTable | None) -> WrittenReport:
    document = {**report, "usage": with_usd(report["usage"])}
    if report.get("diagnosis"):
        document["diagnosis"] = with_usd(report["diagnosis"])
    body = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    return WrittenReport(body, "application/json", {"Vary": "Accept"})


def _as_csv(report: Read, table: DiagnosisTable | None) -> WrittenReport:
    batch_id = report["batch"]["batch_id"]
    if _is_diagnosis(report):
        text, name = diagnosis_table(report, table or "anomalies"), f"{table or 'anomalies'}-{batch_id}.csv"
    else:
        text, name = csv_report(report), f"report-{batch_id}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Vary": "Accept"}
    return WrittenReport(text.encode(), "text/csv; charset=utf-8", headers)


def _as_html(report: Read, now: datetime) -> WrittenReport:
    page = diagnosis_page if _is_diagnosis(report) else report_page
    return WrittenReport(page(report, generated_at=now).encode(), "text/html; charset=utf-8", _PAGE_HEADERS)


def _is_diagnosis(report: Read) -> bool:
    kind: str = report["batch"]["kind"]
    return kind == BatchKind.DIAGNOSIS

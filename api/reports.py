"""The report of a batch: JSON, CSV for spreadsheets, and a page for reading and printing."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from api.batches import CountsView
from api.dependencies import Reader, Services, ServicesOf, check_id
from api.errors import problems
from api.html import CONTENT_SECURITY_POLICY
from api.money import with_usd
from api.report_page import report_page
from api.spreadsheets import csv_report
from api.wire import BatchId
from domain.batch import Counts
from domain.errors import LockTimeout, NotFound
from domain.gateway import Caller
from domain.states import BATCH_MACHINE

router = APIRouter(prefix="/v1/batches", tags=["reports"])

Format = Literal["json", "csv", "html"]
_TYPES: Mapping[str, Format] = {
    "application/json": "json",
    "*/*": "json",
    "text/csv": "csv",
    "text/html": "html",
}
#: for a rebuild in another process
_REBUILD_WAIT_SECONDS = 10.0
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
    description="As JSON; as CSV (`format=csv` or `Accept: text/csv`): UTF-8 with BOM, one row a student, "
    "with a leading apostrophe in cells that a spreadsheet would take for a formula; or as a self-contained "
    "page (`format=html` or `Accept: text/html`). The review queue has the 500 most urgent submissions.",
    response_class=Response,
    responses={
        200: {
            "model": Report,
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
async def read_report(
    batch_id: BatchId,
    request: Request,
    caller: Reader,
    services: ServicesOf,
    format: Annotated[  # noqa: A002  # the query parameter's name
        Format | None, Query(description="The format; by default as `Accept` says.")
    ] = None,
    detail: Annotated[
        Literal["criteria"] | None,
        Query(description="`criteria` adds each criterion's points, confidence and quote to JSON and CSV."),
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """The report, from the cache if the batch is final and it is there."""
    report = await _read(services, caller, check_id("batch", batch_id))
    chosen = format or _accepted(accept)
    if detail == "criteria" and chosen != "html":
        marks = await services.results.criterion_marks(caller.tenant_id, batch_id)
        report = _with_criteria(report, marks)
    # a batch of thousands takes long enough to write that other requests would wait for it
    return await asyncio.to_thread(_RESPONSES[chosen], report, services.clock.now())


def _accepted(accept: str) -> Format:
    """The format that the header asks for first; JSON where it asks for none that there is."""
    offers = []
    for each in accept.split(","):
        quality = _QUALITY.search(each)
        if format_ := _TYPES.get(each.partition(";")[0].strip().lower()):
            offers.append((float(quality.group(1)) if quality else 1.0, format_))
    # of equals the first
    return max(offers, key=lambda offer: offer[0], default=(1.0, "json"))[1]


def _with_criteria(report: Mapping[str, Any], marks: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{**row, "criteria": marks.get(row["submission_id"], {})} for row in report["submissions"]]
    return {**report, "submissions": rows}


def _as_json(report: Mapping[str, Any], _: datetime) -> Response:
    document = {**report, "usage": with_usd(report["usage"])}
    body = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return Response(body, media_type="application/json", headers={"Vary": "Accept"})


def _as_csv(report: Mapping[str, Any], _: datetime) -> Response:
    disposition = f'attachment; filename="report-{report["batch"]["batch_id"]}.csv"'
    headers = {"Content-Disposition": disposition, "Vary": "Accept"}
    return Response(csv_report(report), media_type="text/csv; charset=utf-8", headers=headers)


def _as_html(report: Mapping[str, Any], now: datetime) -> Response:
    headers = {
        "Content-Security-Policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # students' answers stay out of caches that others share
        "Cache-Control": "private, no-cache",
        "Vary": "Accept",
    }
    page = report_page(report, generated_at=now)
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


_RESPONSES: Mapping[Format, Callable[[Mapping[str, Any], datetime], Response]] = {
    "json": _as_json,
    "csv": _as_csv,
    "html": _as_html,
}


async def _read(services: Services, caller: Caller, batch_id: str) -> Mapping[str, Any]:
    # the tenant is part of the key: nobody shares the flight of a batch that is not theirs
    return await services.reports.run(
        (caller.tenant_id, batch_id), lambda: _find(services, caller.tenant_id, batch_id)
    )


async def _find(services: Services, tenant_id: str, batch_id: str) -> Mapping[str, Any]:
    cached = await services.report_cache.read(batch_id)
    # an older version of this program may have left a report with less in it
    if cached is not None and cached.keys() >= Report.model_fields.keys():
        await _check_owner(services, cached, tenant_id, batch_id)
        return cached
    batch = await services.batches.read(tenant_id, batch_id)
    # what a running batch says is old in a moment
    if batch.state not in BATCH_MACHINE.final:
        return await services.results.report(tenant_id, batch_id)
    return await _rebuild(services, tenant_id, batch_id)


async def _rebuild(services: Services, tenant_id: str, batch_id: str) -> Mapping[str, Any]:
    """The report of a final batch, which one process computes for all (G3.1)."""
    try:
        async with services.locks.held("report", batch_id, wait_seconds=_REBUILD_WAIT_SECONDS) as lease:
            cached = await services.report_cache.read(batch_id)
            if cached is not None and cached.keys() >= Report.model_fields.keys():
                return cached
            mark = await services.report_cache.mark(batch_id)
            report = await services.results.report(tenant_id, batch_id)
            await services.report_cache.write(batch_id, report, mark=mark, fence=lease.fence)
            return report
    except LockTimeout:
        # the lock saves work, and nobody's answer depends on it
        return await services.results.report(tenant_id, batch_id)


async def _check_owner(services: Services, report: Mapping[str, Any], tenant_id: str, batch_id: str) -> None:
    owner = report["batch"].get("tenant_id")
    if owner is None:
        await services.batches.read(tenant_id, batch_id)
    elif owner != tenant_id:
        raise NotFound(f"There is no batch {batch_id}.", field="batch_id")

"""The report of a batch: JSON, and CSV for spreadsheets."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from api.batches import CountsView
from api.dependencies import Reader, Services, ServicesOf, check_id
from api.errors import problems
from api.money import with_usd
from api.wire import BatchId
from domain.batch import Counts
from domain.errors import NotFound
from domain.ports import Caller
from domain.states import BATCH_MACHINE

router = APIRouter(prefix="/v1/batches", tags=["reports"])

#: spreadsheets take a cell that begins like this for a formula
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
COLUMNS = (
    "submission_id",
    "name",
    "state",
    "score",
    "max_score",
    "needs_review",
    "review_reasons",
    "failure_code",
    "failure_message",
)
_BOM = "\ufeff"

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
    "questions": [{"question_id": "q1", "graded": 1, "mean_score": 3.5, "max_score": 4.0}],
    "criteria_hardest_first": [],
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
    questions: list[dict[str, Any]]
    criteria_hardest_first: list[dict[str, Any]]
    submissions: list[ReportRow]


@router.get(
    "/{batch_id}/report",
    summary="Read a batch's report",
    description="As JSON, or as CSV (`format=csv` or `Accept: text/csv`): UTF-8 with BOM, one row a student, "
    "cells that a spreadsheet would take for a formula with a leading apostrophe.",
    response_class=Response,
    responses={
        200: {
            "model": Report,
            "description": "The report.",
            "content": {
                "application/json": {"example": _REPORT},
                "text/csv": {"example": "submission_id,name,state,score,max_score\r\n"},
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
        Literal["json", "csv"] | None, Query(description="The format; by default as `Accept` says.")
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """The report, from the cache if the batch is final and it is there."""
    report = await _read(services, caller, check_id("batch", batch_id))
    if format == "csv" or (format is None and _prefers_csv(accept)):
        disposition = f'attachment; filename="report-{batch_id}.csv"'
        headers = {"Content-Disposition": disposition, "Vary": "Accept"}
        return Response(csv_report(report), media_type="text/csv; charset=utf-8", headers=headers)
    body = json.dumps(with_usd(report), ensure_ascii=False, allow_nan=False)
    return Response(body, media_type="application/json", headers={"Vary": "Accept"})


def csv_report(report: Mapping[str, Any]) -> str:
    """One row a submission, keyed by its id, with a column for each question's points."""
    questions = [str(each["question_id"]) for each in report.get("questions", ())]
    rows = report.get("submissions", ())
    text = io.StringIO()
    text.write(_BOM)
    writer = csv.writer(text)
    writer.writerow([_cell(each) for each in (*COLUMNS, *questions)])
    writer.writerows(_row(row, questions) for row in rows)
    return text.getvalue()


def _row(row: Mapping[str, Any], questions: Iterable[str]) -> list[str]:
    points = row.get("questions") or {}
    values = (*(row.get(each) for each in COLUMNS), *(points.get(each) for each in questions))
    return [_cell(each) for each in values]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    # a number below zero is a number: only text can be a formula
    if isinstance(value, (int, float)):
        return str(value)
    text = "; ".join(str(each) for each in value) if isinstance(value, (list, tuple)) else str(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


async def _read(services: Services, caller: Caller, batch_id: str) -> Mapping[str, Any]:
    # the tenant is part of the key: nobody shares the flight of a batch that is not theirs
    return await services.reports.run(
        (caller.tenant_id, batch_id), lambda: _find(services, caller.tenant_id, batch_id)
    )


async def _find(services: Services, tenant_id: str, batch_id: str) -> Mapping[str, Any]:
    cached = await services.report_cache.read(batch_id)
    if cached is not None:
        await _check_owner(services, cached, tenant_id, batch_id)
        return cached
    report = await services.results.report(tenant_id, batch_id)
    # what a running batch says is old in a moment
    if report["batch"]["status"] in BATCH_MACHINE.final:
        await services.report_cache.write(batch_id, report)
    return report


async def _check_owner(services: Services, report: Mapping[str, Any], tenant_id: str, batch_id: str) -> None:
    owner = report["batch"].get("tenant_id")
    if owner is None:
        await services.batches.read(tenant_id, batch_id)
    elif owner != tenant_id:
        raise NotFound(f"There is no batch {batch_id}.", field="batch_id")


def _prefers_csv(accept: str) -> bool:
    types = [each.partition(";")[0].strip() for each in accept.split(",")]
    return "text/csv" in types and "application/json" not in types

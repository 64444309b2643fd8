"""The report of a diagnosis batch as data: its shape, and its tables for spreadsheets."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from api.batches import CountsView
from api.spreadsheets import csv_table
from domain.batch import Counts
from domain.logs import LEVELS

DiagnosisTable = Literal["anomalies", "templates", "vehicles", "files"]

_FILE_ID = "0197c1de-3333-7000-8000-000000000000"
_QUOTE = {
    "line": 812,
    "text": "08:12:04 ERROR verification of slot B failed",
    "file_id": _FILE_ID,
    "member": "",
    "at": "2026-01-12T08:12:04+00:00",
    "name": "vehicle-07.log",
}
DIAGNOSIS_REPORT: dict[str, Any] = {
    "batch": {
        "batch_id": "0197c1de-1111-7000-8000-000000000000",
        "status": "completed",
        "kind": "diagnosis",
        "name": "Campaign 7",
        "model": "local",
    },
    "counts": {**vars(Counts()), "completed": 1},
    "total_files": 1,
    "diagnosis": {
        "verdict": "root_cause",
        "summary": "The image of slot B is corrupt.",
        "risk_level": "high",
        "risk_rule": "A device may not start.",
        "findings": [
            {
                "cause_id": "corrupt_image",
                "title": "The image does not match its signature",
                "explanation": "Verification fails after each download.",
                "confidence": 0.8,
                "anomaly_codes": ["T-3f1c9a0b2d"],
                "vehicles": ["vehicle-07"],
                "recommendations": ["Sign the image again."],
                "evidence": [_QUOTE],
                "hazard": "unbootable",
            }
        ],
        "recommendations": ["Stop the campaign."],
        "unexplained": [],
        "refused_claims": 0,
        "model": "local",
        "rule_based": True,
        "reused_from": "",
        "tokens_in": 0,
        "tokens_out": 0,
        "cost_usd": "0.00",
        "recorded_at": "2026-01-12T09:00:00+00:00",
    },
    "summary": {"files": 1, "lines": 2000, "parsed_lines": 2000, "anomaly_count": 1, "template_count": 90},
    "baseline": {
        "batch_id": "0197c1de-2222-7000-8000-000000000000",
        "name": "week 1",
        "files": 1,
        "lines": 1900,
    },
    "anomalies": [
        {
            "code": "T-3f1c9a0b2d",
            "change": "new",
            "title": "verification of <*> failed",
            "score": 11.7,
            "count": 1,
            "level": "error",
            "reason": "Not in the baseline's 1900 lines.",
            "quotes": [_QUOTE],
        }
    ],
    "templates": [],
    "vehicles": [],
    "timeline": [{"at": "2026-01-12T08:00:00+00:00", "lines": 2000, "levels": {"error": 1, "info": 1999}}],
    "failures": [],
    "files": [
        {"file_id": _FILE_ID, "name": "vehicle-07.log", "state": "completed", "lines": 2000, "coverage": 1.0}
    ],
    "usage": {"tokens_in": 0, "tokens_out": 0, "cost_usd": "0.00", "settling_usd": "0.00"},
    "timing": {
        "opened_at": "2026-01-12T08:00:00+00:00",
        "completed_at": "2026-01-12T09:00:00+00:00",
        "duration_seconds": 3600.0,
    },
}


class DiagnosisReport(BaseModel):
    """A diagnosis batch's report; the counts equal the files.

    `summary` is null until the batch is gathered, `diagnosis` until one is official. Every quote names file
    and line. Lists are bounded; `summary` counts what there is, and the table of files has every file.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [DIAGNOSIS_REPORT]})

    batch: dict[str, Any]
    counts: CountsView
    total_files: int
    diagnosis: dict[str, Any] | None
    summary: dict[str, Any] | None
    baseline: dict[str, Any] | None
    anomalies: list[dict[str, Any]]
    templates: list[dict[str, Any]]
    vehicles: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    files: list[dict[str, Any]]
    usage: dict[str, int | str | None]
    timing: dict[str, str | float | None]


def diagnosis_table(report: Mapping[str, Any], table: DiagnosisTable) -> str:
    """One table of the report as CSV."""
    columns, values = _TABLES[table]
    return csv_table(columns, map(values, report[table]))


def _levels(row: Mapping[str, Any]) -> list[int | None]:
    found = row["levels"]
    return [None if found is None else found.get(level, 0) for level in LEVELS]


def _picked(columns: Iterable[str]) -> Callable[[Mapping[str, Any]], list[Any]]:
    return lambda row: [row.get(each) for each in columns]


def _first_quote(row: Mapping[str, Any]) -> list[Any]:
    quote: Mapping[str, Any] = next(iter(row["quotes"]), {})
    return [quote.get(each) for each in ("name", "member", "line", "text")]


_QUOTED = ("quoted_file", "quoted_member", "quoted_line", "quoted_text")
_ANOMALY = (
    *(
        "code",
        "change",
        "level",
        "title",
        "score",
        "reason",
        "count",
        "baseline_count",
        "rate",
        "baseline_rate",
    ),
    *("files", "vehicle_count", "vehicles", "value", "bound", "unit", "first_at", "last_at"),
)
_TEMPLATE = (
    "template_id",
    "text",
    "level",
    "change",
    "count",
    "baseline_count",
    "files",
    "first_at",
    "last_at",
)
_VEHICLE = ("vehicle_id", "vin", "files", "lines", "anomaly_codes")
_FILE = (
    *(
        "file_id",
        "name",
        "state",
        "vehicle_id",
        "vin",
        "size_bytes",
        "format",
        "lines",
        "parsed_lines",
        "coverage",
    ),
    *("templates", "signals", "first_at", "last_at", "incomplete", "failure_code", "failure_message"),
)
_TABLES: Mapping[DiagnosisTable, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], list[Any]]]] = {
    "anomalies": ((*_ANOMALY, *_QUOTED), lambda row: [*_picked(_ANOMALY)(row), *_first_quote(row)]),
    "templates": ((*_TEMPLATE, *_QUOTED), lambda row: [*_picked(_TEMPLATE)(row), *_first_quote(row)]),
    "vehicles": ((*_VEHICLE, *LEVELS), lambda row: [*_picked(_VEHICLE)(row), *_levels(row)]),
    "files": ((*_FILE, *LEVELS), lambda row: [*_picked(_FILE)(row), *_levels(row)]),
}

"""The report of a batch of logs: its summary, its official diagnosis and its files, from one snapshot."""

from collections.abc import Iterable, Mapping
from typing import Any

from db.postgres.pool import Connection, Postgres
from db.postgres.reports import COST_COLUMNS, COUNTS_SQL, moment_text, timing
from domain.batch import Counts
from domain.errors import NotFound

#: files in a report, those that failed first; the table of files has all
FILE_LIMIT = 1_000

BATCH_SQL = f"""
SELECT b.id, b.tenant_id, b.name, b.status, b.kind, b.model, b.generation, b.created_at, b.updated_at, b.vehicle_id,
       b.vin, b.baseline, b.failure_code, s.document AS summary, d.document AS diagnosis, d.recorded_at,
       {COST_COLUMNS}
FROM batches b
LEFT JOIN log_summaries s ON (s.batch_id, s.generation) = (b.id, b.generation)
LEFT JOIN ai_diagnoses d ON (d.batch_id, d.generation) = (b.id, b.generation) AND d.recorded_at IS NOT NULL
WHERE b.id = %s AND b.tenant_id = %s
"""
_FILES_SQL = """
SELECT f.id AS file_id, f.name, f.state, coalesce(nullif(f.vehicle_id, ''), b.vehicle_id, '') AS vehicle_id,
       coalesce(nullif(f.vin, ''), b.vin, '') AS vin, f.size_bytes, l.format, l.lines, l.parsed_lines, l.templates,
       l.signals, l.levels, l.first_at, l.last_at, l.incomplete, f.failure_code, f.failure_message
FROM files f JOIN batches b ON b.id = f.batch_id LEFT JOIN logs l ON l.id = f.id AND f.state = 'completed'
"""
FILES_SQL = f"""
{_FILES_SQL} WHERE b.id = %s ORDER BY (f.state <> 'failed'), f.name LIMIT {FILE_LIMIT}
"""
ALL_FILES_SQL = f"{_FILES_SQL} WHERE b.id = %s AND b.tenant_id = %s ORDER BY f.name"
FAILURES_SQL = """
SELECT failure_code AS code, count(*) AS count, (array_agg(failure_message ORDER BY name))[1] AS message
FROM files WHERE batch_id = %s AND failure_code IS NOT NULL AND state = 'failed'
GROUP BY failure_code ORDER BY count DESC, code
"""
NAMES_SQL = "SELECT id, name FROM files WHERE batch_id = %s AND id::text = ANY(%s)"

#: what a report says of its summary beside the lists
_FIGURES = (
    "files",
    "lines",
    "parsed_lines",
    "expanded_bytes",
    "template_count",
    "anomaly_count",
    "vehicle_count",
    "incomplete_logs",
    "unlisted_lines",
    "levels",
    "first_at",
    "last_at",
    "signature",
)


class PostgresDiagnosisReports:
    """Reports of batches of logs."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def report(self, tenant_id: str, batch_id: str) -> dict[str, Any]:
        """The batch's report, computed from rows; raises `NotFound`.

        `summary` is `None` until the batch is gathered, `diagnosis` until one is official. Quotes have their
        file's `name` beside its id.
        """
        async with self._postgres.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            batch = await (await connection.execute(BATCH_SQL, [batch_id, tenant_id])).fetchone()
            if batch is None:
                raise NotFound(f"There is no batch {batch_id}.", field="batch_id")
            rows = {
                name: await (await connection.execute(sql, [batch_id])).fetchall()
                for name, sql in (("counts", COUNTS_SQL), ("failures", FAILURES_SQL), ("files", FILES_SQL))
            }
            names = await _names(connection, batch_id, _quotes(batch))
        for quote in _quotes(batch):
            quote["name"] = names.get(quote["file_id"], "")
        return _report(batch, rows)

    async def files(self, tenant_id: str, batch_id: str) -> list[dict[str, Any]]:
        """All files of the batch by name, with what parsing says of each."""
        return [_file(row) for row in await self._postgres.rows(ALL_FILES_SQL, [batch_id, tenant_id])]


def _report(batch: Mapping[str, Any], rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    counts = Counts(**{row["state"]: row["files"] for row in rows["counts"]})
    summary: dict[str, Any] = batch["summary"] or {}
    return {
        "batch": _batch(batch),
        "counts": vars(counts),
        "total_files": counts.total,
        "diagnosis": batch["diagnosis"]
        and {
            **batch["diagnosis"],
            "recorded_at": moment_text(batch["recorded_at"]),
        },
        "summary": {name: summary.get(name) for name in _FIGURES} if summary else None,
        "baseline": summary.get("baseline"),
        "anomalies": summary.get("anomalies", []),
        "templates": summary.get("templates", []),
        "vehicles": summary.get("vehicles", []),
        "timeline": summary.get("timeline", []),
        "failures": rows["failures"],
        "files": [_file(row) for row in rows["files"]],
        "usage": _usage(batch),
        "timing": timing(batch),
    }


async def _names(
    connection: Connection, batch_id: str, quotes: Iterable[Mapping[str, Any]]
) -> dict[str, str]:
    ids = sorted({quote["file_id"] for quote in quotes})
    rows = await (await connection.execute(NAMES_SQL, [batch_id, ids])).fetchall()
    return {str(row["id"]): row["name"] for row in rows}


def _quotes(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every quoted line of the summary and the diagnosis."""
    summary, diagnosis = batch["summary"] or {}, batch["diagnosis"] or {}
    quoting = [*summary.get("anomalies", []), *summary.get("templates", [])]
    quotes = [quote for each in quoting for quote in each["quotes"]]
    return [*quotes, *(quote for each in diagnosis.get("findings", []) for quote in each["evidence"])]


def _batch(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "batch_id": str(row["id"]),
        "tenant_id": row["tenant_id"],
        "name": row["name"],
        "kind": row["kind"],
        "status": row["status"],
        "model": row["model"],
        "generation": row["generation"],
        "vehicle_id": row["vehicle_id"],
        "vin": row["vin"],
        "baseline": row["baseline"],
        "failure_code": row["failure_code"],
        "created_at": moment_text(row["created_at"]),
        "updated_at": moment_text(row["updated_at"]),
    }


def _file(row: Mapping[str, Any]) -> dict[str, Any]:
    moments = {name: row[name] and moment_text(row[name]) for name in ("first_at", "last_at")}
    lines, parsed = row["lines"], row["parsed_lines"]
    coverage = None if lines is None else round(parsed / lines, 6) if lines else 1.0
    return {**row, "file_id": str(row["file_id"]), **moments, "coverage": coverage}


def _usage(batch: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of the official diagnosis, and all that the ledger has charged for the batch."""
    diagnosis = batch["diagnosis"] or {}
    return {
        "tokens_in": diagnosis.get("tokens_in", 0),
        "tokens_out": diagnosis.get("tokens_out", 0),
        "cost_nanodollars": batch["spent_nanodollars"] or 0,
        "settling_nanodollars": batch["settling_nanodollars"] or 0,
    }

"""Logs: their way from queued to parsed, and the summaries of gathered batches."""

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from db.postgres.documents import jsonb
from db.postgres.grading import LOCK_FILE_SQL
from db.postgres.pool import Postgres
from domain.batch import EventType
from domain.diagnosis import Baseline, BatchSummary, GatheredLogs
from domain.documents import from_plain
from domain.errors import NotFound, SagaStepRefused
from domain.logs import KeptLog, LogFile, LogStart, ParsedLog, QueuedLog
from domain.states import FILE_MACHINE, BatchState, FileState

BEGIN_LOG_SQL = """
WITH before AS (
    SELECT id, batch_id, state FROM files
    WHERE id = %(file_id)s AND generation = %(generation)s AND state = ANY(%(open)s) FOR UPDATE
), moved AS (
    UPDATE files SET state = 'running', workflow_id = %(workflow_id)s, run_id = %(run_id)s,
                     first_execution_run_id = %(first_execution_run_id)s, updated_at = now()
    FROM before WHERE files.id = before.id
)
INSERT INTO progress_events (batch_id, file_id, event_type, data)
SELECT batch_id, id, 'StatusChanged', jsonb_build_object('machine', 'file', 'from', state, 'to', 'running')
FROM before WHERE state <> 'running'
"""
QUEUED_LOG_SQL = """
SELECT name, object_key, size_bytes, created_at, state FROM files WHERE id = %s AND generation = %s
"""
KEPT_LOG_SQL = "SELECT generation, parsed_sha256 FROM logs WHERE id = %s"
RECORD_LOG_SQL = """
INSERT INTO logs (id, batch_id, generation, format, parser, parsed_key, parsed_sha256, expanded_bytes, lines,
                  parsed_lines, templates, signals, levels, first_at, last_at, incomplete)
SELECT id, batch_id, %(generation)s, %(format)s, %(parser)s, %(parsed_key)s, %(parsed_sha256)s, %(expanded_bytes)s,
       %(lines)s, %(parsed_lines)s, %(templates)s, %(signals)s, %(levels)s, %(first_at)s, %(last_at)s, %(incomplete)s
FROM files WHERE id = %(file_id)s
ON CONFLICT (id) DO UPDATE
SET generation = EXCLUDED.generation, format = EXCLUDED.format, parser = EXCLUDED.parser,
    parsed_key = EXCLUDED.parsed_key, parsed_sha256 = EXCLUDED.parsed_sha256,
    expanded_bytes = EXCLUDED.expanded_bytes, lines = EXCLUDED.lines, parsed_lines = EXCLUDED.parsed_lines,
    templates = EXCLUDED.templates, signals = EXCLUDED.signals, levels = EXCLUDED.levels,
    first_at = EXCLUDED.first_at, last_at = EXCLUDED.last_at, incomplete = EXCLUDED.incomplete, created_at = now()
"""
LOG_PARSED_SQL = """
WITH moved AS (
    UPDATE files SET state = 'completed', updated_at = now() WHERE id = %(file_id)s RETURNING id, batch_id
)
INSERT INTO progress_events (batch_id, file_id, event_type, data)
SELECT batch_id, id, event_type, data FROM moved, (VALUES
    (1, %(event)s, %(told)s::jsonb),
    (2, 'StatusChanged', jsonb_build_object('machine', 'file', 'from', 'running', 'to', 'completed'))
) told(position, event_type, data) ORDER BY position
"""
# a log without a vehicle of its own is of the batch's
PARSED_LOGS_SQL = """
SELECT f.id, f.name, f.object_key, f.size_bytes, l.parsed_key, l.parsed_sha256,
       coalesce(nullif(f.vehicle_id, ''), b.vehicle_id) AS vehicle_id, coalesce(nullif(f.vin, ''), b.vin) AS vin
FROM logs l JOIN files f ON f.id = l.id JOIN batches b ON b.id = l.batch_id
WHERE l.batch_id = %s AND f.state = 'completed' ORDER BY f.ordinal
"""
# an id as name is none
BASELINE_OF_SQL = """
SELECT baseline_batch_id, CASE WHEN baseline <> baseline_batch_id::text THEN baseline ELSE '' END AS name
FROM batches WHERE id = %s AND baseline_batch_id IS NOT NULL
"""
# whoever was first has decided: the same logs have the same summary
WRITE_SUMMARY_SQL = """
INSERT INTO log_summaries (batch_id, generation, signature, summary_key, summary_sha256, document)
VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (batch_id, generation) DO NOTHING
"""
READ_SUMMARY_SQL = "SELECT document FROM log_summaries WHERE batch_id = %s AND generation = %s"
CASE_SQL = """
SELECT b.status, t.secret FROM batches b JOIN tenants t ON t.id = b.tenant_id
WHERE b.id = %s AND b.generation = %s
"""

_OPEN = [*FILE_MACHINE.origins_of(FileState.RUNNING), FileState.RUNNING]


class PostgresLogs:
    """Logs on their way to being parsed; each repetition is a no-op."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def begin(self, start: LogStart) -> QueuedLog:
        """Mark the log running, unless it has ended; where its bytes are. Raises `NotFound`."""
        async with self._postgres.transaction() as connection:
            await connection.execute(BEGIN_LOG_SQL, {**vars(start), "open": _OPEN})
            cursor = await connection.execute(QUEUED_LOG_SQL, [start.file_id, start.generation])
            row = await cursor.fetchone()
        if row is None:
            raise NotFound(f"There is no file {start.file_id} of generation {start.generation}.")
        return QueuedLog(
            name=row["name"],
            object_key=row["object_key"],
            size_bytes=row["size_bytes"],
            written_at=row["created_at"].astimezone(UTC).isoformat(),
            state=FileState(row["state"]),
        )

    async def record(self, file_id: str, generation: int, kept: KeptLog, parsed: ParsedLog) -> None:
        """The log's figures, its final state and its event, in one transaction.

        Raises `SagaStepRefused` for a file that has ended otherwise.
        """
        async with self._postgres.transaction() as connection:
            file = await (await connection.execute(LOCK_FILE_SQL, [file_id, generation])).fetchone()
            if file is not None and file["state"] == FileState.COMPLETED:
                return
            if file is None or file["state"] != FileState.RUNNING:
                raise SagaStepRefused(f"File {file_id} is not running in generation {generation}.")
            figures = _figures(parsed)
            row = {**figures, **vars(kept), "file_id": file_id, "generation": generation}
            await connection.execute(RECORD_LOG_SQL, {**row, "levels": Jsonb(figures["levels"])})
            told = Jsonb({name: figures[name] for name in ("format", "lines", "parsed_lines", "templates")})
            await connection.execute(
                LOG_PARSED_SQL, {"file_id": file_id, "event": EventType.FILE_PARSED, "told": told}
            )

    async def parsed(self, batch_id: str) -> list[tuple[LogFile, str]]:
        """The batch's parsed logs in the order of their ordinals, each with its document's SHA-256."""
        rows = await self._postgres.rows(PARSED_LOGS_SQL, [batch_id])
        return [(_log_file(row), row["parsed_sha256"]) for row in rows]


class PostgresSummaries:
    """Gathered batches."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def write(self, summary: BatchSummary, key: str, sha256: str) -> None:
        """Store a summary, unless that generation of the batch has one."""
        row = [summary.batch_id, summary.generation, summary.signature, key, sha256, jsonb(summary)]
        await self._postgres.run(WRITE_SUMMARY_SQL, row)

    async def read(self, batch_id: str, generation: int) -> BatchSummary:
        """The batch's summary; raises `NotFound`."""
        row = await self._postgres.row(READ_SUMMARY_SQL, [batch_id, generation])
        if row is None:
            raise NotFound(f"Batch {batch_id} is not gathered in generation {generation}.", field="batch_id")
        return from_plain(BatchSummary, row["document"])

    async def baseline_of(self, batch_id: str) -> Baseline | None:
        """What the batch is compared with, if anything."""
        row = await self._postgres.row(BASELINE_OF_SQL, [batch_id])
        return None if row is None else Baseline(str(row["baseline_batch_id"]), row["name"])

    async def logs(self, batch_id: str, generation: int) -> GatheredLogs:
        """The batch's parsed logs in the order of their ordinals, and where it stands; raises `NotFound`."""
        async with self._postgres.connection() as connection:
            case = await (await connection.execute(CASE_SQL, [batch_id, generation])).fetchone()
            rows = await (await connection.execute(PARSED_LOGS_SQL, [batch_id])).fetchall()
        if case is None:
            raise NotFound(f"There is no generation {generation} of batch {batch_id}.", field="batch_id")
        logs = [_log_file(row) for row in rows]
        return GatheredLogs(BatchState(case["status"]), logs, bytes(case["secret"]))


def _figures(parsed: ParsedLog) -> dict[str, Any]:
    return {
        "format": parsed.format,
        "parser": parsed.parser,
        "expanded_bytes": parsed.expanded_bytes,
        "lines": parsed.lines,
        "parsed_lines": parsed.parsed_lines,
        "templates": len(parsed.templates),
        "signals": len(parsed.signals),
        "levels": dict(parsed.levels),
        "first_at": parsed.first_at or None,
        "last_at": parsed.last_at or None,
        "incomplete": parsed.incomplete,
    }


def _log_file(row: DictRow | Mapping[str, Any]) -> LogFile:
    return LogFile(
        file_id=str(row["id"]),
        name=row["name"],
        object_key=row["object_key"],
        size_bytes=row["size_bytes"],
        parsed_key=row["parsed_key"],
        vehicle_id=row["vehicle_id"],
        vin=row["vin"],
    )

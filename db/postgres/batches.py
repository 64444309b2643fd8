"""Batches and files: each move of a state machine is one transaction with its event."""

from datetime import UTC
from itertools import groupby
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from db.postgres.baselines import resolve_baseline
from db.postgres.pool import Connection, Postgres
from domain.batch import (
    MAX_FILES,
    MAX_TENANT_BYTES,
    Batch,
    BatchKind,
    BatchOpening,
    Counts,
    EventType,
    LogFigures,
    Pause,
    Progress,
    ProgressEvent,
    StoredFile,
)
from domain.errors import BatchFrozen, Conflict, EmptyBatch, FileExists, LimitExceeded, NotFound
from domain.estimates import FileSize
from domain.ports import EventPosition, StoredUpload, Stretch, Upload, Window
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState, FileState

BATCH_COLUMNS = """
id, tenant_id, kind, name, exam_id, rubric_version, baseline, model, vehicle_id, vin, status, generation,
total_files, expected_workers, max_concurrent, limit_nanodollars, trace_id, failure_code, created_at, updated_at,
resumptions, baseline_batch_id
"""
_FILE_COLUMNS = """
f.id, f.batch_id, f.tenant_id, f.name, f.ordinal, f.size_bytes, f.sha256, f.object_key, f.state, f.generation,
f.created_at, f.updated_at, f.workflow_id, f.run_id, f.failure_code, f.failure_message, f.vehicle_id, f.vin,
s.score, s.max_score, coalesce(s.needs_review, false) AS needs_review,
CASE WHEN l.id IS NOT NULL THEN jsonb_build_object(
    'format', l.format, 'lines', l.lines, 'parsed_lines', l.parsed_lines, 'expanded_bytes', l.expanded_bytes,
    'templates', l.templates, 'signals', l.signals, 'levels', l.levels, 'first_at', coalesce(to_jsonb(l.first_at), '""'),
    'last_at', coalesce(to_jsonb(l.last_at), '""'), 'incomplete', l.incomplete) END AS log
"""
_FILES = "files f LEFT JOIN submissions s ON s.id = f.id LEFT JOIN logs l ON l.id = f.id"

OPEN_SQL = """
INSERT INTO batches (id, tenant_id, kind, name, exam_id, rubric_version, baseline, baseline_batch_id, model,
                     vehicle_id, vin, status, expected_workers, max_concurrent, limit_nanodollars, trace_id)
VALUES (%(id)s, %(tenant_id)s, %(kind)s, %(name)s, %(exam_id)s, %(rubric_version)s, %(baseline)s,
        %(baseline_batch_id)s, %(model)s, %(vehicle_id)s, %(vin)s, %(status)s, %(expected_workers)s,
        %(max_concurrent)s, %(limit_nanodollars)s, %(trace_id)s)
ON CONFLICT (id) DO NOTHING
"""
NEWEST_RUBRIC_SQL = """
SELECT max(r.version) AS version FROM exams e JOIN rubrics r ON r.exam_id = e.id
WHERE e.id = %s AND e.tenant_id = %s HAVING max(r.version) IS NOT NULL
"""
READ_BATCH_SQL = f"SELECT {BATCH_COLUMNS} FROM batches WHERE id = %s AND tenant_id = %s"
# NO KEY: the events that files write meanwhile refer to the batch, and must not wait for this lock
LOCK_BATCH_SQL = f"SELECT {BATCH_COLUMNS} FROM batches WHERE id = %s FOR NO KEY UPDATE"
LIST_BATCHES_SQL = f"""
SELECT {BATCH_COLUMNS} FROM batches
WHERE tenant_id = %(tenant_id)s AND (%(state)s::text IS NULL OR status = %(state)s)
ORDER BY created_at DESC, id LIMIT %(limit)s OFFSET %(offset)s
"""
COUNT_BATCHES_SQL = """
SELECT count(*) AS total FROM batches
WHERE tenant_id = %(tenant_id)s AND (%(state)s::text IS NULL OR status = %(state)s)
"""
MOVE_BATCH_SQL = """
UPDATE batches SET status = %(target)s, updated_at = now() WHERE id = %(batch_id)s
"""
TELL_SQL = """
INSERT INTO progress_events (batch_id, file_id, event_type, data) VALUES (%s, %s, %s, %s)
"""
COUNT_FILES_SQL = "SELECT count(*) AS total FROM files WHERE batch_id = %s"
FREEZE_FILES_SQL = """
UPDATE files SET ordinal = numbered.ordinal, updated_at = now()
FROM (SELECT id, row_number() OVER (ORDER BY name) AS ordinal FROM files WHERE batch_id = %(batch_id)s) numbered
WHERE files.id = numbered.id
"""
COUNT_IN_SQL = "UPDATE batches SET total_files = total_files + 1 WHERE id = %s"
KNOWN_NAME_SQL = "SELECT 1 AS one FROM files WHERE batch_id = %s AND name = %s"
FREEZE_BATCH_SQL = "UPDATE batches SET total_files = %s WHERE id = %s"
MAKE_SUBMISSIONS_SQL = """
INSERT INTO submissions (id, batch_id) SELECT id, batch_id FROM files WHERE batch_id = %s ON CONFLICT DO NOTHING
"""
ADD_FILE_SQL = """
INSERT INTO files (id, batch_id, tenant_id, name, size_bytes, sha256, object_key, vehicle_id, vin, state)
VALUES (%(file_id)s, %(batch_id)s, %(tenant_id)s, %(name)s, %(size_bytes)s, %(sha256)s, %(object_key)s,
        %(vehicle_id)s, %(vin)s, %(state)s)
ON CONFLICT (batch_id, name) DO NOTHING
"""
FILE_BY_NAME_SQL = f"""
SELECT {_FILE_COLUMNS} FROM {_FILES}
WHERE f.batch_id = %s AND f.name = %s FOR UPDATE OF f
"""
# the row of a tenant's storage is locked until the commit: what two uploads add is added up
STORE_BYTES_SQL = """
INSERT INTO tenant_storage AS known (tenant_id, stored_bytes) VALUES (%(tenant_id)s, %(bytes)s)
ON CONFLICT (tenant_id) DO UPDATE SET stored_bytes = known.stored_bytes + excluded.stored_bytes
RETURNING stored_bytes
"""
STORED_BYTES_SQL = "SELECT stored_bytes FROM tenant_storage WHERE tenant_id = %s"
REPLACE_FILE_SQL = """
UPDATE files SET size_bytes = %(size_bytes)s, sha256 = %(sha256)s, object_key = %(object_key)s,
                 vehicle_id = %(vehicle_id)s, vin = %(vin)s, updated_at = now()
WHERE id = %(id)s
"""
LIST_FILES_SQL = f"""
SELECT {_FILE_COLUMNS} FROM {_FILES}
WHERE f.batch_id = %s ORDER BY f.name LIMIT %s OFFSET %s
"""
FILE_SIZES_SQL = "SELECT name, size_bytes FROM files WHERE batch_id = %s"
READ_FILE_SQL = f"""
SELECT {_FILE_COLUMNS} FROM {_FILES}
WHERE f.id = %s AND f.batch_id = %s AND f.tenant_id = %s
"""
READ_SUBMISSION_SQL = f"""
SELECT {_FILE_COLUMNS} FROM {_FILES} WHERE f.id = %s AND f.tenant_id = %s
"""
POSITION_SQL = """
SELECT coalesce((SELECT max(number) FROM progress_events WHERE batch_id = %(batch_id)s), 0) AS last_number,
       (SELECT count(*) FROM progress_events
        WHERE batch_id = %(batch_id)s AND number IS NULL
          AND (%(file_id)s::uuid IS NULL OR file_id = %(file_id)s::uuid)) AS unnumbered
"""
COUNTS_SQL = """
SELECT b.status, b.updated_at, b.paused_from, b.paused_scope, b.missing_nanodollars, b.resumptions,
       f.state, f.files, f.changed_at,
       (SELECT spent_nanodollars FROM ledger_accounts
        WHERE (tenant_id, scope, subject) = (b.tenant_id, 'batch', b.id::text)) AS spent_nanodollars,
       (SELECT sum(open_nanodollars)::bigint FROM ledger_holds
        WHERE batch_id = b.id::text AND state = 'in_doubt') AS settling_nanodollars
FROM batches b
LEFT JOIN (SELECT state, count(*) AS files, max(updated_at) AS changed_at
           FROM files WHERE batch_id = %(batch_id)s GROUP BY state) f ON true
WHERE b.id = %(batch_id)s
"""
EVENTS_SQL = """
SELECT event_id, event_type, batch_id, number, occurred_at, file_id, data FROM progress_events
WHERE batch_id = %s AND number > %s ORDER BY number LIMIT %s
"""
# whoever locks several files locks them by ordinal and id: two such statements cannot deadlock
QUEUE_WINDOW_SQL = """
WITH before AS (
    SELECT id FROM files
    WHERE batch_id = %(batch_id)s AND ordinal BETWEEN %(first)s AND %(last)s AND state = ANY(%(origins)s)
    ORDER BY ordinal, id FOR UPDATE
), moved AS (
    UPDATE files SET state = 'queued', updated_at = now() FROM before WHERE files.id = before.id
)
INSERT INTO progress_events (batch_id, file_id, event_type)
SELECT %(batch_id)s, id, 'FileScattered' FROM before
"""
# one row a file that is open, and one a final state: a re-run's window may span all of a large batch
WINDOW_SQL = """
SELECT CASE WHEN state = ANY(%(final)s) THEN NULL ELSE id END AS open_id, state, count(*) AS files FROM files
WHERE batch_id = %(batch_id)s AND ordinal BETWEEN %(first)s AND %(last)s GROUP BY 1, 2 ORDER BY min(ordinal)
"""
# by the files of the batch's generation, which stay the same however far they are: a reset finds the same stretches
STRETCHES_SQL = """
WITH numbered AS (
    SELECT f.ordinal, f.state, f.generation = b.generation AS again,
           count(*) FILTER (WHERE f.generation = b.generation) OVER (ORDER BY f.ordinal) AS so_far
    FROM files f JOIN batches b ON b.id = f.batch_id WHERE b.id = %(batch_id)s
)
SELECT greatest(so_far - 1, 0) / %(files)s AS stretch, state, min(ordinal) AS first, max(ordinal) AS last,
       count(*) AS files, count(*) FILTER (WHERE again) AS again
FROM numbered GROUP BY 1, 2 ORDER BY 1, 3
"""
CANCEL_FILES_SQL = """
WITH before AS (
    SELECT id, state FROM files WHERE batch_id = %(batch_id)s AND NOT state = ANY(%(final)s)
    ORDER BY ordinal, id FOR UPDATE
), moved AS (
    UPDATE files SET state = 'cancelled', updated_at = now() FROM before WHERE files.id = before.id
)
INSERT INTO progress_events (batch_id, file_id, event_type, data)
SELECT %(batch_id)s, id, 'StatusChanged',
       jsonb_build_object('machine', 'file', 'from', state, 'to', 'cancelled') FROM before
"""
DIAGNOSED_SQL = """
SELECT 1 AS one FROM ai_diagnoses WHERE batch_id = %s AND generation = %s AND recorded_at IS NOT NULL
"""
SET_PROCESSED_SQL = "UPDATE batches SET processed_files = %s WHERE id = %s"
END_EARLY_SQL = "UPDATE batches SET processed_files = %s, failure_code = %s WHERE id = %s"
UNFINISHED_SQL = f"""
SELECT {BATCH_COLUMNS} FROM batches
WHERE status = ANY(%s) AND updated_at < now() - make_interval(secs => %s) ORDER BY updated_at LIMIT 1000
"""
FINISHED_FILES_SQL = "SELECT id FROM files WHERE batch_id = %s AND state = ANY(%s)"
BATCH_IDS_BY_STATE_SQL = (
    "SELECT status, count(*) AS batches FROM batches WHERE tenant_id = %s GROUP BY status"
)
FILES_BY_STATE_SQL = "SELECT state, count(*) AS files FROM files WHERE tenant_id = %s GROUP BY state"

_FINAL_FILE = sorted(FILE_MACHINE.final)
#: how far a batch has come; every final state is past every running one
_ORDER = {
    state: rank
    for rank, state in enumerate(
        (
            BatchState.PENDING,
            BatchState.UPLOADED,
            BatchState.SCATTERING,
            BatchState.SCATTERED,
            BatchState.GATHERING,
            BatchState.GATHERED,
            BatchState.DIAGNOSING,
        )
    )
} | dict.fromkeys(BATCH_MACHINE.final, 100)


class PostgresBatches:
    """Batches and their files, as the API asks for them."""

    def __init__(
        self, postgres: Postgres, *, max_files: int = MAX_FILES, max_tenant_bytes: int = MAX_TENANT_BYTES
    ) -> None:
        self._postgres = postgres
        self._max_files = max_files
        self._max_tenant_bytes = max_tenant_bytes

    async def open(self, tenant_id: str, opening: BatchOpening, trace_id: str, batch_id: str) -> Batch:
        """A new pending batch under that id; one that is there is answered as it is.

        Raises `NotFound` for an exam or a baseline that the tenant does not have, `Conflict` for a baseline
        that is not gathered.
        """
        async with self._postgres.transaction() as connection:
            version = await self._rubric_version(connection, tenant_id, opening)
            baseline = None
            if opening.baseline is not None:
                baseline = await resolve_baseline(connection, tenant_id, opening.baseline)
            inserted = await connection.execute(
                OPEN_SQL,
                {
                    **vars(opening),
                    "id": batch_id,
                    "tenant_id": tenant_id,
                    "rubric_version": version,
                    "baseline_batch_id": baseline,
                    "status": BATCH_MACHINE.initial,
                    "trace_id": trace_id,
                },
            )
            if inserted.rowcount:
                await _tell(connection, batch_id, EventType.BATCH_CREATED, kind=opening.kind)
        return await self.read(tenant_id, batch_id)

    async def _rubric_version(self, connection: Connection, tenant_id: str, opening: BatchOpening) -> int:
        if opening.exam_id is None:
            return 1
        cursor = await connection.execute(NEWEST_RUBRIC_SQL, [opening.exam_id, tenant_id])
        row = await cursor.fetchone()
        if row is None:
            raise NotFound(f"There is no exam {opening.exam_id}.", field="exam_id")
        version: int = row["version"]
        return version

    async def read(self, tenant_id: str, batch_id: str) -> Batch:
        """The tenant's batch; raises `NotFound`."""
        row = await self._postgres.row(READ_BATCH_SQL, [batch_id, tenant_id])
        return batch_of(_found(row, batch_id))

    async def list_of_tenant(
        self, tenant_id: str, page: int, page_size: int, state: BatchState | None
    ) -> tuple[list[Batch], int]:
        """One page of batches, newest first, and how many there are."""
        parameters = {
            "tenant_id": tenant_id,
            "state": state,
            "limit": page_size,
            "offset": (page - 1) * page_size,
        }
        rows = await self._postgres.rows(LIST_BATCHES_SQL, parameters)
        counted = await self._postgres.row(COUNT_BATCHES_SQL, parameters)
        return [batch_of(row) for row in rows], counted["total"] if counted else 0

    async def check_accepts(self, tenant_id: str, batch_id: str, name: str) -> Batch:
        """The batch, if it takes files still; raises `BatchFrozen`, `LimitExceeded` or `NotFound`."""
        batch = await self.read(tenant_id, batch_id)
        _refuse_frozen(batch)
        stored = await self._postgres.row(STORED_BYTES_SQL, [tenant_id])
        if stored and stored["stored_bytes"] >= self._max_tenant_bytes:
            raise self._over(stored["stored_bytes"])
        if batch.total_files >= self._max_files:
            # a repetition is a no-op in a full batch, too
            known = await self._postgres.row(KNOWN_NAME_SQL, [batch_id, name])
            if known is None:
                raise self._full(name)
        return batch

    async def _store_bytes(self, connection: Connection, tenant_id: str, more_bytes: int) -> None:
        cursor = await connection.execute(STORE_BYTES_SQL, {"tenant_id": tenant_id, "bytes": more_bytes})
        row = await cursor.fetchone()
        assert row
        if more_bytes > 0 and row["stored_bytes"] > self._max_tenant_bytes:
            raise self._over(row["stored_bytes"] - more_bytes)

    def _over(self, stored_bytes: int) -> LimitExceeded:
        return LimitExceeded(
            f"The tenant has {stored_bytes:,} bytes stored; at most {self._max_tenant_bytes:,} "
            "(max_tenant_bytes) are possible."
        )

    def _full(self, name: str) -> LimitExceeded:
        return LimitExceeded(f"{name}: a batch takes at most {self._max_files:,} files (max_files).")

    async def add_file(
        self, tenant_id: str, batch_id: str, upload: Upload, *, overwrite: bool
    ) -> StoredUpload:
        """Write the file's row; same name and content is a no-op, other content `FileExists`."""
        async with self._postgres.transaction() as connection:
            # one upload's row at a time: nothing slips in behind `complete` or over the limit
            batch = await lock_batch_of(connection, tenant_id, batch_id)
            _refuse_frozen(batch)
            inserted = await connection.execute(
                ADD_FILE_SQL,
                {**vars(upload), "batch_id": batch_id, "tenant_id": tenant_id, "state": FILE_MACHINE.initial},
            )
            known = await _file_by_name(connection, batch_id, upload.name)
            if inserted.rowcount == 1:
                if batch.total_files >= self._max_files:
                    raise self._full(upload.name)
                await connection.execute(COUNT_IN_SQL, [batch_id])
                await self._store_bytes(connection, tenant_id, upload.size_bytes)
                return StoredUpload(known, created=True)
            if known.sha256 == upload.sha256:
                return StoredUpload(known, created=False)
            if not overwrite:
                raise FileExists(
                    f"{upload.name}: the batch has a file of this name with other content; "
                    "repeat with overwrite=true to replace it.",
                    field="name",
                )
            await connection.execute(REPLACE_FILE_SQL, {**vars(upload), "id": known.id})
            await self._store_bytes(connection, tenant_id, upload.size_bytes - known.size_bytes)
            replaced = await _file_by_name(connection, batch_id, upload.name)
            return StoredUpload(replaced, created=False, replaced_object_key=known.object_key)

    async def complete(self, tenant_id: str, batch_id: str) -> Batch:
        """Freeze the files and number them; a batch already frozen is answered as it is."""
        async with self._postgres.transaction() as connection:
            batch = await lock_batch_of(connection, tenant_id, batch_id)
            if batch.state is BatchState.PENDING:
                await self._freeze(connection, batch)
                batch = await lock_batch(connection, batch_id)
            elif batch.state is BatchState.CANCELLED:
                raise BatchFrozen("The batch is cancelled; open another one.")
            return batch

    async def _freeze(self, connection: Connection, batch: Batch) -> None:
        cursor = await connection.execute(COUNT_FILES_SQL, [batch.id])
        row = await cursor.fetchone()
        total = row["total"] if row else 0
        if total == 0:
            raise EmptyBatch("The batch has no files; upload at least one before completing it.")
        if total > self._max_files:
            raise LimitExceeded(
                f"The batch has {total:,} files; the limit is {self._max_files:,} (max_files)."
            )
        await connection.execute(FREEZE_FILES_SQL, {"batch_id": batch.id})
        await connection.execute(FREEZE_BATCH_SQL, [total, batch.id])
        if batch.opening.kind is BatchKind.GRADING:
            await connection.execute(MAKE_SUBMISSIONS_SQL, [batch.id])
        await _tell(connection, batch.id, EventType.UPLOAD_COMPLETED, total_files=total)
        await move_batch(connection, batch, BatchState.UPLOADED)

    async def cancel_before_start(self, tenant_id: str, batch_id: str) -> Batch | None:
        """Cancel a batch that no workflow runs yet; `None` if one does."""
        async with self._postgres.transaction() as connection:
            batch = await lock_batch_of(connection, tenant_id, batch_id)
            if batch.state is not BatchState.PENDING:
                return None
            await _cancel_files(connection, batch_id)
            await move_batch(connection, batch, BatchState.CANCELLED)
            return await lock_batch(connection, batch_id)

    async def files(
        self, tenant_id: str, batch_id: str, page: int, page_size: int
    ) -> tuple[list[StoredFile], int]:
        """One page of files in the order of their names, and how many there are."""
        await self.read(tenant_id, batch_id)
        rows = await self._postgres.rows(LIST_FILES_SQL, [batch_id, page_size, (page - 1) * page_size])
        counted = await self._postgres.row(COUNT_FILES_SQL, [batch_id])
        return [_file(row) for row in rows], counted["total"] if counted else 0

    async def file_sizes(self, batch_id: str) -> list[FileSize]:
        """Names and sizes of all its files."""
        rows = await self._postgres.rows(FILE_SIZES_SQL, [batch_id])
        return [FileSize(row["name"], row["size_bytes"]) for row in rows]

    async def file(self, tenant_id: str, batch_id: str, file_id: str) -> StoredFile:
        """One file; raises `NotFound`."""
        row = await self._postgres.row(READ_FILE_SQL, [file_id, batch_id, tenant_id])
        if row is None:
            raise NotFound(f"There is no file {file_id} in this batch.", field="file_id")
        return _file(row)

    async def submission(self, tenant_id: str, file_id: str) -> StoredFile:
        """The tenant's file, whichever batch it is in; raises `NotFound`."""
        row = await self._postgres.row(READ_SUBMISSION_SQL, [file_id, tenant_id])
        if row is None:
            raise NotFound(f"There is no submission {file_id}.", field="submission_id")
        return _file(row)

    async def progress(self, batch_id: str) -> Progress:
        """Counts by state from Postgres, the truth."""
        rows = await self._postgres.rows(COUNTS_SQL, {"batch_id": batch_id})
        if not rows:
            raise no_batch(batch_id)
        counts = Counts(**{row["state"]: row["files"] for row in rows if row["state"]})
        first = rows[0]
        changed = max([first["updated_at"], *(row["changed_at"] for row in rows if row["changed_at"])])
        return Progress(
            batch_id,
            first["status"],
            counts.percentage,
            changed.astimezone(UTC).isoformat(),
            counts,
            spent_nanodollars=first["spent_nanodollars"] or 0,
            settling_nanodollars=first["settling_nanodollars"] or 0,
            pause=_pause(first),
        )

    async def event_position(self, batch_id: str, file_id: str | None = None) -> EventPosition:
        """The batch's last number, and how many events (of that file, if one is named) have none yet."""
        row = await self._postgres.row(POSITION_SQL, {"batch_id": batch_id, "file_id": file_id})
        assert row is not None
        return EventPosition(row["last_number"], row["unnumbered"])

    async def events_after(self, batch_id: str, number: int, limit: int) -> list[ProgressEvent]:
        """Numbered events after that number, in order."""
        return [event_of(row) for row in await self._postgres.rows(EVENTS_SQL, [batch_id, number, limit])]

    async def census(self, tenant_id: str) -> tuple[dict[str, int], dict[str, int]]:
        """How many batches and how many files of the tenant are in each state."""
        batches = await self._postgres.rows(BATCH_IDS_BY_STATE_SQL, [tenant_id])
        files = await self._postgres.rows(FILES_BY_STATE_SQL, [tenant_id])
        return (
            {row["status"]: row["batches"] for row in batches},
            {row["state"]: row["files"] for row in files},
        )


class PostgresBatchRuns:
    """The moves of a running batch; each repetition, and each replay after a reset, is a no-op."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def begin_scattering(self, batch_id: str) -> None:
        """uploaded → scattering."""
        async with self._postgres.transaction() as connection:
            await _advance(connection, batch_id, BatchState.SCATTERING)

    async def queue_window(self, batch_id: str, first: int, last: int) -> Window:
        """Queue the files with these ordinals, both included."""
        async with self._postgres.transaction() as connection:
            await connection.execute(
                QUEUE_WINDOW_SQL,
                {
                    "batch_id": batch_id,
                    "first": first,
                    "last": last,
                    "origins": FILE_MACHINE.origins_of(FileState.QUEUED),
                },
            )
            cursor = await connection.execute(
                WINDOW_SQL, {"batch_id": batch_id, "first": first, "last": last, "final": _FINAL_FILE}
            )
            rows = await cursor.fetchall()
        ended = {row["state"]: row["files"] for row in rows if row["open_id"] is None}
        return Window([str(row["open_id"]) for row in rows if row["open_id"] is not None], ended)

    async def stretches(self, batch_id: str, files: int) -> list[Stretch]:
        """All ordinals in stretches, each with at most so many files of the batch's generation."""
        rows = await self._postgres.rows(STRETCHES_SQL, {"batch_id": batch_id, "files": files})
        return [
            Stretch(
                first=min(row["first"] for row in of_one),
                last=max(row["last"] for row in of_one),
                again=sum(row["again"] for row in of_one),
                ended={row["state"]: row["files"] for row in of_one if row["state"] in FILE_MACHINE.final},
            )
            for of_one in (list(group) for _, group in groupby(rows, key=lambda row: row["stretch"]))
        ]

    async def open_barrier(self, batch_id: str) -> Counts:
        """scattering → scattered, once every file is final."""
        async with self._postgres.transaction() as connection:
            batch = await lock_batch(connection, batch_id)
            counts = await _counts(connection, batch_id)
            if counts.finished != batch.total_files:
                raise Conflict(
                    f"The barrier stays shut: {counts.finished} of {batch.total_files} files are finished."
                )
            if batch.state is BatchState.PAUSED:
                # the files that waited were ended by hand: nobody is left to be resumed
                await move_batch(connection, batch, BatchState.SCATTERING)
            if await _advance(connection, batch_id, BatchState.SCATTERED):
                await _tell(connection, batch_id, EventType.ALL_FILES_SCATTERED, files=counts.finished)
            return counts

    async def begin_gathering(self, batch_id: str) -> None:
        """scattered → gathering."""
        async with self._postgres.transaction() as connection:
            await _advance(connection, batch_id, BatchState.GATHERING)

    async def gather(self, batch_id: str) -> Counts:
        """scattered → gathering → gathered: the files' outcomes counted."""
        async with self._postgres.transaction() as connection:
            await _advance(connection, batch_id, BatchState.GATHERING)
            counts = await _counts(connection, batch_id)
            await connection.execute(SET_PROCESSED_SQL, [counts.finished, batch_id])
            if await _advance(connection, batch_id, BatchState.GATHERED):
                await _tell(connection, batch_id, EventType.ALL_FILES_GATHERED, counts=vars(counts))
            return counts

    async def begin_diagnosing(self, batch_id: str) -> None:
        """gathered → diagnosing."""
        async with self._postgres.transaction() as connection:
            await _advance(connection, batch_id, BatchState.DIAGNOSING)

    async def finish(self, batch_id: str) -> BatchState:
        """gathered or diagnosing → completed, partial or failed, with `ReportReady`."""
        async with self._postgres.transaction() as connection:
            batch = await lock_batch(connection, batch_id)
            if batch.state in BATCH_MACHINE.final:
                return batch.state
            # the table lets any running batch end early; here only one whose work is done may end
            BATCH_MACHINE.check(batch.state, BatchState.COMPLETED)
            outcome = outcome_of(await _counts(connection, batch_id))
            if outcome is BatchState.COMPLETED and await _lacks_diagnosis(connection, batch):
                outcome = BatchState.PARTIAL
            await _tell(connection, batch_id, EventType.REPORT_READY)
            await move_batch(connection, batch, outcome)
            return outcome

    async def end_early(
        self, batch_id: str, target: BatchState, code: str | None, *, generation: int = 1
    ) -> Counts:
        """That generation of the batch ends `cancelled` or `failed`, its unfinished files `cancelled`."""
        async with self._postgres.transaction() as connection:
            batch = await lock_batch(connection, batch_id)
            # a straggler of an earlier generation ends nothing of this one
            if batch.state not in BATCH_MACHINE.final and batch.generation == generation:
                await _cancel_files(connection, batch_id)
                counts = await _counts(connection, batch_id)
                await connection.execute(END_EARLY_SQL, [counts.finished, code, batch_id])
                await move_batch(connection, batch, target)
            return await _counts(connection, batch_id)

    async def unfinished(self, quiet_seconds: float) -> list[Batch]:
        """Batches that are complete and not final, and have not changed their state for so long."""
        waiting = [state for state in BatchState if state not in (*BATCH_MACHINE.final, BatchState.PENDING)]
        return [batch_of(row) for row in await self._postgres.rows(UNFINISHED_SQL, [waiting, quiet_seconds])]

    async def finished_files(self, batch_id: str) -> list[str]:
        """The ids of files in a final state."""
        rows = await self._postgres.rows(FINISHED_FILES_SQL, [batch_id, _FINAL_FILE])
        return [str(row["id"]) for row in rows]


def outcome_of(counts: Counts) -> BatchState:
    """The final state of a batch whose files ended like this."""
    if counts.completed == counts.total:
        return BatchState.COMPLETED
    return BatchState.PARTIAL if counts.completed else BatchState.FAILED


async def _lacks_diagnosis(connection: Connection, batch: Batch) -> bool:
    """Whether the batch was to be diagnosed, and could not be."""
    if batch.opening.kind is not BatchKind.DIAGNOSIS:
        return False
    cursor = await connection.execute(DIAGNOSED_SQL, [batch.id, batch.generation])
    return await cursor.fetchone() is None


# --- moves, within the caller's transaction ------------------------------------------------------


async def lock_batch(connection: Connection, batch_id: str) -> Batch:
    """The batch, locked until the transaction ends; raises `NotFound`."""
    cursor = await connection.execute(LOCK_BATCH_SQL, [batch_id])
    return batch_of(_found(await cursor.fetchone(), batch_id))


async def lock_batch_of(connection: Connection, tenant_id: str, batch_id: str) -> Batch:
    """The tenant's batch, locked until the transaction ends; raises `NotFound`."""
    batch = await lock_batch(connection, batch_id)
    if batch.tenant_id != tenant_id:
        raise no_batch(batch_id)
    return batch


async def _advance(connection: Connection, batch_id: str, target: BatchState) -> bool:
    """Move on to the target; `False` where the batch has been there already."""
    batch = await lock_batch(connection, batch_id)
    if batch.state is BatchState.PAUSED:
        raise Conflict(f"The batch is paused; it is resumed before it becomes {target}.")
    if _ORDER[batch.state] >= _ORDER[target] and batch.state is not BatchState.CANCELLED:
        return False
    await move_batch(connection, batch, target)
    return True


async def move_batch(connection: Connection, batch: Batch, target: BatchState, **why: Any) -> None:
    """Move a locked batch, and tell it; raises `IllegalTransition`."""
    BATCH_MACHINE.check(batch.state, target)
    await connection.execute(MOVE_BATCH_SQL, {"target": target, "batch_id": batch.id})
    moved = {"machine": "batch", "from": batch.state, "to": target, **why}
    await connection.execute(TELL_SQL, [batch.id, None, EventType.STATUS_CHANGED, Jsonb(moved)])


async def _tell(connection: Connection, batch_id: str, event: EventType, **data: Any) -> None:
    await connection.execute(TELL_SQL, [batch_id, None, event, Jsonb(data)])


async def _cancel_files(connection: Connection, batch_id: str) -> None:
    await connection.execute(CANCEL_FILES_SQL, {"batch_id": batch_id, "final": _FINAL_FILE})


async def _counts(connection: Connection, batch_id: str) -> Counts:
    cursor = await connection.execute(COUNTS_SQL, {"batch_id": batch_id})
    return Counts(**{row["state"]: row["files"] for row in await cursor.fetchall() if row["state"]})


async def _file_by_name(connection: Connection, batch_id: str, name: str) -> StoredFile:
    cursor = await connection.execute(FILE_BY_NAME_SQL, [batch_id, name])
    row = await cursor.fetchone()
    assert row is not None
    return _file(row)


def _refuse_frozen(batch: Batch) -> None:
    if batch.state is not BatchState.PENDING:
        raise BatchFrozen(f"The batch is {batch.state}; files are added before `complete`.")


def _found(row: DictRow | None, batch_id: str) -> DictRow:
    if row is None:
        raise no_batch(batch_id)
    return row


def no_batch(batch_id: str) -> NotFound:
    """The refusal of a batch that is not there, or is another tenant's."""
    return NotFound(f"There is no batch {batch_id}.", field="batch_id")


# --- mappers ---------------------------------------------------------------------------------------


def batch_of(row: DictRow) -> Batch:
    """The batch that a row of `BATCH_COLUMNS` describes."""
    return Batch(
        id=str(row["id"]),
        tenant_id=row["tenant_id"],
        opening=BatchOpening(
            kind=BatchKind(row["kind"]),
            exam_id=None if row["exam_id"] is None else str(row["exam_id"]),
            baseline=row["baseline"],
            name=row["name"],
            model=row["model"],
            vehicle_id=row["vehicle_id"],
            vin=row["vin"],
            expected_workers=row["expected_workers"],
            max_concurrent=row["max_concurrent"],
            limit_nanodollars=row["limit_nanodollars"],
        ),
        rubric_version=row["rubric_version"],
        state=BatchState(row["status"]),
        generation=row["generation"],
        total_files=row["total_files"],
        trace_id=row["trace_id"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        failure_code=row["failure_code"],
        resumptions=row["resumptions"],
        baseline_batch_id=None if row["baseline_batch_id"] is None else str(row["baseline_batch_id"]),
    )


def _pause(row: DictRow) -> Pause | None:
    if row["paused_from"] is None:
        return None
    return Pause(row["paused_scope"], row["missing_nanodollars"], resumptions=row["resumptions"])


def _file(row: DictRow) -> StoredFile:
    ids = {"id": str(row["id"]), "batch_id": str(row["batch_id"])}
    log = None if row["log"] is None else LogFigures(**row["log"])
    return StoredFile(**{**row, **ids, "state": FileState(row["state"]), "log": log})


def event_of(row: DictRow) -> ProgressEvent:
    """The event that a row with a number describes."""
    return ProgressEvent(
        event_id=str(row["event_id"]),
        event_type=row["event_type"],
        batch_id=str(row["batch_id"]),
        number=row["number"],
        timestamp=row["occurred_at"].astimezone(UTC).isoformat(),
        file_id=None if row["file_id"] is None else str(row["file_id"]),
        data=row["data"],
    )

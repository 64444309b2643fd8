"""Resumable uploads: rows of parts; the offset moves only from where it is (B2)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from db.postgres.pool import Postgres
from domain.errors import Conflict, LimitExceeded
from domain.uploads import MAX_RESUMABLE, RESUMABLE_FOR, ResumableUpload

OPEN_SQL = """
INSERT INTO resumable_uploads (id, tenant_id, batch_id, name, size_bytes, metadata, expires_at)
SELECT %(id)s, %(tenant_id)s, %(batch_id)s, %(name)s, %(size_bytes)s, %(metadata)s, %(expires_at)s
WHERE (SELECT count(*) FROM resumable_uploads
       WHERE tenant_id = %(tenant_id)s AND file_id IS NULL AND expires_at > clock_timestamp()) < %(at_most)s
"""
FIND_SQL = """
SELECT id, tenant_id, batch_id, name, size_bytes, offset_bytes, metadata, file_id, expires_at
FROM resumable_uploads WHERE id = %s AND tenant_id = %s AND expires_at > clock_timestamp()
"""
STATE_SIZE_SQL = """
UPDATE resumable_uploads SET size_bytes = %s, updated_at = now() WHERE id = %s AND size_bytes IS NULL
"""
# of two requests that bring the same stretch, one finds the offset moved
MOVE_OFFSET_SQL = """
UPDATE resumable_uploads
SET offset_bytes = offset_bytes + %(size_bytes)s, updated_at = now(), expires_at = now() + %(kept)s
WHERE id = %(upload_id)s AND offset_bytes = %(offset_bytes)s AND file_id IS NULL
RETURNING expires_at
"""
ADD_PART_SQL = """
INSERT INTO resumable_upload_parts (upload_id, offset_bytes, size_bytes, object_key)
VALUES (%(upload_id)s, %(offset_bytes)s, %(size_bytes)s, %(object_key)s)
"""
PARTS_SQL = "SELECT object_key FROM resumable_upload_parts WHERE upload_id = %s ORDER BY offset_bytes"
FINISH_SQL = "UPDATE resumable_uploads SET file_id = %s, updated_at = now() WHERE id = %s"
TAKE_PARTS_SQL = "DELETE FROM resumable_upload_parts WHERE upload_id = %s RETURNING object_key"
REMOVE_SQL = "DELETE FROM resumable_uploads WHERE id = %s"
EXPIRED_SQL = """
SELECT id FROM resumable_uploads WHERE expires_at <= clock_timestamp() ORDER BY expires_at LIMIT %s
"""
KNOWN_KEYS_SQL = """
SELECT object_key FROM resumable_upload_parts WHERE object_key = ANY(%s)
"""


class PostgresResumableUploads:
    """Resumable uploads, as the API and the sweeper ask for them."""

    def __init__(self, postgres: Postgres, *, at_most: int = MAX_RESUMABLE) -> None:
        self._postgres = postgres
        self._at_most = at_most

    async def open(self, upload: ResumableUpload) -> None:
        """A new one; raises `LimitExceeded` when the tenant has too many unfinished ones."""
        values = {**vars(upload), "metadata": Jsonb(dict(upload.metadata)), "at_most": self._at_most}
        async with self._postgres.transaction() as connection:
            inserted = await connection.execute(OPEN_SQL, values)
        if not inserted.rowcount:
            raise LimitExceeded(
                f"{self._at_most:,} uploads are unfinished (max_resumable); "
                "finish or delete some of them before opening others."
            )

    async def find(self, tenant_id: str, upload_id: str) -> ResumableUpload | None:
        """The tenant's upload, unless it has expired."""
        row = await self._postgres.row(FIND_SQL, [upload_id, tenant_id])
        return _upload_of(row) if row else None

    async def state_size(self, upload_id: str, size_bytes: int) -> None:
        """The client says how large it will be; a size that was stated stays."""
        async with self._postgres.transaction() as connection:
            await connection.execute(STATE_SIZE_SQL, [size_bytes, upload_id])

    async def add_part(self, upload_id: str, offset_bytes: int, size_bytes: int, object_key: str) -> datetime:
        """Count a stored part in; raises `Conflict` unless it begins where the upload ends."""
        part = {
            "upload_id": upload_id,
            "offset_bytes": offset_bytes,
            "size_bytes": size_bytes,
            "object_key": object_key,
            "kept": RESUMABLE_FOR,
        }
        async with self._postgres.transaction() as connection:
            cursor = await connection.execute(MOVE_OFFSET_SQL, part)
            row = await cursor.fetchone()
            if row is None:
                raise Conflict("Another request has gone on with this upload; ask for its offset again.")
            await connection.execute(ADD_PART_SQL, part)
        expires_at: datetime = row["expires_at"]
        return expires_at

    async def part_keys(self, upload_id: str) -> list[str]:
        """The objects of its parts, in order."""
        return [row["object_key"] for row in await self._postgres.rows(PARTS_SQL, [upload_id])]

    async def finish(self, upload_id: str, file_id: str) -> list[str]:
        """It has become that file; the objects of its parts, which nobody needs any more."""
        async with self._postgres.transaction() as connection:
            await connection.execute(FINISH_SQL, [file_id, upload_id])
            cursor = await connection.execute(TAKE_PARTS_SQL, [upload_id])
            return [row["object_key"] for row in await cursor.fetchall()]

    async def remove(self, upload_id: str) -> list[str]:
        """Forget it; the objects of its parts."""
        async with self._postgres.transaction() as connection:
            cursor = await connection.execute(TAKE_PARTS_SQL, [upload_id])
            keys = [row["object_key"] for row in await cursor.fetchall()]
            await connection.execute(REMOVE_SQL, [upload_id])
        return keys

    async def expired(self, limit: int) -> list[str]:
        """Uploads that have waited too long for their next part, or have been files for as long."""
        return [str(row["id"]) for row in await self._postgres.rows(EXPIRED_SQL, [limit])]

    async def known(self, object_keys: list[str]) -> set[str]:
        """Those of the objects that are parts of an upload."""
        rows = await self._postgres.rows(KNOWN_KEYS_SQL, [object_keys])
        return {row["object_key"] for row in rows}


def _upload_of(row: Mapping[str, Any]) -> ResumableUpload:
    file_id = row["file_id"]
    return ResumableUpload(
        **{
            **row,
            # as tuspyserver writes it
            "id": UUID(str(row["id"])).hex,
            "batch_id": str(row["batch_id"]),
            "file_id": None if file_id is None else str(file_id),
        }
    )

"""Baselines: the batches that others are compared with, by name."""

from psycopg.rows import DictRow

from db.postgres.pool import Connection, Postgres
from domain.diagnosis import NamedBaseline
from domain.errors import Conflict, NotFound
from domain.identity import is_uuid

# it can be compared with once it has ended and was gathered
BATCH_SQL = """
SELECT b.status, b.status = ANY(%(ended)s) AND EXISTS (
           SELECT FROM log_summaries s WHERE s.batch_id = b.id) AS gathered
FROM batches b WHERE b.id = %(batch_id)s AND b.tenant_id = %(tenant_id)s
"""
PUT_SQL = """
INSERT INTO baselines AS known (tenant_id, name, batch_id) VALUES (%s, %s, %s)
ON CONFLICT (tenant_id, name) DO UPDATE
SET batch_id = EXCLUDED.batch_id,
    updated_at = CASE WHEN known.batch_id = EXCLUDED.batch_id THEN known.updated_at ELSE now() END
RETURNING *
"""
READ_SQL = "SELECT * FROM baselines WHERE tenant_id = %s AND name = %s"
LIST_SQL = "SELECT * FROM baselines WHERE tenant_id = %s ORDER BY name LIMIT %s OFFSET %s"
COUNT_SQL = "SELECT count(*) AS total FROM baselines WHERE tenant_id = %s"
REMOVE_SQL = "DELETE FROM baselines WHERE tenant_id = %s AND name = %s"

_ENDED = ["completed", "partial"]


class PostgresBaselines:
    """A tenant's baselines; the port `Baselines`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def put(self, tenant_id: str, name: str, batch_id: str) -> NamedBaseline:
        """Name a gathered batch, in place of what had the name; raises `NotFound` or `Conflict`."""
        async with self._postgres.transaction() as connection:
            await _check_gathered(connection, tenant_id, batch_id, "batch_id")
            row = await (await connection.execute(PUT_SQL, [tenant_id, name, batch_id])).fetchone()
        assert row is not None
        return _baseline(row)

    async def read(self, tenant_id: str, name: str) -> NamedBaseline:
        """The tenant's baseline; raises `NotFound`."""
        row = await self._postgres.row(READ_SQL, [tenant_id, name])
        if row is None:
            raise no_baseline(name, "name")
        return _baseline(row)

    async def list_of_tenant(
        self, tenant_id: str, page: int, page_size: int
    ) -> tuple[list[NamedBaseline], int]:
        """One page of baselines in the order of their names, and how many there are."""
        rows = await self._postgres.rows(LIST_SQL, [tenant_id, page_size, (page - 1) * page_size])
        counted = await self._postgres.row(COUNT_SQL, [tenant_id])
        return [_baseline(row) for row in rows], counted["total"] if counted else 0

    async def remove(self, tenant_id: str, name: str) -> None:
        """Forget the name; batches that were opened with it keep theirs. Raises `NotFound`."""
        if not await self._postgres.run(REMOVE_SQL, [tenant_id, name]):
            raise no_baseline(name, "name")


async def resolve_baseline(connection: Connection, tenant_id: str, named: str) -> str:
    """The id of the batch that a name, or an id, means for that tenant; raises `NotFound` or `Conflict`."""
    row = await (await connection.execute(READ_SQL, [tenant_id, named])).fetchone()
    if row is not None:
        return str(row["batch_id"])
    if not is_uuid(named):
        raise no_baseline(named, "baseline")
    await _check_gathered(connection, tenant_id, named, "baseline")
    return named


async def _check_gathered(connection: Connection, tenant_id: str, batch_id: str, field: str) -> None:
    cursor = await connection.execute(
        BATCH_SQL, {"batch_id": batch_id, "tenant_id": tenant_id, "ended": _ENDED}
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFound(f"There is no batch {batch_id}.", field=field)
    if not row["gathered"]:
        raise Conflict(
            f"Batch {batch_id} is {row['status']}; only a batch of logs that has ended, and of which "
            "something could be parsed, can be compared with.",
            field=field,
        )


def no_baseline(name: str, field: str) -> NotFound:
    """The refusal of a baseline that is not there, or is another tenant's."""
    return NotFound(f"There is no baseline {name[:255]!r}; `GET /v1/baselines` lists them.", field=field)


def _baseline(row: DictRow) -> NamedBaseline:
    return NamedBaseline(row["name"], str(row["batch_id"]), row["created_at"], row["updated_at"])

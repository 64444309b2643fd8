"""Numbered, forward-only, checksummed migrations under one advisory lock."""

import asyncio
import hashlib
from dataclasses import dataclass
from importlib.resources import files

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from db.postgres.pool import Connection, translated_errors
from domain.errors import Defect, PostgresUnavailable

_ADVISORY_LOCK = 0x0A55A7
_LOCK_WAIT_SECONDS = 60.0

MIGRATIONS_TABLE_SQL = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       text PRIMARY KEY,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
APPLIED_SQL = "SELECT name, sha256 FROM schema_migrations"
RECORD_SQL = "INSERT INTO schema_migrations (name, sha256) VALUES (%s, %s)"


@dataclass(frozen=True)
class Migration:
    """One numbered file of SQL."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The checksum that an applied migration must keep."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All migrations, in order."""
    folder = files("db.postgres") / "migrations"
    found = [
        Migration(each.name, each.read_text()) for each in folder.iterdir() if each.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.name)


async def migrate(url: str) -> list[str]:
    """Bring the schema up to date; answers the names of what was applied now."""
    with translated_errors():
        connection = await AsyncConnection.connect(
            url, autocommit=True, row_factory=dict_row, prepare_threshold=0, connect_timeout=5
        )
        async with connection:
            await _lock(connection)
            # LangGraph's setup takes no lock of its own and must precede the views over its tables
            await AsyncPostgresSaver(connection).setup()
            return await _apply(connection)


async def _lock(connection: Connection) -> None:
    # pg_advisory_lock would hold a snapshot while it waits, and LangGraph's CREATE INDEX
    # CONCURRENTLY waits for every snapshot: a deadlock. Trying again holds none.
    for _ in range(int(_LOCK_WAIT_SECONDS / 0.1)):
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s) AS held", [_ADVISORY_LOCK])
        row = await cursor.fetchone()
        if row is not None and row["held"]:
            return
        await asyncio.sleep(0.1)
    raise PostgresUnavailable(f"Another migration has been running for over {_LOCK_WAIT_SECONDS:.0f} s.")


async def _apply(connection: Connection) -> list[str]:
    await connection.execute(MIGRATIONS_TABLE_SQL)
    cursor = await connection.execute(APPLIED_SQL)
    applied = {row["name"]: row["sha256"] for row in await cursor.fetchall()}
    fresh: list[str] = []
    for migration in migrations():
        if migration.name not in applied:
            await _run(connection, migration)
            fresh.append(migration.name)
        elif applied[migration.name] != migration.sha256:
            raise Defect(
                f"Migration {migration.name} was edited after it was applied; add a new one instead."
            )
    return fresh


async def _run(connection: Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '5s'")
            await connection.execute("SET LOCAL statement_timeout = '60s'")
            await connection.execute(migration.sql.encode(), prepare=False)
            await connection.execute(RECORD_SQL, [migration.name, migration.sha256])
    except psycopg.errors.SyntaxError as error:
        raise Defect(f"Migration {migration.name}: {error}") from error

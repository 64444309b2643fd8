"""What happened cannot be rewritten: by privilege for the application, by trigger for everyone."""

import psycopg
import pytest

from db.postgres.pool import APPLICATION_ROLE, Postgres
from tests.db.purse import a_call, held, opened_ledger
from tests.db.stage import opened_postgres

CHANGES = ["UPDATE {} SET tenant_id = 'x'", "DELETE FROM {}", "TRUNCATE {}"]
TABLES = ["ledger_events", "ledger_facts"]


@pytest.fixture(autouse=True)
async def _something_to_rewrite(database_url: str) -> None:
    async with opened_ledger(database_url) as ledger:
        await held(ledger, a_call())


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("change", CHANGES)
async def test_the_applications_role_lacks_the_privilege(database_url: str, table: str, change: str) -> None:
    async with opened_postgres(database_url, role=APPLICATION_ROLE) as postgres:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await postgres.run(change.format(table))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("change", CHANGES)
async def test_the_owner_is_stopped_by_a_trigger(database_url: str, table: str, change: str) -> None:
    async with opened_postgres(database_url) as postgres:
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            await postgres.run(change.format(table))


async def test_the_role_may_do_everything_else_that_the_application_does(database_url: str) -> None:
    async with opened_postgres(database_url, role=APPLICATION_ROLE) as postgres:
        row = await postgres.row("SELECT current_user AS name, current_setting('is_superuser') AS super")
        assert row == {"name": APPLICATION_ROLE, "super": "off"}
        missing = await _tables_without(postgres, "SELECT, INSERT, UPDATE, DELETE")
        assert missing <= {
            *TABLES, "ledger_accounts", "ledger_holds", "schema_migrations", "outbox", "workflow_state_cache"
        }  # fmt: skip


async def test_the_writer_acts_in_that_role(database_url: str) -> None:
    async with opened_ledger(database_url) as ledger:
        await held(ledger, a_call())
        connection = ledger.writer._connection
        assert connection is not None
        cursor = await connection.execute("SELECT current_user AS name")
        assert await cursor.fetchone() == {"name": APPLICATION_ROLE}


async def _tables_without(postgres: Postgres, privileges: str) -> set[str]:
    rows = await postgres.rows(
        "SELECT c.relname FROM pg_class c, unnest(string_to_array(%s, ', ')) p"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')"
        " AND NOT has_table_privilege(%s, c.oid, p)",
        [privileges, APPLICATION_ROLE],
    )
    return {row["relname"] for row in rows}

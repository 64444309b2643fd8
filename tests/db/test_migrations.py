"""Migrations: once each, by one process at a time, never edited; rubrics are never changed in place."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import psycopg
import pytest

from db.postgres.migrate import migrate, migrations
from db.postgres.pool import Postgres
from domain.errors import Defect, PostgresUnavailable
from domain.exam import Exam
from runtime.embedded import Addresses
from tests.db.stage import opened_postgres


@pytest.fixture
async def empty_url(addresses: Addresses) -> AsyncIterator[str]:
    name = f"empty_{secrets.token_hex(6)}"
    async with await psycopg.AsyncConnection.connect(addresses.postgres_url, autocommit=True) as admin:
        await admin.execute(f"CREATE DATABASE {name}".encode())
        yield addresses.postgres_url.rpartition("/")[0] + f"/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_several_processes_may_migrate_at_once_and_one_does(empty_url: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_url) for _ in range(3)))
    names = [each.name for each in migrations()]
    assert sorted(applied) == [[], [], names]


async def test_a_second_run_applies_nothing(database_url: str) -> None:
    assert await migrate(database_url) == []


async def test_an_edited_migration_is_refused_by_its_name(database_url: str) -> None:
    async with opened_postgres(database_url) as postgres:
        await postgres.run("UPDATE schema_migrations SET sha256 = 'other' WHERE name LIKE '0001%%'", [])
        with pytest.raises(Defect, match=r"0001_initial\.sql was edited"):
            await migrate(database_url)


async def test_a_database_that_is_away_is_said_to_be_unavailable(database_url: str) -> None:
    with pytest.raises(PostgresUnavailable):
        await migrate(database_url.rpartition("/")[0] + "/nowhere")


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [int(each.name[:4]) for each in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("table", ["rubrics", "criteria"])
@pytest.mark.parametrize("change", ["UPDATE {} SET version = 2", "DELETE FROM {}"])
async def test_a_rubric_is_never_changed_in_place(
    postgres: Postgres, exam: Exam, table: str, change: str
) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="never changed in place"):
        await postgres.run(change.format(table))

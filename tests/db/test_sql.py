"""Every statement is understood by the migrated schema."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

import psycopg
import pytest

import db.postgres
from db.postgres.pool import Postgres


def statements() -> Iterator[tuple[str, str]]:
    names = [f"db.postgres.{each.name}" for each in pkgutil.iter_modules(db.postgres.__path__)]
    for module in map(importlib.import_module, [*names, "db.relay"]):
        for name, value in vars(module).items():
            if name.endswith("_SQL") and isinstance(value, str):
                yield f"{module.__name__}.{name}", value


def numbered(sql: str) -> str:
    """The statement with `$n` where psycopg has its placeholders."""
    places: dict[str, int] = {}

    def place(match: re.Match[str]) -> str:
        if match.group() == "%%":
            return "%"
        key = match["name"] or f"#{len(places)}"
        return f"${places.setdefault(key, len(places) + 1)}"

    return re.sub(r"%%|%s|%\((?P<name>\w+)\)s", place, sql)


STATEMENTS = dict(statements())
DEFINITIONS = {"db.postgres.migrate.MIGRATIONS_TABLE_SQL"}


@pytest.mark.parametrize("name", sorted(STATEMENTS.keys() - DEFINITIONS))
async def test_every_statement_is_prepared_against_the_schema(session_database_url: str, name: str) -> None:
    async with await psycopg.AsyncConnection.connect(session_database_url) as connection:
        await connection.execute(f"PREPARE each AS {numbered(STATEMENTS[name])}".encode(), prepare=False)
        await connection.rollback()


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
async def test_every_definition_may_be_repeated(postgres: Postgres, name: str) -> None:
    await postgres.run(STATEMENTS[name])


def test_the_search_for_statements_finds_them() -> None:
    modules = {name.rpartition(".")[0] for name in STATEMENTS}
    assert {"db.relay", "db.postgres.batches", "db.postgres.grading", "db.postgres.exams"} <= modules
    assert len(STATEMENTS) > 50


def test_placeholders_become_numbers() -> None:
    assert numbered("a %s b %s LIKE '%%'") == "a $1 b $2 LIKE '%'"
    assert numbered("%(x)s %(y)s %(x)s") == "$1 $2 $1"

"""Postgres and Redis without Temporal: the session's database for fresh ids, or one of a test's own."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from db.postgres.pool import Postgres
from db.redis.connection import RedisLink
from domain.exam import Exam
from runtime.embedded import Addresses, ValkeyServer
from tests.db.stage import opened_postgres, own_valkey, stored_exam


@pytest.fixture(scope="session")
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    """A pool over the session's database, for tests that isolate themselves by fresh ids."""
    async with opened_postgres(session_database_url) as opened:
        yield opened


@pytest.fixture
async def own_postgres(database_url: str) -> AsyncIterator[Postgres]:
    """A pool over this test's own database."""
    async with opened_postgres(database_url) as opened:
        yield opened


@pytest.fixture(scope="session")
async def exam(postgres: Postgres) -> Exam:
    """A stored exam of the tenant `local`."""
    return await stored_exam(postgres)


@pytest.fixture
async def redis(addresses: Addresses) -> AsyncIterator[RedisLink]:
    """A link to the session's Valkey."""
    link = RedisLink.to(addresses.redis_url, max_connections=10, timeout_seconds=5)
    yield link
    await link.close()


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    """A Valkey of this test's own, to be stopped, frozen or filled."""
    async with own_valkey(tmp_path / "valkey-stack") as server:
        yield server


@pytest.fixture
async def own_link(valkey: ValkeyServer) -> AsyncIterator[RedisLink]:
    """A link to this test's own Valkey, quick to give up."""
    link = RedisLink.to(valkey.url, max_connections=4, timeout_seconds=0.5)
    yield link
    await link.close()


@pytest.fixture
def fresh() -> str:
    """A part of keys and channels that no other test uses."""
    return secrets.token_hex(6)

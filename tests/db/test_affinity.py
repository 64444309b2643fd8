"""A session's preference: claimed by who answered, never by two who saw the same, and gone with Redis."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from db.redis.affinity import AFFINITY_SECONDS, RedisAffinities, affinity_key
from db.redis.connection import RedisLink
from domain.gateway import Affinity
from runtime.embedded import Addresses

TENANT = "tenant"


@pytest.fixture
async def link(addresses: Addresses) -> AsyncIterator[RedisLink]:
    opened = RedisLink.to(addresses.redis_url, max_connections=20, timeout_seconds=5)
    yield opened
    await opened.close()


@pytest.fixture
def affinities(link: RedisLink) -> RedisAffinities:
    return RedisAffinities(link)


@pytest.fixture
def session() -> str:
    """A session of this test's own."""
    return uuid4().hex


async def test_a_claim_is_found_for_an_hour_by_its_own_tenant_alone(
    affinities: RedisAffinities, link: RedisLink, session: str
) -> None:
    assert await affinities.read(TENANT, session) is None
    assert await affinities.claim(TENANT, session, "one:model", seen=None)
    assert await affinities.read(TENANT, session) == Affinity("one:model", 1)
    assert await affinities.read("other", session) is None
    assert 0 < await link.client.ttl(affinity_key(TENANT, session)) <= AFFINITY_SECONDS


async def test_of_those_who_saw_the_same_one_claims(affinities: RedisAffinities, session: str) -> None:
    await affinities.claim(TENANT, session, "one:model", seen=None)
    seen = await affinities.read(TENANT, session)
    models = [f"campus:{number}" for number in range(10)]
    claimed = await asyncio.gather(*(affinities.claim(TENANT, session, each, seen=seen) for each in models))
    assert sum(claimed) == 1
    assert await affinities.read(TENANT, session) == Affinity(models[claimed.index(True)], 2)
    assert not await affinities.claim(TENANT, session, "late:model", seen=None)


async def test_a_preference_that_has_expired_is_claimed_anew_with_a_higher_version(
    affinities: RedisAffinities, link: RedisLink, session: str
) -> None:
    await affinities.claim(TENANT, session, "one:model", seen=None)
    seen = await affinities.read(TENANT, session)
    await link.client.delete(affinity_key(TENANT, session))
    assert await affinities.claim(TENANT, session, "two:model", seen=seen)
    assert await affinities.read(TENANT, session) == Affinity("two:model", 2)


async def test_without_redis_nothing_is_preferred_and_nothing_fails(session: str) -> None:
    away = RedisLink.to("redis://127.0.0.1:1/0", max_connections=1, timeout_seconds=1)
    affinities = RedisAffinities(away)
    assert await affinities.read(TENANT, session) is None
    assert not await affinities.claim(TENANT, session, "one:model", seen=None)
    await away.close()

"""Property 22: one holder at a time, and a late one cannot write; on real Valkey and Postgres."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import strategies as st

from db.postgres.locks import PostgresAdvisoryLocks, PostgresFences, check_fence
from db.postgres.pool import Postgres
from db.redis.connection import RedisLink
from db.redis.locks import RedisLocks
from domain.errors import LeaseLost, LockTimeout
from domain.locks import Lease
from runtime.embedded import ValkeyServer
from tests.db.stage import opened_postgres, own_valkey
from tests.properties.drawing import drawn

LEASE_SECONDS = 0.3
AT_ONCE = 30

Fate = Literal["released", "crashed", "failed", "without Redis"]


@dataclass(frozen=True)
class Visit:
    """Somebody who comes for the lock: when, for how long, with what patience, and how it ends."""

    after_seconds: float
    works_seconds: float
    waits_seconds: float
    fate: Fate


@dataclass(frozen=True)
class Case:
    """Visits to one lock, and when Redis forgets everything."""

    visits: list[Visit]
    flushed_after_seconds: float | None

    @property
    def undisturbed(self) -> bool:
        """Whether the same server is asked all the time, and remembers."""
        alike = {visit.fate == "without Redis" for visit in self.visits}
        return self.flushed_after_seconds is None and len(alike) == 1


def seconds(*milliseconds: int) -> st.SearchStrategy[float]:
    return st.sampled_from([each / 1000 for each in milliseconds])


CASES = st.builds(
    Case,
    visits=st.lists(
        st.builds(
            Visit,
            after_seconds=seconds(0, 5, 20, 60),
            works_seconds=seconds(0, 5, 30, 120),
            waits_seconds=seconds(40, 60_000, 60_000, 60_000),
            fate=st.sampled_from(["released", "released", "crashed", "failed", "without Redis"]),
        ),
        min_size=2,
        max_size=4,
    ),
    flushed_after_seconds=st.none() | seconds(1, 10, 40),
)


class CutLink(RedisLink):
    """A link whose network can be cut."""

    cut = False

    @property
    def degraded(self) -> bool:
        """Cut, or failing."""
        return self.cut or super().degraded


@dataclass
class Room:
    """One lock of one case, and all that happened in it."""

    case: Case
    subject: str
    inside: list[Lease] = field(default_factory=list)
    held: list[Lease] = field(default_factory=list)
    timed_out: int = 0
    refused: int = 0


class House:
    """What the visits of all cases share: the servers, and a table to write to."""

    def __init__(self, valkey: ValkeyServer, postgres: Postgres, url: str) -> None:
        self.valkey = valkey
        self.postgres = postgres
        self.fences = PostgresFences(postgres)
        self.advisory = PostgresAdvisoryLocks(url, self.fences, lease_seconds=LEASE_SECONDS, at_once=60)

    async def visit(self, room: Room, visit: Visit) -> None:
        """One process comes, with a link of its own."""
        await asyncio.sleep(visit.after_seconds)
        link = CutLink(RedisLink.to(self.valkey.url, max_connections=2, timeout_seconds=2).client)
        link.cut = visit.fate == "without Redis"
        locks = RedisLocks(link, self.fences, self.advisory, lease_seconds=LEASE_SECONDS)
        try:
            async with locks.held("property", room.subject, wait_seconds=visit.waits_seconds) as lease:
                await self._hold(room, visit, lease)
                link.cut = link.cut or visit.fate == "crashed"
                _end_as(visit.fate)
        except LockTimeout:
            room.timed_out += 1
        except ArithmeticError:
            pass
        finally:
            await link.close()

    async def _hold(self, room: Room, visit: Visit, lease: Lease) -> None:
        if room.case.undisturbed:
            assert all(other.lost for other in room.inside), "two hold it, and both may believe so"
        room.inside.append(lease)
        room.held.append(lease)
        await self._write(room, lease)
        await asyncio.sleep(visit.works_seconds)
        await self._write(room, lease)
        if visit.fate != "crashed":
            room.inside.remove(lease)

    async def _write(self, room: Room, lease: Lease) -> None:
        """A write that the fence guards; whether it is refused must not depend on what the lease believes."""
        try:
            async with self.postgres.transaction() as connection:
                await check_fence(connection, f"property:{room.subject}", lease.fence)
                await connection.execute(
                    "INSERT INTO writes (subject, fence) VALUES (%s, %s)", [room.subject, lease.fence]
                )
        except LeaseLost:
            room.refused += 1
            row = await self.postgres.row(
                "SELECT fence FROM lock_fences WHERE name = %s", [f"property:{room.subject}"]
            )
            assert row is not None
            assert row["fence"] > lease.fence, "the newest holder is never refused"

    async def late_writes(self, room: Room) -> None:
        """When all is over, everybody but the last holder tries once more."""
        newest = max((lease.fence for lease in room.held), default=0)
        for lease in room.held:
            refused = room.refused
            await self._write(room, lease)
            if lease.fence < newest:
                assert room.refused == refused + 1

    async def play(self, case: Case) -> Room:
        """All visits of one case, to a lock of its own."""
        room = Room(case, secrets.token_hex(6))
        tasks = [asyncio.create_task(self.visit(room, each)) for each in case.visits]
        if case.flushed_after_seconds is not None:
            await asyncio.sleep(case.flushed_after_seconds)
            await self._flush()
        async with asyncio.timeout(150):
            await asyncio.gather(*tasks)
        await self.late_writes(room)
        return room

    async def _flush(self) -> None:
        link = RedisLink.to(self.valkey.url, max_connections=1, timeout_seconds=2)
        await link.client.flushall()
        await link.close()


def _end_as(fate: Fate) -> None:
    if fate == "failed":
        raise ArithmeticError("what the holder did failed")


@pytest.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(own_valkey(tmp_path / "valkey"))
        postgres = await stack.enter_async_context(opened_postgres(database_url))
        await postgres.run(
            "CREATE TABLE writes (at bigint GENERATED ALWAYS AS IDENTITY, subject text, fence bigint)"
        )
        yield House(valkey, postgres, database_url)


async def test_one_holds_and_the_others_wait_or_time_out(house: House, example: Callable[[], None]) -> None:
    """
    **功能: architecture-deep-integration, 属性 22: 分布式锁互斥性**
    **验证: 需求 10.4**

    For every sequence of visits by processes that release, fail, crash without a word or do not reach Redis,
    and of moments at which Redis forgets everything: no two holders have the same fence; what is written was
    written in the order of fences, and from a newer holder's beginning on nothing of an older one's; nobody
    is left without an outcome. Where one server is asked all the time, no two hold the lock at once.
    """
    cases = drawn(CASES, 110)
    # a flush is everybody's
    for flushed in (False, True):
        places = asyncio.Semaphore(AT_ONCE)

        async def played(case: Case, places: asyncio.Semaphore = places) -> Room:
            async with places:
                return await house.play(case)

        chosen = [case for case in cases if (case.flushed_after_seconds is not None) == flushed]
        for room in await asyncio.gather(*map(played, chosen)):
            await prove(house, room)
            example()


async def prove(house: House, room: Room) -> None:
    fences = [lease.fence for lease in room.held]
    assert len(set(fences)) == len(fences)
    assert len(fences) + room.timed_out == len(room.case.visits)
    written = await house.postgres.rows(
        "SELECT fence FROM writes WHERE subject = %s ORDER BY at", [room.subject]
    )
    order = [row["fence"] for row in written]
    assert order == sorted(order)
    if room.case.undisturbed:
        assert fences == sorted(fences), "a later holder's fence is greater"
    if all(visit.waits_seconds > 1 for visit in room.case.visits):
        assert room.timed_out == 0, "who has patience gets it"

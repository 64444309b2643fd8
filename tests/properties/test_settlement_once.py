"""Property 29: wherever an attempt dies, and however often it is repeated, a call is committed once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st

from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from domain.errors import HoldExpired, LedgerUnavailable
from domain.ledger import Hold, LedgerCall, Mode, Replayed, Underway
from tests.db.purse import a_call, a_settlement
from tests.db.stage import opened_postgres
from tests.properties.drawing import drawn
from tests.properties.ledger_harness import Process, World

#: an attempt's awaits of the port: begin, dispatch, settle; a crash comes before one, or after it was sent
AWAITS = 3
KINDS = ("cancelled", "killed", "cut before", "cut after")


@dataclass(frozen=True)
class Death:
    """Where an attempt ends, and how."""

    at_await: int
    kind: str
    #: the statement of the writer's transaction at which the connection is cut
    statement: int


DEATH = st.builds(Death, st.integers(1, AWAITS), st.sampled_from(KINDS), st.integers(1, 9))
CASES = st.tuples(st.lists(DEATH, max_size=3), st.booleans(), st.sampled_from(list(Mode)))


class Died(Exception):
    """The attempt has ended here."""


@pytest.fixture(scope="module")
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(session_database_url) as opened:
        yield opened


class Attempt:
    """One try at a call, which may die at one of its awaits."""

    def __init__(self, world: World, process: Process, call: LedgerCall, death: Death | None) -> None:
        self._world = world
        self._process = process
        self._call = call
        self._death = death
        self._awaits = 0
        self.sent = False

    async def run(self) -> str:
        """The reply's text."""
        ledger = self._process.ledger
        while True:
            found = await self._port(ledger.begin(self._call))
            if isinstance(found, Replayed):
                return found.entry.reply.text
            if isinstance(found, Underway):
                self._world.clock.moment = max(self._world.clock.moment, found.until)
                continue
            try:
                underway = await self._port(ledger.dispatch(found))
            except HoldExpired:
                # another attempt took it over and has ended it
                continue
            if underway is None:
                return await self._send(ledger, found)
            self._world.clock.moment = max(self._world.clock.moment, underway.until)

    async def _send(self, ledger: PostgresLedger, hold: Hold) -> str:
        self.sent = True
        settlement = a_settlement(40, hold.token)
        entry = await self._port(ledger.settle(hold, settlement))
        assert await ledger.settle(hold, settlement) == entry
        return entry.reply.text

    async def _port(self, awaitable: Any) -> Any:
        self._awaits += 1
        if self._death is None or self._awaits != self._death.at_await:
            return await awaitable
        if self._death.kind.startswith("cut"):
            return await self._cut(awaitable, self._death)
        task = asyncio.ensure_future(awaitable)
        for _ in range(self._death.statement):
            await asyncio.sleep(0)
        if self._death.kind == "killed":
            await self._process.kill()
        task.cancel()
        await asyncio.wait([task])
        raise Died

    async def _cut(self, awaitable: Any, death: Death) -> Any:
        """The connection is lost under the attempt; it goes on or gives up, as the ledger says."""
        scissors = self._process.scissors
        scissors.countdown, scissors.after = death.statement, death.kind.endswith("after")
        try:
            return await awaitable
        except LedgerUnavailable:
            raise Died from None
        finally:
            scissors.countdown = None


@pytest.mark.timeout(600)
async def test_a_call_is_committed_once_wherever_its_attempts_die(
    session_database_url: str, postgres: Postgres, example: Callable[[], None]
) -> None:
    """
    **功能: assay, 属性 29: 结算恰好一次**
    **验证: 需求 L6, L7**

    For every crash point and repetition there is one commit for the logical call and generation, its reply
    is what every repetition gets, and every other dispatch ends in a cancel or an adjust.
    """
    struck: Counter[str] = Counter()
    for number, (deaths, at_once, mode) in enumerate(drawn(CASES)):
        world = World(number, session_database_url, postgres, mean_statements=0)
        call = a_call(world.payer, hold_seconds=60, reply_seconds=120, mode=mode)
        async with world.processes(1) as (steady,):
            replies = await _tried(world, steady, call, deaths, at_once)
            assert len(set(replies)) == 1, f"not everyone heard the same reply: {deaths}, {at_once}, {mode}"
            await world.settle_everything()
            await world.check_whole()
        commits = await postgres.rows(
            "SELECT attempt FROM ledger_events WHERE call_id = %s AND event_type = 'commit'", [call.key.id]
        )
        assert len(commits) == 1
        struck.update(f"{each.kind} at {each.at_await}" for each in deaths)
        example()
    assert {name.partition(" at ")[0] for name in struck} == set(KINDS)


async def _tried(
    world: World, steady: Process, call: LedgerCall, deaths: list[Death], at_once: bool
) -> list[str]:
    """An attempt for each death, side by side or in turn, and two more that live."""

    async def die(death: Death) -> str | None:
        async with world.process() as process:
            try:
                return await Attempt(world, process, call, death).run()
            except Died:
                return None

    attempts = [*map(die, deaths), *(Attempt(world, steady, call, None).run() for _ in range(2))]
    heard = await asyncio.gather(*attempts) if at_once else [await each for each in attempts]
    return [each for each in heard if each is not None]

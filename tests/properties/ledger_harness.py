"""A seeded world for the ledger: processes that die, connections that drop, clocks that jump.

Attempts at a few logical calls run side by side on several writers over one database. Whatever is drawn
strikes them: a connection is cut before or after any statement, a caller is cancelled at any await of the
port, a process is killed with all its callers, a message is repeated or comes late, the clock jumps.

What callers were told is kept in a single-threaded model: one `Told` for each hold, with the amounts that it
may have been charged in the end. Only what nobody was told about may have gone two ways.
"""

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from db.postgres.ledger import PostgresLedgerBooks, event_of
from db.postgres.ledger_port import PostgresLedger
from db.postgres.ledger_writer import LedgerWriter
from db.postgres.pool import Postgres
from domain.completion import Payer
from domain.errors import AssayError, BudgetExhausted
from domain.ledger import Balance, EventType, Hold, LedgerCall, Replayed, TenantBudget, Underway, fold
from domain.money import Money
from tests.db.purse import HeldClock, a_call, a_payer, a_settlement

HOLD_SECONDS, REPLY_SECONDS = 60.0, 120.0
LIMIT = 900
#: rounds of one attempt, and of starting over; a call that is not paid after them is left to the sweeper
ROUNDS = 12

Answer = TypeVar("Answer")


class Cut(Exception):
    """A process died in the middle of what it did."""


def cut(connection: AsyncConnection[Any]) -> None:
    """Break the connection as a network does; the descriptor stays the driver's to close."""
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire, suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)


@dataclass
class Scissors:
    """Cuts a connection at the so manieth statement from now, before it leaves or after it was answered."""

    countdown: int | None = None
    after: bool = False
    cuts: int = 0

    def strike(self, connection: AsyncConnection[Any], *, after: bool) -> None:
        """Cut now, if it is time; as the network does, without a word to either side."""
        if self.countdown is None or after != self.after:
            return
        self.countdown -= 1
        if self.countdown <= 0:
            self.countdown = None
            self.cuts += 1
            cut(connection)
            if after:
                raise psycopg.OperationalError("the answer was lost")


class CutConnection(AsyncConnection[Any]):
    """A real connection with scissors at every statement."""

    scissors: Scissors

    async def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        self.scissors.strike(self, after=False)
        cursor = await super().execute(query, params, **options)
        self.scissors.strike(self, after=True)
        return cursor

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        self.scissors.strike(self, after=False)
        return super().cursor(*arguments, **options)


@dataclass
class Process:
    """One writer with its callers; it can be killed."""

    ledger: PostgresLedger
    scissors: Scissors
    callers: "set[asyncio.Task[Any]]" = field(default_factory=set)
    connection: AsyncConnection[Any] | None = None
    connecting: "asyncio.Future[CutConnection] | None" = None
    dead: bool = False

    async def end(self) -> None:
        """Close in peace; a process that was killed only puts its things away."""
        await (self.kill() if self.dead else self.ledger.close())

    async def kill(self) -> None:
        """End at once: nothing is flushed, nobody is answered, the connection is gone."""
        self.dead = True
        task = self.ledger.writer._task
        if self.connection is not None:
            cut(self.connection)
        for each in self.callers:
            each.cancel()
        while task is not None and not task.done():
            # again and again: the driver answers the first one by asking the server to stop the query
            task.cancel()
            await asyncio.wait([task], timeout=0.05)
        if self.connecting is not None:
            await asyncio.wait([self.connecting])
            if not self.connecting.cancelled() and self.connecting.exception() is None:
                await self.connecting.result().close()


@dataclass
class Told:
    """What is known outside about one hold: what it may have been charged in the end."""

    call: LedgerCall
    charges: set[int]


class World:
    """Processes, calls and what their callers were told."""

    def __init__(self, seed: int, url: str, postgres: Postgres, *, mean_statements: int = 40) -> None:
        self.random = Random(seed)  # noqa: S311  # the seed is what makes a fault come again
        self.clock = HeldClock()
        self.payer: Payer = a_payer()
        self.told: dict[str, Told] = {}
        self.replies: dict[tuple[UUID, str], str] = {}
        self.figures = {
            "kills": 0,
            "cuts": 0,
            "cancelled": 0,
            "repeated": 0,
            "late": 0,
            "jumps": 0,
            "refused": 0,
        }
        self._url = url
        self._postgres = postgres
        self._mean_statements = mean_statements
        self._numbers = itertools.count(1)
        self._processes: list[Process] = []
        self._dead: list[Process] = []
        self._late: list[tuple[Hold, int]] = []

    # --- processes ---

    @asynccontextmanager
    async def processes(self, count: int) -> AsyncIterator[list[Process]]:
        """So many writers, and those that take the place of killed ones."""
        self._processes = [self._start() for _ in range(count)]
        try:
            yield self._processes
        finally:
            for process in (*self._processes, *self._dead):
                await process.end()

    @asynccontextmanager
    async def process(self) -> AsyncIterator[Process]:
        """One writer beside the others."""
        process = self._start()
        try:
            yield process
        finally:
            await process.end()

    def _start(self) -> Process:
        scissors = Scissors()
        process: Process

        async def connect() -> Any:
            # half a connection that nobody closes would keep its server waiting for a password
            process.connecting = asyncio.ensure_future(self._connection())
            connection = await asyncio.shield(process.connecting)
            connection.scissors = scissors
            self._arm(scissors)
            process.connection = connection
            return connection

        writer = LedgerWriter(connect, self.clock, close_seconds=5)
        ledger = PostgresLedger(
            writer,
            PostgresLedgerBooks(self._postgres, self.clock),
            self._postgres,
            within_seconds=5,
            tokens=lambda: f"{id(self):x}-{next(self._numbers)}",
        )
        ledger.start()
        process = Process(ledger, scissors)
        return process

    async def _connection(self) -> CutConnection:
        options = "-c role=assay_app -c synchronous_commit=off -c lock_timeout=5000"
        return await CutConnection.connect(self._url, autocommit=True, row_factory=dict_row, options=options)

    def _arm(self, scissors: Scissors) -> None:
        if self._mean_statements and self.random.random() < 0.7:
            scissors.countdown = 1 + int(self.random.expovariate(1 / self._mean_statements))
            scissors.after = self.random.random() < 0.5

    # --- what happens ---

    async def run(self, calls: int, attempts: int) -> None:
        """Attempts at each call, side by side, with everything that strikes them."""
        await self._processes[0].ledger.books.set_tenant(
            self.payer.tenant_id, TenantBudget("Asia/Shanghai", daily_limit=Money(LIMIT))
        )
        wanted = [
            a_call(self.payer, 50 + number, hold_seconds=HOLD_SECONDS, reply_seconds=REPLY_SECONDS)
            for number in range(calls)
        ]
        strikes = asyncio.create_task(self._strikes())
        try:
            await asyncio.gather(*(self._insist(call) for call in wanted for _ in range(attempts)))
        finally:
            strikes.cancel()
            await asyncio.wait([strikes])
        await self._deliver_late()

    async def settle_everything(self) -> None:
        """Let all deadlines pass on a process that nothing strikes any more."""
        for process in self._processes:
            process.scissors.countdown = None
        self._mean_statements = 0
        for seconds in (REPLY_SECONDS + HOLD_SECONDS, 2 * 86_400, 2 * 86_400):
            # what callers left behind, and what a killed writer had sent, is decided first
            while not all(each.ledger.writer.idle for each in self._processes):
                await asyncio.sleep(0.005)
            self.clock.pass_(seconds)
            while await self._processes[0].ledger.sweep():
                pass

    async def _strikes(self) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(0.001, 0.015))
            if self.random.random() < 0.25:
                self.figures["kills"] += 1
                place = self.random.randrange(len(self._processes))
                self._dead.append(self._processes[place])
                self._processes[place] = self._start()
                await self._dead[-1].kill()
            elif self.random.random() < 0.5:
                self.figures["jumps"] += 1
                self.clock.pass_(self.random.choice([-40, -5, 3, 30, 61, 121, 3600]))

    async def _insist(self, call: LedgerCall) -> None:
        """Start over after every death, as an activity's retries do."""
        for _ in range(ROUNDS):
            process = self.random.choice(self._processes)
            task = asyncio.create_task(self._attempt(process.ledger, call))
            process.callers.add(task)
            task.add_done_callback(process.callers.discard)
            await asyncio.wait([task])
            if not task.cancelled() and (task.exception() is None):
                return
            if not task.cancelled() and not isinstance(task.exception(), (AssayError, Cut)):
                raise task.exception() or AssertionError
            await asyncio.sleep(0)

    async def _attempt(self, ledger: PostgresLedger, call: LedgerCall) -> None:
        at_once = self.random.random() < 0.5
        for _ in range(ROUNDS):
            try:
                found = await self._port(ledger.begin(call, dispatch=at_once))
            except BudgetExhausted:
                self.figures["refused"] += 1
                return
            if isinstance(found, Replayed):
                self._heard(call, found.entry.reply.text)
                return
            if isinstance(found, Underway):
                self._wait_until(found)
                continue
            told = self.told.setdefault(found.token, Told(call, {0, int(call.estimated)}))
            if not at_once and (underway := await self._port(ledger.dispatch(found))) is not None:
                told.charges.add(0)
                self._wait_until(underway)
                continue
            if await self._sent(ledger, found, told):
                return

    async def _sent(self, ledger: PostgresLedger, hold: Hold, told: Told) -> bool:
        """The upstream has the call; false where it refused and is asked again."""
        actual = self.random.randrange(1, 2 * int(hold.call.estimated))
        text = f"{hold.token} costs {actual}"
        match self.random.choice(["reply", "reply", "reply", "refused", "nothing", "late"]):
            case "reply":
                told.charges |= {actual}
                await self._settle(ledger, hold, told, actual, text)
                return True
            case "refused":
                await self._repeated(lambda: ledger.cancel(hold, "429"))
                told.charges &= {0}
                return False
            case "nothing":
                await self._repeated(lambda: ledger.doubt(hold, "reset"))
                told.charges &= {int(hold.call.estimated)}
                return False
            case _:
                self.figures["late"] += 1
                told.charges |= {actual}
                self._late.append((hold, actual))
                await self._port(ledger.doubt(hold, "timeout"))
                return False

    async def _settle(self, ledger: PostgresLedger, hold: Hold, told: Told, actual: int, text: str) -> None:
        entry = await self._repeated(lambda: ledger.settle(hold, a_settlement(actual, text)))
        told.charges &= {actual}
        self._heard(hold.call, entry.reply.text)

    async def _deliver_late(self) -> None:
        for hold, actual in self._late:
            text = f"{hold.token} costs {actual}"
            for _ in range(ROUNDS):
                with suppress(AssayError, Cut):
                    ledger = self.random.choice(self._processes).ledger
                    await self._settle(ledger, hold, self.told[hold.token], actual, text)
                    break

    def _heard(self, call: LedgerCall, text: str) -> None:
        """Every caller of one logical call hears the same reply, for ever."""
        assert self.replies.setdefault((call.key.id, call.request_hash), text) == text

    def _wait_until(self, underway: Underway) -> None:
        self.clock.moment = max(self.clock.moment, underway.until)

    # --- faults at the port ---

    async def _repeated(self, send: Any) -> Any:
        answer = await self._port(send())
        if self.random.random() < 0.3:
            self.figures["repeated"] += 1
            assert await self._port(send()) == answer
        return answer

    async def _port(self, awaitable: Awaitable[Answer]) -> Answer:
        """Any await of the port may be the caller's last."""
        if self.random.random() > 0.12:
            return await awaitable
        task = asyncio.ensure_future(awaitable)
        try:
            for _ in range(self.random.randrange(12)):
                await asyncio.sleep(0)
        finally:
            # also when this process is killed meanwhile
            ended = task.done()
            task.cancel()
        if ended:
            return task.result()
        self.figures["cancelled"] += 1
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
        raise Cut

    # --- what must be true ---

    async def check(self) -> None:
        """After all deadlines: the model and the ledger say the same."""
        self.figures["cuts"] = sum(each.scissors.cuts for each in (*self._processes, *self._dead))
        self._check_charges(await self.check_whole())
        journal = await self._rows("SELECT * FROM ledger_journal WHERE tenant_id = %s")
        kept = {(row["call_id"], row["request_hash"]): row["reply"] for row in journal}
        # nothing that was acknowledged is lost
        assert kept.items() >= self.replies.items()

    async def check_whole(self) -> list[Any]:
        """Projections are the fold, no hold is open, each call has one commit; answers the holds."""
        holds = await self._rows("SELECT * FROM ledger_holds WHERE tenant_id = %s ORDER BY call_id, attempt")
        events = [
            event_of(row) for row in await self._rows("SELECT * FROM ledger_events WHERE tenant_id = %s")
        ]
        self._check_projections(holds, fold(events), await self._balances())
        self._check_dispatches(holds, [(each.call_id, each.attempt, each.event_type) for each in events])
        return holds

    def _check_projections(self, holds: list[Any], folded: Any, stored: Any) -> None:
        assert stored == dict.fromkeys(stored, Balance()) | folded
        assert [row for row in holds if row["open_nanodollars"]] == []
        assert {balance.held for balance in stored.values()} <= {0}

    def _check_dispatches(self, holds: list[Any], events: list[tuple[UUID, int, EventType]]) -> None:
        commits = [call_id for call_id, _, kind in events if kind is EventType.COMMIT]
        assert len(commits) == len(set(commits)), "one commit for each logical call and generation"
        for row in holds:
            kinds = {
                kind for call, attempt, kind in events if (call, attempt) == (row["call_id"], row["attempt"])
            }
            assert EventType.HOLD in kinds
            ends = kinds - {EventType.HOLD}
            assert ends, f"{row['call_id']} dispatch {row['attempt']} never ended"

    def _check_charges(self, holds: list[Any]) -> None:
        for row in holds:
            told = self.told.get(row["token"])
            # a caller that never heard of its hold sent nothing; it may have been taken for sent
            allowed = told.charges if told else {0, row["estimated_nanodollars"]}
            assert row["charged_nanodollars"] in allowed, (dict(row), allowed)

    async def _balances(self) -> dict[Any, Balance]:
        found = await self._processes[0].ledger.books.balances(self.payer.tenant_id, count=1000)
        return {each.account: Balance(each.held, each.spent, each.requests, each.tokens) for each in found}

    async def _rows(self, sql: str) -> list[Any]:
        return await self._postgres.rows(sql, [self.payer.tenant_id])


async def proved(seed: int, url: str, postgres: Postgres) -> dict[str, int]:
    """One seed's world from beginning to end; answers how often each fault struck."""
    world = World(seed, url, postgres)
    async with world.processes(2):
        await world.run(calls=3, attempts=2)
        await world.settle_everything()
        await world.check()
    return world.figures

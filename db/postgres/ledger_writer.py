"""The ledger's single writer: one task and one connection a process, whole batches in one transaction (L3).

Commands wait in a bounded queue. The writer takes whatever has gathered while it wrote the batch before
(at most 100), locks their accounts in sorted order, lets each command decide in memory, writes what they
decided, commits, and only then answers. Several processes may do so on the same accounts at once.

Every command may be decided again: an outcome that got lost with a connection is found as it was written.
"""

import asyncio
import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import psycopg
import structlog
from psycopg import AsyncConnection, errors
from psycopg.rows import dict_row

from db.postgres import ledger as tables
from db.postgres import ledger_rows as rows
from db.postgres.pool import APPLICATION_ROLE, Connection, is_transient
from domain.book import (
    Adjust,
    Begin,
    Book,
    Cancel,
    Command,
    Dispatch,
    MissingAccount,
    Settle,
    WriteEvent,
    accounts_needed,
)
from domain.completion import Fence
from domain.errors import AssayError, Defect, LedgerConflict, LedgerOverloaded, LedgerUnavailable
from domain.ledger import Account, AccountBalance, Hold
from domain.ports import Clock

log = structlog.get_logger(__name__)

Connect = Callable[[], Awaitable[Connection]]
#: hears which accounts a commit has changed, as they now stand; it must not wait
OnCommitted = Callable[[Sequence[AccountBalance]], None]

BATCH_LIMIT = 100
GATHER_SECONDS = 0.2
LOCK_TIMEOUT_SECONDS = 5.0
#: while one command is tried alone, a lock that stopped its batch must not stop every one again for so long
_ALONE_LOCK_TIMEOUT_SECONDS = 0.25
_RECONNECT_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_TRIES = 3
#: how late a caller may hear that its time is over
_WATCH_SECONDS = 0.05
#: a tenant's time zone is looked up again after so long; its limits are read with every batch
_TIME_ZONE_SECONDS = 60.0
_KNOWN_LIMIT = 100_000
#: what holds and settlements are counted by
WAIT_BOUNDS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
#: what must be written is tried for so long, and then given up with an error in the log
PATIENCE_SECONDS = 600.0


async def connect_writer(
    conninfo: str, *, role: str | None = APPLICATION_ROLE, durable: bool = True
) -> Connection:
    """The writer's own connection: durable commits, bounded waits, the application's role."""
    options = [
        f"synchronous_commit={'on' if durable else 'off'}",
        f"lock_timeout={int(LOCK_TIMEOUT_SECONDS * 1000)}",
        "statement_timeout=10000",
        "idle_in_transaction_session_timeout=10000",
        # every statement here goes by a key; a table without statistics was read whole, 10 ms a batch
        "enable_seqscan=off",
        "plan_cache_mode=force_generic_plan",
        "jit=off",
        *([f"role={role}"] if role else []),
    ]
    return await AsyncConnection.connect(
        conninfo,
        autocommit=True,
        row_factory=dict_row,
        prepare_threshold=2,
        application_name="assay-ledger",
        connect_timeout=5,
        keepalives_idle=15,
        keepalives_interval=5,
        keepalives_count=3,
        options=" ".join(f"-c {each}" for each in options),
    )


@dataclass(slots=True, eq=False)
class Order:
    """A command on its way; a patient one is written even if its caller has gone."""

    command: Command
    deadline: float
    answer: "asyncio.Future[Any]"
    patient: bool
    asked_at: float
    hurried: bool = True
    #: its caller hears by then, even if nothing is known
    heard_by: float = math.inf


@dataclass
class Waits:
    """How long callers waited: how many up to each bound and beyond the last, and all of it together."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(WAIT_BOUNDS_SECONDS) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(WAIT_BOUNDS_SECONDS, seconds)] += 1
        self.seconds += seconds


@dataclass
class WriterFigures:
    """What the writer has done since its start."""

    commands: int = 0
    flushes: int = 0
    events: int = 0
    facts: int = 0
    refused: int = 0
    isolated: int = 0
    retried: int = 0
    overloaded: int = 0
    unavailable: int = 0
    buffered: int = 0
    reconnects: int = 0
    rolled_back: int = 0
    largest_batch: int = 0
    hold_seconds: Waits = field(default_factory=Waits)
    settle_seconds: Waits = field(default_factory=Waits)


class Places:
    """A bounded number of places; who finds none waits in line. Half the cost of asyncio's semaphore."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._line: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a place if there is one."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def wait(self, seconds: float) -> bool:
        """Take a place as soon as there is one; false after so many seconds without."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give()  # the place came in the moment of leaving
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def give(self) -> None:
        """Give a place back, to the first in line."""
        while self._line:
            if not (turn := self._line.popleft()).done():
                return turn.set_result(None)
        self._free += 1
        return None


class LedgerWriter:
    """Decides and writes commands, batch by batch; `run` is its task."""

    def __init__(
        self,
        connect: Connect,
        clock: Clock,
        *,
        queue_limit: int = 10_000,
        batch_limit: int = BATCH_LIMIT,
        gather_seconds: float = GATHER_SECONDS,
        close_seconds: float = 10.0,
        on_committed: OnCommitted | None = None,
    ) -> None:
        self.figures = WriterFigures()
        self.on_committed = on_committed
        self.queue_limit = queue_limit
        self._connect = connect
        self._clock = clock
        self._batch_limit = batch_limit
        self._gather_seconds = gather_seconds
        self._close_seconds = close_seconds
        self._queue: deque[Order] = deque()
        self._writing: list[Order] = []
        self._places = Places(queue_limit)
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self._away = 0
        self._closing = False
        self._stopped = asyncio.Event()
        self._zones: dict[str, tuple[str, float]] = {}
        self._known: set[Account] = set()
        self._watching: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # --- callers ---

    @property
    def waiting(self) -> int:
        """Commands in the queue."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted has been answered."""
        return not self._queue and not self._writing

    @property
    def away(self) -> bool:
        """Whether Postgres did not answer the writer's last attempt."""
        return self._away > 0

    def start(self) -> None:
        """Begin to write; the task ends with `close`."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ledger-writer")

    async def submit(self, command: Command, *, within_seconds: float, patient: bool = False) -> Any:
        """What the command decided, once that is durable.

        Raises what it decided to raise, `LedgerOverloaded` when no place became free in time, and
        `LedgerUnavailable` when no outcome became known in time.
        """
        began = time.monotonic()
        if not self._places.take():
            await self._wait_for_place(within_seconds)
        lasts = PATIENCE_SECONDS if patient else within_seconds
        order = self._enqueue(command, began, began + lasts, patient=patient, hurried=True)
        order.heard_by = began + within_seconds
        if self._watching is None:
            self._watch()
        return await order.answer

    def offer(self, command: Command) -> "asyncio.Future[Any]":
        """Queue a command that nobody waits for; `LedgerUnavailable` at once when there is no place."""
        if not self._places.take():
            self.figures.unavailable += 1
            raise LedgerUnavailable(f"The ledger's buffer of {self.queue_limit} events is full.")
        now = time.monotonic()
        order = self._enqueue(command, now, now + PATIENCE_SECONDS, patient=True, hurried=False)
        self.figures.buffered += self._away > 0
        order.answer.add_done_callback(_say_what_nobody_hears)
        return order.answer

    async def close(self) -> None:
        """Write what is queued, for at most the closing time, then refuse."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), self._close_seconds)
            await _ended(self._task)
        self._refuse_all(LedgerUnavailable("The ledger was closed before it knew that this was written."))
        if self._watching is not None:
            self._watching.cancel()
        await self._disconnect()

    def _enqueue(
        self, command: Command, asked_at: float, deadline: float, *, patient: bool, hurried: bool
    ) -> Order:
        if self._closing or self._task is None or self._task.done():
            self._places.give()
            raise LedgerUnavailable("The ledger is closed: this process is shutting down.")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        order = Order(command, deadline, answer, patient, asked_at, hurried)
        self._queue.append(order)
        self.figures.commands += 1
        self._wake.set()
        return order

    async def _wait_for_place(self, seconds: float) -> None:
        if not await self._places.wait(seconds):
            self.figures.overloaded += 1
            raise LedgerOverloaded(
                f"The ledger's queue of {self.queue_limit} stayed full until the deadline."
            )

    def _watch(self) -> None:
        """Bound what a stuck connection may take: one timer for all, a timer for each was a tenth of a hold."""
        now = time.monotonic()
        open_orders = [order for order in (*self._writing, *self._queue) if not order.answer.done()]
        for order in open_orders:
            if order.heard_by <= now:
                self._give_up(order)
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(_WATCH_SECONDS, self._watch) if open_orders else None

    def _give_up(self, order: Order) -> None:
        self.figures.unavailable += 1
        order.answer.set_exception(
            LedgerUnavailable(
                "The ledger did not answer in time; what became of this is found by repeating it."
            )
        )

    # --- the task ---

    async def _run(self) -> None:
        try:
            while await self._gathered():
                # whoever was answered just now may ask again: one batch of all is faster than two halves
                await asyncio.sleep(0)
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_limit))]
                self._writing = self._still_wanted(batch)
                await self._process(self._writing)
                self._writing = []
        finally:
            self._stopped.set()

    async def _gathered(self) -> bool:
        """Wait for commands: not a moment where one is awaited, a little where none is; false at the end."""
        while not self._queue:
            if self._closing:
                return False
            self._wake.clear()
            await self._wake.wait()
        latest = time.monotonic() + self._gather_seconds
        while not self._due() and (left := latest - time.monotonic()) > 0:
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)
        return True

    def _due(self) -> bool:
        # a hurried command comes last, so only the newest needs to be looked at after each wake
        return self._closing or len(self._queue) >= self._batch_limit or any(o.hurried for o in self._queue)

    def _still_wanted(self, batch: Iterable[Order]) -> list[Order]:
        """Without what nobody waits for any more and nothing depends on."""
        now, wanted = time.monotonic(), []
        for order in batch:
            if order.deadline > now and (order.patient or not order.answer.done()):
                wanted.append(order)
            else:
                self._fail(order, LedgerUnavailable("The ledger did not come to this in time."))
        return wanted

    async def _process(self, batch: list[Order]) -> None:
        """Write the batch; one that cannot be written whole is written order by order."""
        for _ in range(_TRIES):
            if not batch:
                return
            try:
                await self._write(batch, LOCK_TIMEOUT_SECONDS)
            except psycopg.Error as error:
                if not is_transient(error) or isinstance(error, errors.LockNotAvailable):
                    log.warning("ledger_batch_isolated", commands=len(batch), reason=_first_line(error))
                    break
                self.figures.retried += 1
                if self._lost():
                    batch = await self._without_postgres(batch, error)
            except Exception as error:  # noqa: BLE001  # one bad command takes neither the others nor the writer
                log.warning("ledger_batch_isolated", commands=len(batch), reason=repr(error)[:300])
                break
            else:
                return
        await self._isolate(batch)

    async def _isolate(self, batch: list[Order]) -> None:
        """Each order in a transaction of its own; what fails alone is at fault itself."""
        self.figures.isolated += 1
        kept: list[Order] = []
        for order in self._still_wanted(batch):
            try:
                await self._write([order], _ALONE_LOCK_TIMEOUT_SECONDS)
            except psycopg.Error as error:
                if is_transient(error) and order.patient and not self._closing:
                    kept.append(order)
                else:
                    self._fail(order, _condition(error))
            except Exception as error:  # noqa: BLE001  # the caller gets what its command raised
                self._fail(order, error)
        if kept:
            # they must be written: with the next batch, in their order
            self._queue.extendleft(reversed(kept))
            await asyncio.sleep(_RECONNECT_SECONDS[0])

    async def _without_postgres(self, batch: list[Order], error: psycopg.Error) -> list[Order]:
        """Connect again; while that fails, who cannot wait is refused and the others stay in the buffer."""
        while True:
            try:
                await self._connected()
            except psycopg.Error as cause:
                error = cause
            else:
                return self._still_wanted(batch)
            self._away += 1
            if self._closing and self._away > len(_RECONNECT_SECONDS):
                for order in batch:
                    self._fail(
                        order, LedgerUnavailable("Postgres did not come back before the ledger closed.")
                    )
                return []
            batch = self._keep_patient(batch, error)
            queued = self._keep_patient(self._queue, error)
            self._queue = deque(queued)
            await asyncio.sleep(_RECONNECT_SECONDS[min(self._away, len(_RECONNECT_SECONDS)) - 1])

    def _keep_patient(self, orders: Iterable[Order], error: psycopg.Error) -> list[Order]:
        kept = []
        for order in orders:
            if order.patient:
                kept.append(order)
            else:
                self.figures.unavailable += 1
                self._fail(order, _condition(error))
        return kept

    # --- one transaction ---

    async def _write(self, batch: Sequence[Order], lock_timeout_seconds: float) -> None:
        missing: set[Account] = set()
        while True:
            connection = await self._connected()
            try:
                book, outcomes = await self._transact(connection, batch, missing, lock_timeout_seconds)
                break
            except MissingAccount as lack:
                if lack.account in missing:
                    raise Defect(f"Account {lack.account} is not there after it was opened.") from lack
                missing.add(lack.account)
                self._known.discard(lack.account)
        self._answer_all(batch, outcomes)
        self._tell(book)
        figures = self.figures
        figures.flushes += 1
        figures.events += len(book.events)
        figures.facts += len(book.facts)
        figures.largest_batch = max(figures.largest_batch, len(batch))

    async def _transact(
        self,
        connection: Connection,
        batch: Sequence[Order],
        missing: set[Account],
        lock_timeout_seconds: float,
    ) -> tuple[Book, list[Any]]:
        commands = [order.command for order in batch]
        days = await self._days(connection, {command.payer.tenant_id for command in commands})
        accounts = accounts_needed(commands, days) | missing
        await self._open_accounts(connection, accounts)
        try:
            book = await _load(connection, commands, accounts, days, self._clock.now(), lock_timeout_seconds)
            outcomes = [_decided(command, book) for command in commands]
            await _store(connection, book)
        except BaseException as error:
            self.figures.rolled_back += 1
            await _roll_back(connection)
            if isinstance(error, psycopg.Error):
                # the driver keeps names of statements that an aborted pipeline has never prepared, and every
                # later use of one fails
                await self._disconnect()
            raise
        return book, outcomes

    async def _days(self, connection: Connection, tenants: set[str]) -> dict[str, date]:
        now, moment = time.monotonic(), self._clock.now()
        stale = [tenant for tenant in tenants if self._zones.get(tenant, ("", 0.0))[1] <= now]
        if stale:
            cursor = await connection.execute(tables.TENANTS_SQL, [stale])
            known = {row["tenant_id"]: row["time_zone"] for row in await cursor.fetchall()}
            for tenant in stale:
                self._zones[tenant] = (known.get(tenant, "UTC"), now + _TIME_ZONE_SECONDS)
        return {tenant: tables.day_in(self._zones[tenant][0], moment) for tenant in tenants}

    async def _open_accounts(self, connection: Connection, accounts: set[Account]) -> None:
        # in a transaction of their own: a row made under locks of others would be a way to a deadlock
        if unknown := accounts - self._known:
            parameters: dict[str, Any] = {**tables.columns_of(unknown), "batches": tables.batch_ids(unknown)}
            await connection.execute(tables.OPEN_ACCOUNTS_SQL, parameters)
            if len(self._known) > _KNOWN_LIMIT:
                self._known.clear()
            self._known |= unknown

    # --- answers ---

    def _tell(self, book: Book) -> None:
        if self.on_committed is None or not book.changed_accounts:
            return
        try:
            self.on_committed(tables.balances_of(book))
        except Exception:
            # what is written is written, whatever becomes of its copies
            log.exception("ledger_listener_failed")

    def _answer_all(self, batch: Sequence[Order], outcomes: Sequence[Any]) -> None:
        now = time.monotonic()
        for order, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self.figures.refused += 1
                self._fail(order, outcome)
                continue
            self._places.give()
            if not order.answer.done():
                order.answer.set_result(outcome)
                self._count_wait(order, now)
            elif isinstance(order.command, Begin) and isinstance(outcome, Hold):
                self._give_back(outcome)

    def _count_wait(self, order: Order, now: float) -> None:
        if not order.hurried:
            return  # nobody waited
        if isinstance(order.command, Begin):
            self.figures.hold_seconds.add(now - order.asked_at)
        elif isinstance(order.command, Settle):
            self.figures.settle_seconds.add(now - order.asked_at)

    def _give_back(self, hold: Hold) -> None:
        """The caller went away before it heard of its hold, so nothing was sent (X3)."""
        with suppress(LedgerUnavailable):
            self.offer(Cancel(hold, "caller left"))

    def _fail(self, order: Order, error: Exception) -> None:
        self._places.give()
        if not order.answer.done():
            order.answer.set_exception(error)

    def _refuse_all(self, error: Exception) -> None:
        for order in (*self._writing, *self._queue):
            if not order.answer.done():
                self._fail(order, error)
        self._queue.clear()

    # --- the connection ---

    async def _connected(self) -> Connection:
        if self._lost():
            await self._disconnect()  # a broken one holds its socket until it is closed
            self._connection = await self._connect()
            self.figures.reconnects += 1
            self._away = 0
        assert self._connection is not None
        return self._connection

    def _lost(self) -> bool:
        return self._connection is None or self._connection.broken or self._connection.closed

    async def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                await self._connection.close()
            self._connection = None


async def _roll_back(connection: Connection) -> None:
    if not connection.broken and not connection.closed:
        with suppress(psycopg.Error):
            await connection.execute("ROLLBACK")


async def _load(
    connection: Connection,
    commands: Sequence[Command],
    accounts: set[Account],
    days: dict[str, date],
    now: datetime,
    lock_timeout_seconds: float,
) -> Book:
    """Begin, and read what the commands touch, under locks taken in one order by every process."""
    async with connection.pipeline():
        await connection.execute("BEGIN")
        if lock_timeout_seconds != LOCK_TIMEOUT_SECONDS:
            await connection.execute(f"SET LOCAL lock_timeout = {int(lock_timeout_seconds * 1000)}")
        locked = await connection.execute(tables.LOCK_ACCOUNTS_SQL, tables.columns_of(accounts))
        tenants = await connection.execute(tables.TENANTS_SQL, [list(days)])
        calls = list({command.call_id for command in commands if command.call_id is not None})
        holds = await connection.execute(tables.LOCK_HOLDS_SQL, [calls])
        threads = sorted({fence.thread_id for fence in map(_fence_of, commands) if fence is not None})
        epochs = await connection.execute(tables.FENCES_SQL, [threads]) if threads else None
    book = Book(now=now, days=days)
    book.budgets = {row["tenant_id"]: tables.budget_of(row) for row in await tenants.fetchall()}
    book.accounts = tables.accounts_in(await locked.fetchall(), book.budgets)
    for row in await holds.fetchall():
        book.holds_of(row["call_id"]).append(tables.hold_of(row))
    if epochs is not None:
        book.epochs = {row["thread_id"]: row["epoch"] for row in await epochs.fetchall()}
    await _load_journal(connection, book)
    await _load_known(connection, book, commands)
    return book


async def _load_journal(connection: Connection, book: Book) -> None:
    replied = [call for call, rows in book.holds.items() if any(row.journaled for row in rows)]
    if replied:
        cursor = await connection.execute(tables.JOURNAL_SQL, [replied])
        for row in await cursor.fetchall():
            book.journal[row["call_id"], row["request_hash"]] = tables.entry_of(row)


async def _load_known(connection: Connection, book: Book, commands: Sequence[Command]) -> None:
    ids = [command.event_id(book) for command in commands if isinstance(command, (Adjust, WriteEvent))]
    if wanted := [each for each in ids if each is not None]:
        cursor = await connection.execute(tables.KNOWN_EVENTS_SQL, [wanted])
        for row in await cursor.fetchall():
            book.known[row["event_id"]] = tables.event_of(row)


def _fence_of(command: Command) -> Fence | None:
    return command.fence if isinstance(command, (Begin, Dispatch)) else None


def _decided(command: Command, book: Book) -> Any:
    try:
        return command.decide(book)
    except AssayError as condition:
        return condition


async def _store(connection: Connection, book: Book) -> None:
    """Write everything that was decided, and commit, in one round trip."""
    async with connection.pipeline():
        await rows.write(connection, book)
        await connection.execute("COMMIT")


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task], timeout=5)


def _say_what_nobody_hears(answer: "asyncio.Future[Any]") -> None:
    if not answer.cancelled() and (error := answer.exception()) is not None:
        log.error("ledger_order_failed", reason=str(error)[:300])


def _condition(error: psycopg.Error) -> Exception:
    if isinstance(error, errors.UniqueViolation):
        return LedgerConflict(f"This was written before with another content: {_first_line(error)}")
    if is_transient(error):
        return LedgerUnavailable(f"Postgres does not answer the ledger: {_first_line(error)}")
    return Defect(f"The ledger could not be written: {_first_line(error)}")


def _first_line(error: psycopg.Error) -> str:
    # not the whole text: Postgres adds the row that it refuses, and with it what a model has said
    primary = error.diag.message_primary or type(error).__name__
    return f"{primary[:300]} ({error.sqlstate})" if error.sqlstate else primary[:300]

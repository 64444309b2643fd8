"""The ledger as the gateway knows it: the writer for what costs money, snapshots for what accepts an overrun."""

import asyncio
import itertools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Self, TypeVar
from uuid import UUID

from db.postgres import ledger as tables
from db.postgres.ledger import PostgresLedgerBooks
from db.postgres.ledger_writer import LedgerWriter, connect_writer
from db.postgres.pool import Postgres
from domain.book import Adjust, Begin, Cancel, Command, Dispatch, Doubt, Record, Settle, WriteEvent
from domain.completion import Fence
from domain.errors import EpochSuperseded
from domain.ledger import (
    DoubtRule,
    Hold,
    JournalEntry,
    LedgerCall,
    LedgerEvent,
    LedgerFact,
    Mode,
    Replayed,
    Settlement,
    Underway,
    accounts_of,
)
from domain.money import Money
from domain.ports import Clock

WITHIN_SECONDS = 10.0
#: calls under way elsewhere that are remembered, so that asking for them again costs no turn of the writer
UNDERWAY_KEPT = 10_000

Answer = TypeVar("Answer")


class PostgresLedger:
    """Holds, replies and their cost, each durable before it is answered; the port `Ledger`."""

    def __init__(
        self,
        writer: LedgerWriter,
        books: PostgresLedgerBooks,
        postgres: Postgres,
        *,
        within_seconds: float = WITHIN_SECONDS,
        tokens: Callable[[], str] | None = None,
    ) -> None:
        self.writer = writer
        self.books = books
        self._postgres = postgres
        self._within_seconds = within_seconds
        self._tokens = tokens or _tokens()
        self._underway: OrderedDict[UUID, None] = OrderedDict()

    @classmethod
    def over(cls, postgres: Postgres, conninfo: str, clock: Clock, **options: Any) -> Self:
        """A ledger whose writer connects for itself; `start` it in the loop that will use it."""
        writer = LedgerWriter(lambda: connect_writer(conninfo), clock, **options)
        return cls(writer, PostgresLedgerBooks(postgres, clock), postgres)

    def start(self) -> None:
        """Begin to write."""
        self.writer.start()

    async def close(self) -> None:
        """Write what is queued, for at most the closing time, then refuse."""
        await self.writer.close()

    # --- one call's life ---

    async def begin(
        self, call: LedgerCall, *, dispatch: bool = False, fence: Fence | None = None
    ) -> Hold | Replayed | Underway:
        """The journaled reply, the moment until which to wait, or a hold of the caller's own.

        Asking again while it is `Underway` only reads. Raises `BudgetExhausted`, with `refuse_other`
        `IdempotencyMismatch`, and with a fence `EpochSuperseded`.
        """
        if call.key.id in self._underway and (still := await self._still_underway(call, fence)) is not None:
            return still
        command = Begin(call, self._tokens(), dispatch=dispatch, fence=fence)
        if call.mode is Mode.BEST_EFFORT and await self._may_go(call, fence):
            # the fence was looked at; a queued write cannot be refused by it any more
            forced = Begin(call, command.token, dispatch=dispatch, forced=True)
            self.writer.offer(forced)
            return Hold(call, command.token)
        outcome: Hold | Replayed | Underway = await self.writer.submit(
            command, within_seconds=self._within_seconds
        )
        if isinstance(outcome, Underway):
            self._remember(call)
        return outcome

    async def dispatch(self, hold: Hold, fence: Fence | None = None) -> Underway | None:
        """Mark the hold dispatched before the request leaves; `Underway` if another took it over.

        Raises `EpochSuperseded` and `HoldExpired`.
        """
        if hold.call.mode is Mode.BEST_EFFORT and fence is None:
            self.writer.offer(Dispatch(hold, forced=True))
            return None
        underway: Underway | None = await self._submit(Dispatch(hold, fence))
        return underway

    async def settle(self, hold: Hold, settlement: Settlement) -> JournalEntry:
        """Journal the reply and commit its cost in one transaction; answers the entry that counts.

        Raises `LedgerConflict` for a repetition with another content.
        """
        entry: JournalEntry = await self._submit(Settle(hold, settlement), patient=True)
        return entry

    async def cancel(self, hold: Hold, reason: str) -> None:
        """End a hold that cost nothing."""
        await self._submit(Cancel(hold, reason), patient=True)

    async def doubt(self, hold: Hold, reason: str, rule: DoubtRule | None = None) -> None:
        """Keep the hold charged: it was sent, and nobody knows what became of it."""
        await self._submit(Doubt(hold, reason, rule), patient=True)

    async def adjust(
        self, hold: Hold, actual: Money, *, usage: Mapping[str, int] | None = None, reference: str = ""
    ) -> None:
        """Settle a doubt, or correct what was charged by `actual` under a reference, once.

        Raises `LedgerConflict` for the same reference with another amount.
        """
        await self._submit(Adjust(hold, actual, usage or {}, reference), patient=True)

    async def record(self, fact: LedgerFact) -> None:
        """Queue a fact; not awaited to the disk."""
        self.writer.offer(Record(fact))

    # --- events made elsewhere ---

    async def write_event(self, event: LedgerEvent, *, sync: bool = True) -> None:
        """Append an event; the same id with the same content is a no-op (L7).

        Raises `BudgetExhausted`, `LedgerConflict`; without `sync` it is queued, unchecked.
        """
        if sync:
            await self._submit(WriteEvent(event))
        else:
            self.writer.offer(WriteEvent(event, forced=True))

    async def spend_today(self, tenant_id: str, *, scope: str = "all", profile: str | None = None) -> Money:
        """What was spent today in the tenant's time zone."""
        return await self.books.spend_today(tenant_id, scope=scope, profile=profile)

    # --- upkeep ---

    async def sweep(self, count: int = 500) -> int:
        """End holds whose time has come: expired ones cancelled, overdue ones in doubt, old doubts settled."""
        due = await self.books.due(count)
        await asyncio.gather(*(self._submit(each) for each in due))
        return len(due)

    # --- the inside ---

    async def _submit(self, command: Command, *, patient: bool = False) -> Any:
        return await self.writer.submit(command, within_seconds=self._within_seconds, patient=patient)

    async def _still_underway(self, call: LedgerCall, fence: Fence | None) -> Underway | None:
        underway = await self.books.underway(call, fence)
        if underway is None:
            self._underway.pop(call.key.id, None)
        return underway

    def _remember(self, call: LedgerCall) -> None:
        self._underway[call.key.id] = None
        if len(self._underway) > UNDERWAY_KEPT:
            self._underway.popitem(last=False)

    async def _may_go(self, call: LedgerCall, fence: Fence | None) -> bool:
        """Whether a best-effort call may go on the last known balances; false where it has a history.

        A call that was tried before goes the strict way: its reply may be there.
        """
        if self.writer.away:
            # what accepts an overrun goes on while there is room in the buffer (L4)
            return fence is None
        accounts = accounts_of(call.payer, await self.books.today(call.payer.tenant_id))
        parameters = {
            "estimated": int(call.estimated),
            "tenant_id": call.payer.tenant_id,
            "call_id": call.key.id,
            "thread_id": fence.thread_id if fence else None,
            **tables.columns_of(accounts),
        }
        row = await self._postgres.row(tables.PRECHECK_SQL, parameters)
        assert row is not None
        if fence is not None and row["epoch"] != fence.epoch:
            raise EpochSuperseded(f"Epoch {fence.epoch} of thread {fence.thread_id} is superseded.")
        # who is over the limit is refused the strict way, too: by the writer, with the scope and a fact
        return not (row["known"] or row["passed"] or row["too_dear"])


def _tokens() -> Callable[[], str]:
    """Tokens that no other process makes; they name owners, and are no secrets."""
    process, numbers = secrets.token_hex(8), itertools.count(1)
    return lambda: f"{process}-{next(numbers):x}"


class SynchronousLedger:
    """The ledger for scripts: the same three, on a loop in a thread of its own (L9)."""

    def __init__(self, opened: AbstractAsyncContextManager[PostgresLedger]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ledger", daemon=True)
        self._thread.start()
        self._opened = opened
        self._ledger = self._wait(opened.__aenter__())

    def write_event(self, event: LedgerEvent, *, sync: bool = True) -> None:
        """As `Ledger.write_event`."""
        self._wait(self._ledger.write_event(event, sync=sync))

    def spend_today(self, tenant_id: str, *, scope: str = "all", profile: str | None = None) -> Money:
        """As `Ledger.spend_today`."""
        return self._wait(self._ledger.spend_today(tenant_id, scope=scope, profile=profile))

    def close(self) -> None:
        """As `Ledger.close`; what the ledger was opened with is closed, too."""
        self._wait(self._ledger.close())
        self._wait(self._opened.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, awaitable: Awaitable[Answer]) -> Answer:
        async def run() -> Answer:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

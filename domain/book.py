"""The book: decides commands against accounts and holds in memory.

The writer loads what a batch of commands touches, under locks, lets each command decide in turn, and writes
what the book gathered in the same transaction. Nothing here waits or knows of a database.

A command raises before it changes anything but facts and the doubt of an overdue hold.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from domain.completion import CompletionReply, Fence, Payer, Usage
from domain.errors import (
    BudgetExhausted,
    EpochSuperseded,
    HoldExpired,
    IdempotencyMismatch,
    LedgerConflict,
)
from domain.ledger import (
    DOUBT_SECONDS,
    HOLD_MOVES,
    NO_TIMING,
    NOTHING,
    OPEN_STATES,
    Account,
    CallKey,
    DoubtRule,
    EventStatus,
    EventType,
    FactKind,
    Hold,
    HoldState,
    JournalEntry,
    LedgerCall,
    LedgerEvent,
    LedgerFact,
    Replayed,
    Scope,
    Settlement,
    TenantBudget,
    Timing,
    Underway,
    accounts_of,
    event_id,
    movements,
)
from domain.money import ZERO, Money

#: a hold that a script has written waits so long for its end
SCRIPT_SECONDS = 24 * 3600.0
_NO_BUDGET = TenantBudget()


class MissingAccount(Exception):
    """The book was not given this account; load it and decide again."""

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        self.account = account


@dataclass(slots=True)
class AccountRow:
    """An account under its lock; the limit of a tenant's day is the tenant's."""

    limit: int | None
    held: int
    spent: int
    requests: int
    tokens: int
    version: int


class Accounts(dict[Account, AccountRow]):
    """The accounts that the book was given; asked for any other it raises `MissingAccount`."""

    def __missing__(self, account: Account) -> AccountRow:
        """Raise."""
        raise MissingAccount(account)


@dataclass(slots=True)
class HoldRow:
    """A hold under its account's locks; `open` is still set aside, `charged` was spent in all."""

    call_id: UUID
    attempt: int
    request_hash: str
    payer: Payer
    file_id: str
    trace_id: str
    provider: str
    model: str
    state: HoldState
    estimated: int
    likely: int
    open: int
    charged: int
    doubt_rule: DoubtRule
    rates: str
    token: str
    journaled: bool
    reply_seconds: float
    day: date
    due_at: datetime
    client_call_id: str
    #: it is among what the book will write
    changed: bool = False

    def move(self, state: HoldState) -> None:
        """Take a legal move; `LedgerConflict` for any other."""
        if state not in HOLD_MOVES[self.state]:
            raise LedgerConflict(
                f"Call {self.call_id}, dispatch {self.attempt}, is {self.state}, not {state}."
            )
        self.state = state


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A reply to be journaled."""

    call_id: UUID
    key: CallKey
    request_hash: str
    batch_id: str
    entry: JournalEntry
    usage: Mapping[str, Any]


@dataclass
class Book:
    """What a batch of commands may know, and what it decided."""

    now: datetime
    days: Mapping[str, date]
    budgets: Mapping[str, TenantBudget] = field(default_factory=dict)
    accounts: Accounts = field(default_factory=Accounts)
    holds: dict[UUID, list[HoldRow]] = field(default_factory=dict)
    journal: dict[tuple[UUID, str], JournalEntry] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    #: events that are written already, of those that commands asked for by their ids
    known: dict[UUID, LedgerEvent] = field(default_factory=dict)

    events: list[LedgerEvent] = field(default_factory=list)
    facts: list[LedgerFact] = field(default_factory=list)
    journaled: list[JournalRow] = field(default_factory=list)
    changed_accounts: set[Account] = field(default_factory=set)
    new_holds: list[HoldRow] = field(default_factory=list)
    changed_holds: list[HoldRow] = field(default_factory=list)
    _moments: dict[float, datetime] = field(default_factory=dict)

    # --- what is known ---

    def after(self, seconds: float) -> datetime:
        """So long from now."""
        if (moment := self._moments.get(seconds)) is None:
            moment = self._moments[seconds] = self.now + timedelta(seconds=seconds)
        return moment

    def holds_of(self, call_id: UUID) -> list[HoldRow]:
        """The call's holds, oldest first."""
        return self.holds.setdefault(call_id, [])

    def own(self, hold: Hold) -> HoldRow | None:
        """The row of which the hold's token is the owner."""
        return next((row for row in self.holds_of(hold.call.key.id) if row.token == hold.token), None)

    def numbered(self, call_id: UUID, attempt: int) -> HoldRow | None:
        """The call's hold of that number."""
        return next((row for row in self.holds_of(call_id) if row.attempt == attempt), None)

    def replied(self, call_id: UUID, request_hash: str) -> JournalEntry | None:
        """The journaled reply to this request."""
        return self.journal.get((call_id, request_hash))

    def check(self, fence: Fence | None) -> None:
        """Raise `EpochSuperseded` unless the attempt still owns its thread."""
        if fence is not None and self.epochs.get(fence.thread_id) != fence.epoch:
            raise EpochSuperseded(f"Epoch {fence.epoch} of thread {fence.thread_id} is superseded.")

    def check_limits(self, payer: Payer, estimated: int) -> None:
        """Raise `BudgetExhausted` for the first scope that the hold would pass (L12)."""
        estimated = int(estimated)  # money's own arithmetic costs ten times an integer's, in the hottest loop
        budget = self.budgets.get(payer.tenant_id, _NO_BUDGET)
        if budget.call_limit is not None and estimated > budget.call_limit:
            raise _exhausted(Scope.CALL, "", budget.call_limit, estimated - budget.call_limit)
        for account in accounts_of(payer, self.days[payer.tenant_id]):
            row = self.accounts[account]
            limit = row.limit
            if limit is not None and (total := row.held + row.spent + estimated) > limit:
                raise _exhausted(account.scope, account.subject, limit, total - limit, row.held)

    # --- what is decided ---

    def open(self, call: LedgerCall, token: str, *, dispatched: bool, forced: bool) -> HoldRow:
        """A new hold of the call, checked against every limit unless forced; a refusal is a fact."""
        if not forced:
            try:
                self.check_limits(call.payer, call.estimated)
            except BudgetExhausted as refusal:
                lacking = {"scope": refusal.scope, "missing_nanodollars": refusal.missing_nanodollars}
                self.facts.append(
                    LedgerFact(
                        FactKind.REFUSED, call.payer, call.key.id, None, call.trace_id,
                        {**lacking, "estimated_nanodollars": int(call.estimated)},
                    )
                )  # fmt: skip
                raise
        row = self._row(call, token)
        self.add(row)
        self.append(row, EventType.HOLD, estimated=call.estimated)
        if dispatched:
            self.dispatch(row)
        return row

    def _row(self, call: LedgerCall, token: str) -> HoldRow:
        before = self.holds_of(call.key.id)
        estimated = int(call.estimated)
        return HoldRow(
            call_id=call.key.id,
            attempt=before[-1].attempt + 1 if before else 1,
            request_hash=call.request_hash,
            payer=call.payer,
            file_id=call.file_id,
            trace_id=call.trace_id,
            provider=call.provider,
            model=call.model,
            state=HoldState.HELD,
            estimated=estimated,
            likely=estimated if call.likely is None else int(call.likely),
            open=estimated,
            charged=0,
            doubt_rule=call.doubt_rule,
            rates=call.rates.document,
            token=token,
            journaled=False,
            reply_seconds=call.reply_seconds,
            day=self.days[call.payer.tenant_id],
            due_at=self.after(call.hold_seconds),
            client_call_id=call.client_call_id,
        )

    def add(self, row: HoldRow) -> None:
        """Keep a new hold."""
        self.holds_of(row.call_id).append(row)
        self.new_holds.append(row)
        row.changed = True

    def touch(self, row: HoldRow) -> None:
        """The hold was changed."""
        if not row.changed:
            self.changed_holds.append(row)
            row.changed = True

    def dispatch(self, row: HoldRow) -> None:
        """The call is about to leave; others wait for its reply until then."""
        row.move(HoldState.DISPATCHED)
        row.due_at = self.after(row.reply_seconds)
        self.touch(row)
        self.facts.append(LedgerFact(FactKind.DISPATCHED, row.payer, row.call_id, row.attempt, row.trace_id))

    def doubt(self, row: HoldRow, reason: str, rule: DoubtRule | None = None) -> None:
        """The call was sent, and nobody knows what became of it: it stays charged at its hold."""
        row.move(HoldState.IN_DOUBT)
        row.doubt_rule = rule or row.doubt_rule
        row.due_at = self.after(DOUBT_SECONDS)
        self.touch(row)
        data = {"reason": reason, "amount_nanodollars": row.open, "rule": row.doubt_rule}
        self.facts.append(
            LedgerFact(FactKind.IN_DOUBT, row.payer, row.call_id, row.attempt, row.trace_id, data)
        )

    def end(
        self,
        row: HoldRow,
        state: HoldState,
        event_type: EventType,
        *,
        actual: int = 0,
        reference: str = "",
        status: EventStatus = EventStatus.OK,
        usage: Mapping[str, Any] = NOTHING,
        rates: str | None = None,
        provider: str = "",
        model: str = "",
        timing: Timing | None = None,
    ) -> None:
        """Release what is open, spend what it cost, and take the hold to its new state."""
        if row.state is not state:
            row.move(state)
        self.append(
            row, event_type, estimated=Money(row.open), actual=Money(actual), reference=reference,
            status=status, usage=usage, rates=rates, provider=provider, model=model, timing=timing,
        )  # fmt: skip
        row.open = 0
        row.charged += actual
        self.touch(row)

    def append(
        self,
        row: HoldRow,
        event_type: EventType,
        *,
        estimated: Money,
        actual: Money = ZERO,
        reference: str = "",
        status: EventStatus = EventStatus.OK,
        usage: Mapping[str, Any] = NOTHING,
        rates: str | None = None,
        provider: str = "",
        model: str = "",
        timing: Timing | None = None,
    ) -> None:
        """Write an event of the hold today."""
        self.enter(
            LedgerEvent(
                event_id=event_id(row.call_id, row.attempt, event_type, reference),
                event_type=event_type,
                call_id=row.call_id,
                attempt=row.attempt,
                payer=row.payer,
                estimated=estimated,
                actual=actual,
                day=self.days[row.payer.tenant_id],
                hold_day=row.day,
                occurred_at=self.now,
                status=status,
                provider=provider or row.provider,
                model=model or row.model,
                trace_id=row.trace_id,
                file_id=row.file_id,
                usage=usage,
                rates=row.rates if rates is None else rates,
                timing=timing or NO_TIMING,
                reference=reference,
            )
        )

    def enter(self, event: LedgerEvent) -> None:
        """Apply an event to every account that it moves."""
        for accounts, held, spent, requests, tokens in movements(event):
            for account in accounts:
                row = self.accounts[account]
                row.held += held
                row.spent += spent
                row.requests += requests
                row.tokens += tokens
            self.changed_accounts.update(accounts)
        self.events.append(event)

    def keep(self, row: HoldRow, key: CallKey, entry: JournalEntry, usage: Mapping[str, Any]) -> JournalEntry:
        """Journal a reply; from now on every repetition gets it."""
        row.journaled = True
        self.journal[row.call_id, row.request_hash] = entry
        self.journaled.append(
            JournalRow(row.call_id, key, row.request_hash, row.payer.batch_id, entry, usage)
        )
        return entry


def _exhausted(scope: Scope, subject: str, limit: int, missing: int, held: int = 0) -> BudgetExhausted:
    named = "one call" if scope is Scope.CALL else f"{scope} {subject}"
    way_out = "wait until what is held has been settled" if held else "ask for less"
    return BudgetExhausted(
        f"The limit of {named} is {Money(limit)} USD, and {Money(missing)} USD are missing for this call. "
        f"Raise the limit, or {way_out}.",
        scope=scope,
        missing_nanodollars=missing,
        held_nanodollars=held,
    )


# --- commands ------------------------------------------------------------------------------------------


class Command(Protocol):
    """One decision to be made and written."""

    @property
    def call_id(self) -> UUID | None:
        """The call whose holds must be known."""
        ...

    @property
    def payer(self) -> Payer:
        """Whose accounts must be known."""
        ...

    def decide(self, book: Book) -> Any:
        """Decide, and answer the caller."""
        ...


@dataclass(frozen=True, slots=True)
class Begin:
    """Hold a call's worst case, or find its reply; forced where the caller did not wait for the answer."""

    call: LedgerCall
    token: str
    dispatch: bool = False
    fence: Fence | None = None
    forced: bool = False

    @property
    def call_id(self) -> UUID:
        """The call."""
        return self.call.key.id

    @property
    def payer(self) -> Payer:
        """Who pays."""
        return self.call.payer

    def decide(self, book: Book) -> Hold | Replayed | Underway:
        """The journaled reply, when to come back, or a hold of the caller's own."""
        if self.dispatch:
            book.check(self.fence)
        hold = Hold(self.call, self.token)
        rows = book.holds_of(self.call_id)
        if not rows:
            book.open(self.call, self.token, dispatched=self.dispatch, forced=self.forced)
            return hold
        if (mine := book.own(hold)) is not None:
            _check_alive(mine)
            return hold
        return self._among(book, hold, rows)

    def _among(self, book: Book, hold: Hold, rows: list[HoldRow]) -> Hold | Replayed | Underway:
        same = [row for row in rows if row.request_hash == self.call.request_hash]
        if not self.forced and (found := self._found(book, hold, same)) is not None:
            return found
        if self.call.refuse_other and not self.forced:
            _refuse_other(book, self.call, rows)
        for row in same:
            if row.state is HoldState.DISPATCHED and row.due_at <= book.now:
                book.doubt(row, "unanswered")
        if not same:
            book.facts.append(_diverged(self.call, rows[-1]))
        book.open(self.call, self.token, dispatched=self.dispatch, forced=self.forced)
        return hold

    def _found(self, book: Book, hold: Hold, same: list[HoldRow]) -> Hold | Replayed | Underway | None:
        if (entry := book.replied(self.call_id, self.call.request_hash)) is not None:
            return Replayed(entry)
        for row in same:
            if row.state is HoldState.DISPATCHED and row.due_at > book.now:
                return Underway(row.due_at)
        for row in same:
            if row.state is HoldState.HELD and row.due_at > book.now:
                # its owner has not dispatched it: an attempt that died, or one that is slower than this
                row.token = self.token
                book.touch(row)
                if self.dispatch:
                    book.dispatch(row)
                return hold
        return None


def _check_alive(row: HoldRow) -> None:
    if row.state not in OPEN_STATES:
        raise HoldExpired(f"The hold of call {row.call_id} is {row.state}; begin the call again.")


def _refuse_other(book: Book, call: LedgerCall, rows: list[HoldRow]) -> None:
    for row in rows:
        if row.request_hash != call.request_hash and (
            row.state in OPEN_STATES or book.replied(row.call_id, row.request_hash) is not None
        ):
            raise IdempotencyMismatch(
                "Idempotency-Key: another request was made with this key. Use a new key for each request.",
                field="Idempotency-Key",
            )


def _diverged(call: LedgerCall, before: HoldRow) -> LedgerFact:
    data = {"request_hash": call.request_hash, "before": before.request_hash}
    return LedgerFact(FactKind.DIVERGED, call.payer, call.key.id, before.attempt, call.trace_id, data)


@dataclass(frozen=True, slots=True)
class _OfHold:
    """A command of a hold's owner."""

    hold: Hold

    @property
    def call_id(self) -> UUID:
        """The call."""
        return self.hold.call.key.id

    @property
    def payer(self) -> Payer:
        """Who pays."""
        return self.hold.call.payer


@dataclass(frozen=True, slots=True)
class Dispatch(_OfHold):
    """The call is about to leave."""

    fence: Fence | None = None
    forced: bool = False

    def decide(self, book: Book) -> Underway | None:
        """`None` when this attempt may send."""
        book.check(self.fence)
        row = book.own(self.hold)
        if row is None:
            return self._taken_over(book)
        if row.state is HoldState.DISPATCHED:
            return None
        if row.state is not HoldState.HELD and not self.forced:
            raise HoldExpired(f"The hold of call {row.call_id} is {row.state}; begin the call again.")
        if row.state is HoldState.HELD:
            book.dispatch(row)
        return None

    def _taken_over(self, book: Book) -> Underway | None:
        if self.forced:
            book.open(self.hold.call, self.hold.token, dispatched=True, forced=True)
            return None
        for row in reversed(book.holds_of(self.call_id)):
            if row.state in (HoldState.HELD, HoldState.DISPATCHED):
                return Underway(row.due_at)
        raise HoldExpired(f"The hold of call {self.call_id} is gone; begin the call again.")


@dataclass(frozen=True, slots=True)
class Settle(_OfHold):
    """The reply is there: journal it and commit its cost."""

    settlement: Settlement

    def decide(self, book: Book) -> JournalEntry:
        """The entry that counts."""
        row = book.own(self.hold) or book.open(
            self.hold.call, self.hold.token, dispatched=True, forced=True
        )  # a hold that was only queued and got lost: the money was spent all the same
        entry = book.replied(row.call_id, row.request_hash)
        if row.state is HoldState.COMMITTED:
            return self._repeated(row, entry)
        if entry is not None:
            self._adjust(book, row, "late")
            return entry
        return self._commit(book, row)

    def _commit(self, book: Book, row: HoldRow) -> JournalEntry:
        outcome = self.settlement
        if row.charged:
            # a doubt had been settled by its rule; the commit states the full cost
            charged = row.charged
            book.end(row, row.state, EventType.ADJUST, actual=-charged, reference="replied")
        self._end(book, row, HoldState.COMMITTED, EventType.COMMIT, int(outcome.actual))
        provider = outcome.provider or row.provider
        entry = JournalEntry(outcome.reply, provider, outcome.actual, row.attempt, book.now)
        return book.keep(row, self.hold.call.key, entry, outcome.usage)

    def _adjust(self, book: Book, row: HoldRow, reference: str) -> None:
        missing = int(self.settlement.actual) - row.charged
        if row.state is HoldState.ADJUSTED and not missing:
            return
        self._end(book, row, HoldState.ADJUSTED, EventType.ADJUST, missing, reference)

    def _end(
        self, book: Book, row: HoldRow, state: HoldState, event_type: EventType, actual: int, ref: str = ""
    ) -> None:
        outcome = self.settlement
        book.end(
            row, state, event_type, actual=actual, reference=ref, usage=outcome.usage,
            rates=outcome.rates.document, provider=outcome.provider,
            model=outcome.model or outcome.reply.model, timing=outcome.timing,
        )  # fmt: skip

    def _repeated(self, row: HoldRow, entry: JournalEntry | None) -> JournalEntry:
        outcome = self.settlement
        same = entry is not None and entry.reply == outcome.reply and entry.actual == outcome.actual
        if entry is None or not same:
            raise LedgerConflict(
                f"Call {row.call_id}, dispatch {row.attempt}, was committed with another content."
            )
        return entry


@dataclass(frozen=True, slots=True)
class Cancel(_OfHold):
    """The call cost nothing."""

    reason: str = ""
    status: EventStatus = EventStatus.ERROR

    def decide(self, book: Book) -> None:
        """End the hold; what is ended already stays."""
        row = book.own(self.hold)
        if row is None or row.state is HoldState.CANCELLED:
            return
        _cancel(book, row, self.reason, self.status)


def _cancel(book: Book, row: HoldRow, reason: str, status: EventStatus) -> None:
    book.end(row, HoldState.CANCELLED, EventType.CANCEL, status=status, usage={"reason": reason})


@dataclass(frozen=True, slots=True)
class Doubt(_OfHold):
    """The call was sent, and no reply came."""

    reason: str = ""
    rule: DoubtRule | None = None

    def decide(self, book: Book) -> None:
        """Leave the hold charged; what is ended already stays."""
        row = book.own(self.hold) or book.open(self.hold.call, self.hold.token, dispatched=True, forced=True)
        if row.state in (HoldState.HELD, HoldState.DISPATCHED):
            book.doubt(row, self.reason, self.rule)


@dataclass(frozen=True, slots=True)
class Adjust(_OfHold):
    """Better evidence came: settle a doubt, or correct what was charged."""

    actual: Money
    usage: Mapping[str, int] = field(default_factory=dict)
    reference: str = ""

    def event_id(self, book: Book) -> UUID | None:
        """The event that a repetition would have written."""
        row = book.own(self.hold)
        if row is None:
            return None
        return event_id(row.call_id, row.attempt, EventType.ADJUST, self.reference)

    def decide(self, book: Book) -> None:
        """End a doubt at this amount; add it to an ended hold under its reference, once."""
        row = book.own(self.hold)
        if row is None:
            raise LedgerConflict(f"Call {self.call_id} has no hold of this owner.")
        written = event_id(row.call_id, row.attempt, EventType.ADJUST, self.reference)
        if (before := book.known.get(written)) is not None:
            if before.actual != self.actual:
                raise LedgerConflict(f"Adjustment {self.reference!r} was made with another amount.")
            return
        if row.state in OPEN_STATES:
            state = HoldState.ADJUSTED
        elif self.reference:
            state = row.state
        else:
            raise LedgerConflict(f"Call {row.call_id} is {row.state}; a correction needs a reference.")
        book.end(
            row, state, EventType.ADJUST, actual=int(self.actual), reference=self.reference, usage=self.usage
        )
        # a second one in the same batch must find it
        book.known[written] = book.events[-1]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A hold whose time has come: the same decision whoever makes it, and however often."""

    call_id: UUID
    attempt: int
    payer: Payer

    def decide(self, book: Book) -> HoldState | None:
        """The state that the hold was taken to; `None` where its time has not come."""
        row = book.numbered(self.call_id, self.attempt)
        if row is None or row.due_at > book.now or row.state not in OPEN_STATES:
            return None
        if row.state is HoldState.HELD:
            _cancel(book, row, "expired", EventStatus.CANCELLED)
        elif row.state is HoldState.DISPATCHED:
            book.doubt(row, "unanswered")
        else:
            charge = {DoubtRule.FULL: row.open, DoubtRule.ESTIMATE: row.likely, DoubtRule.ZERO: 0}
            book.end(
                row, HoldState.ADJUSTED, EventType.ADJUST,
                actual=charge[row.doubt_rule], usage={"rule": row.doubt_rule},
            )  # fmt: skip
        return row.state


@dataclass(frozen=True, slots=True)
class Record:
    """A fact and no decision."""

    fact: LedgerFact

    @property
    def call_id(self) -> None:
        """No holds are needed."""
        return

    @property
    def payer(self) -> Payer:
        """Whose fact it is."""
        return self.fact.payer

    def decide(self, book: Book) -> None:
        """Write it down."""
        book.facts.append(self.fact)


@dataclass(frozen=True, slots=True)
class WriteEvent:
    """An event that was made elsewhere (L9)."""

    event: LedgerEvent
    forced: bool = False

    @property
    def call_id(self) -> UUID:
        """The call."""
        return self.event.call_id

    @property
    def payer(self) -> Payer:
        """Who pays."""
        return self.event.payer

    def event_id(self, book: Book) -> UUID:
        """The event itself."""
        return self.event.event_id

    def decide(self, book: Book) -> None:
        """Append it, unless it is written already with the same content (L7)."""
        event = self.event
        if (before := book.known.get(event.event_id)) is not None:
            if not before.same_content(event):
                raise LedgerConflict(f"Event {event.event_id} was written with another content.")
            return
        row = book.numbered(event.call_id, event.attempt)
        if event.event_type is EventType.HOLD:
            self._hold(book, row)
        else:
            self._end(book, row)
        book.known[event.event_id] = event

    def _hold(self, book: Book, row: HoldRow | None) -> None:
        event = self.event
        if row is not None:
            raise LedgerConflict(f"Call {event.call_id} has a hold number {event.attempt} already.")
        if event.actual or event.day != event.hold_day:
            raise LedgerConflict("A hold spends nothing, and counts on its own day.")
        if not self.forced:
            book.check_limits(event.payer, event.estimated)
        book.add(_row_of(event, book))
        book.enter(event)

    def _end(self, book: Book, row: HoldRow | None) -> None:
        event = self.event
        if (
            row is None
            or row.open != event.estimated
            or row.day != event.hold_day
            or row.payer != event.payer
        ):
            raise LedgerConflict(f"A {event.event_type} needs its hold, and releases what it holds.")
        state = _ENDS[event.event_type]
        if state is not row.state:
            row.move(state)
        book.enter(event)
        row.open = 0
        row.charged += event.actual
        book.touch(row)
        if event.event_type is EventType.COMMIT:
            self._journal(book, row)

    def _journal(self, book: Book, row: HoldRow) -> None:
        """A script's commit has no reply; an empty one keeps the call from being paid again."""
        usage, event = self.event.usage, self.event
        tokens = Usage(int(usage.get("tokens_in", 0)), int(usage.get("tokens_out", 0)))
        entry = JournalEntry(
            CompletionReply("", tokens, event.model), event.provider, event.actual, row.attempt, book.now
        )
        key = CallKey(event.payer.tenant_id, f"event/{event.call_id}", 1, event.attempt)
        book.keep(row, key, entry, usage)


_ENDS = {
    EventType.COMMIT: HoldState.COMMITTED,
    EventType.CANCEL: HoldState.CANCELLED,
    EventType.ADJUST: HoldState.ADJUSTED,
}


def _row_of(event: LedgerEvent, book: Book) -> HoldRow:
    return HoldRow(
        call_id=event.call_id,
        attempt=event.attempt,
        request_hash="",
        payer=event.payer,
        file_id=event.file_id,
        trace_id=event.trace_id,
        provider=event.provider,
        model=event.model,
        state=HoldState.HELD,
        estimated=int(event.estimated),
        likely=int(event.estimated),
        open=int(event.estimated),
        charged=0,
        doubt_rule=DoubtRule.FULL,
        rates=event.rates,
        token="",
        journaled=False,
        reply_seconds=0.0,
        day=event.hold_day,
        due_at=book.after(SCRIPT_SECONDS),
        client_call_id="",
    )


def accounts_needed(commands: Iterable[Command], days: Mapping[str, date]) -> set[Account]:
    """The accounts that the commands will most likely move."""
    needed: set[Account] = set()
    for payer in {command.payer for command in commands if not isinstance(command, Record)}:
        needed.update(accounts_of(payer, days[payer.tenant_id]))
    return needed

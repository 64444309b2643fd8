"""The ledger's words: calls, holds, events, accounts, the fold over events, and the port of the gateway.

A call is paid in two steps. A *hold* sets the worst case aside before the call leaves; its end is a *commit*
(the full actual cost, the reply journaled with it), a *cancel* (nothing was charged) or an *adjust* (a hold
in doubt settled by other evidence). Events are the truth; balances and holds are projections of them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cached_property, lru_cache
from hashlib import sha1
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from domain.completion import CompletionReply, CompletionRequest, Fence, Payer, Usage
from domain.errors import InvalidInput, UnpricedModel
from domain.identity import ClientStep, LogicalStep
from domain.money import Money

#: the root of every id in the ledger; changing it would make every repetition a new event
_NAMESPACE = UUID("6f2a3b52-58a4-5a0f-9c3e-3d7a2f6f9b11")

#: where version 5 and the variant stand in an id (RFC 9562)
_UUID5_MASK, _UUID5_MARKS = ~(0xF << 76 | 0x3 << 62), 0x5 << 76 | 0x2 << 62

#: a doubt is settled by its upstream's rule after so long without better evidence (L6)
DOUBT_SECONDS = 24 * 3600.0
#: journal rows outlive Temporal's retention; a shorter time is refused
MIN_RETENTION_DAYS = 30
#: amounts above it are mistakes, and two of them still fit into a bigint
MAX_AMOUNT = Money(10**9 * 10**9)


class _Word(StrEnum):
    # an enum's own hash is a call in Python, and these are keys in the hottest loop
    __hash__ = str.__hash__


class EventType(_Word):
    """The four kinds of ledger event."""

    HOLD = "precheck_hold"
    COMMIT = "commit"
    CANCEL = "cancel"
    ADJUST = "adjust"


class EventStatus(StrEnum):
    """How the call behind an event went."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"


class FactKind(StrEnum):
    """What is no money and is worth knowing."""

    REFUSED = "refused"
    DISPATCHED = "dispatched"
    IN_DOUBT = "in_doubt"
    DIVERGED = "diverged"
    WAITED = "waited"
    RETRIED = "retried"
    UNPRICED = "unpriced"
    #: the upstream did not count what a reply used
    ESTIMATED = "estimated"


class Scope(_Word):
    """What a limit can be set on; a call is decided against all of its scopes at once."""

    CALL = "call"
    API_KEY = "api_key"
    BATCH = "batch"
    PROFILE = "profile"
    TENANT_DAY = "tenant_day"


class Mode(StrEnum):
    """What a call does while its budget is not known for certain."""

    #: rather refuse wrongly than let through wrongly: the hold is durable before the call leaves
    STRICT = "strict_budget"
    #: look at the last known balances and go; the overrun is bounded by the calls in flight
    BEST_EFFORT = "best_effort"


class DoubtRule(StrEnum):
    """What a call in doubt costs when no better evidence comes."""

    FULL = "full"
    ESTIMATE = "estimate"
    ZERO = "zero"


class HoldState(_Word):
    """Where one hold is; one row for each dispatch of a call."""

    HELD = "held"
    DISPATCHED = "dispatched"
    IN_DOUBT = "in_doubt"
    COMMITTED = "committed"
    CANCELLED = "cancelled"
    ADJUSTED = "adjusted"


_H = HoldState
#: the legal moves of a hold (L6)
HOLD_MOVES: Mapping[HoldState, frozenset[HoldState]] = {
    _H.HELD: frozenset({_H.DISPATCHED, _H.IN_DOUBT, _H.COMMITTED, _H.CANCELLED, _H.ADJUSTED}),
    _H.DISPATCHED: frozenset({_H.IN_DOUBT, _H.COMMITTED, _H.CANCELLED, _H.ADJUSTED}),
    # the reply came after all, or the upstream said that it refused
    _H.IN_DOUBT: frozenset({_H.COMMITTED, _H.CANCELLED, _H.ADJUSTED}),
    # a paid reply is never thrown away, however late
    _H.CANCELLED: frozenset({_H.COMMITTED, _H.ADJUSTED}),
    _H.ADJUSTED: frozenset({_H.COMMITTED}),
    _H.COMMITTED: frozenset(),
}
OPEN_STATES = (_H.HELD, _H.DISPATCHED, _H.IN_DOUBT)


# --- prices ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Dated prices of one model: nano-dollars for a million units, by the usage's name for the unit.

    Names are `tokens_in`, `tokens_out`, `tokens_cached` (part of `tokens_in`), `images`, `audio_seconds` ….
    """

    version: str = ""
    per_million: Mapping[str, int] = field(default_factory=dict)

    def cost(self, usage: Mapping[str, int | Decimal]) -> Money:
        """The exact cost, rounded up once; raises `UnpricedModel` for a unit without a price."""
        total: int | Fraction = 0
        for unit, count in _billed(usage, self.per_million).items():
            if not isinstance(count, (int, Decimal)) or isinstance(count, bool) or count < 0:
                raise InvalidInput(f"{unit} is {count!r}, which is no number of units.", field=unit)
            if count and unit not in self.per_million:
                message = f"Price list {self.version or '(none)'} has no price for {unit}."
                raise UnpricedModel(f"{message} State it with `assay prices set`.", field=unit)
            whole = count if isinstance(count, int) else Fraction(count)
            total += whole * self.per_million.get(unit, 0)
        return Money(-(-total // 1_000_000))

    @cached_property
    def document(self) -> str:
        """The rates as they stand in events: canonical JSON."""
        if not self.version and not self.per_million:
            return "{}"
        content = {"version": self.version, "nanodollars_per_million": dict(self.per_million)}
        return json.dumps(content, sort_keys=True, separators=(",", ":"))


NO_RATES = Rates()


def _billed(usage: Mapping[str, int | Decimal], prices: Mapping[str, int]) -> dict[str, int | Decimal]:
    billed = dict(usage)
    cached = billed.get("tokens_cached", 0)
    if cached and "tokens_cached" not in prices:
        # without a price of their own they cost what every other token costs
        del billed["tokens_cached"]
    elif cached:
        billed["tokens_in"] = billed.get("tokens_in", 0) - cached
    return billed


def usage_document(usage: Usage) -> dict[str, int]:
    """A reply's usage under the ledger's names."""
    return {
        "tokens_in": usage.tokens_in,
        "tokens_out": usage.tokens_out,
        "tokens_cached": usage.tokens_cached,
    }


# --- calls -------------------------------------------------------------------------------------------


def named_uuid(namespace: UUID, name: str) -> UUID:
    """As `uuid.uuid5`, in half its time: three are made for every call."""
    digest = sha1(namespace.bytes + name.encode(), usedforsecurity=False).digest()
    return UUID(int=int.from_bytes(digest[:16]) & _UUID5_MASK | _UUID5_MARKS)


@dataclass(frozen=True)
class CallKey:
    """The identity of a logical call: whoever tries it, and however often (L6)."""

    tenant_id: str
    step: str
    generation: int
    number: int
    #: made of the identity
    id: UUID = field(init=False)

    def __post_init__(self) -> None:
        """Make the id, which everything about the call goes by."""
        name = f"{self.tenant_id}\0{self.step}\0{self.generation}\0{self.number}"
        object.__setattr__(self, "id", named_uuid(_NAMESPACE, name))

    @staticmethod
    def of(request: CompletionRequest, payer: Payer | None = None) -> "CallKey":
        """The key of a request for a completion; `payer` where it is not the request that says who pays."""
        return _key_of((payer or request.payer).tenant_id, request.step, request.call_number)


@lru_cache(maxsize=1024)  # asked for by several steps of a call
def _key_of(tenant_id: str, step: LogicalStep | ClientStep, number: int) -> CallKey:
    return CallKey(tenant_id, str(step), step.generation, number)


@dataclass(frozen=True)
class LedgerCall:
    """A call that wants to be paid.

    `estimated` is the worst case over every candidate that may answer; `likely` is what a doubt costs under
    the rule `estimate`, `estimated` by default. `hold_seconds` is how long an undispatched hold lives,
    `reply_seconds` how long others wait for a dispatched one.
    """

    key: CallKey
    request_hash: str
    payer: Payer
    estimated: Money
    provider: str = ""
    model: str = ""
    trace_id: str = ""
    file_id: str = ""
    rates: Rates = NO_RATES
    likely: Money | None = None
    mode: Mode = Mode.STRICT
    doubt_rule: DoubtRule = DoubtRule.FULL
    hold_seconds: float = 60.0
    reply_seconds: float = 120.0
    #: an outside caller's call, so that the client's own retry finds it; empty for an agent's
    client_call_id: str = ""
    #: another request under the same key is an `IdempotencyMismatch` instead of a new call
    refuse_other: bool = False

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for what no account could hold."""
        if not 0 <= self.estimated <= MAX_AMOUNT:
            raise InvalidInput(f"The estimate {self.estimated!r} is out of bounds.", field="estimated")
        if self.key.tenant_id != self.payer.tenant_id or not self.payer.tenant_id:
            raise InvalidInput("A call is paid by the tenant of its key.", field="payer")


@dataclass(frozen=True)
class Hold:
    """A hold as its owner has it; the token tells the owner from every other attempt."""

    call: LedgerCall
    token: str


@dataclass(frozen=True)
class Underway:
    """Another attempt has dispatched the call; wait until then, and begin again."""

    until: datetime


@dataclass(frozen=True)
class JournalEntry:
    """A received reply, kept beside its commit."""

    reply: CompletionReply
    provider: str
    actual: Money
    attempt: int
    created_at: datetime


@dataclass(frozen=True)
class Replayed:
    """The call was paid before; this is its reply."""

    entry: JournalEntry


@dataclass(frozen=True)
class Timing:
    """How long the upstream took: to the first token where streamed, and in all."""

    ttft_ms: int | None = None
    total_ms: int | None = None


NO_TIMING = Timing()
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Settlement:
    """What a dispatched call ended with: the reply, who gave it, and its full cost."""

    reply: CompletionReply
    actual: Money
    provider: str = ""
    rates: Rates = NO_RATES
    timing: Timing = NO_TIMING
    #: units beyond the reply's tokens, such as `images`
    units: Mapping[str, int] = field(default_factory=dict)
    #: without its provider, as the hold has it; the reply's own by default
    model: str = ""

    @cached_property
    def usage(self) -> dict[str, int]:
        """All that was used, by unit."""
        return usage_document(self.reply.usage) | dict(self.units)


# --- accounts and events -----------------------------------------------------------------------------


class Account(NamedTuple):
    """What a balance is kept for; the subject is a key's, batch's or profile's id, or a day."""

    tenant_id: str
    scope: Scope
    subject: str


@lru_cache(maxsize=4096)  # asked for several times for each event, and the same few payers every time
def accounts_of(payer: Payer, day: date) -> tuple[Account, ...]:
    """The accounts that a call counts against on a day; the scope `call` needs none."""
    named = [
        (Scope.API_KEY, payer.api_key_id),
        (Scope.BATCH, payer.batch_id),
        (Scope.PROFILE, payer.profile),
        (Scope.TENANT_DAY, day.isoformat()),
    ]
    return tuple(Account(payer.tenant_id, scope, subject) for scope, subject in named if subject)


class LedgerEvent(NamedTuple):
    """An immutable fact about money (L1).

    `estimated` is what the event sets aside (a hold) or gives back (all others); `actual` is what it adds
    to the money spent, below zero where an adjust takes some back. `day` is the event's own, `hold_day`
    the day on which the hold was made.
    """

    event_id: UUID
    event_type: EventType
    call_id: UUID
    attempt: int
    payer: Payer
    estimated: Money
    actual: Money
    day: date
    hold_day: date
    occurred_at: datetime
    status: EventStatus = EventStatus.OK
    provider: str = ""
    model: str = ""
    trace_id: str = ""
    file_id: str = ""
    usage: Mapping[str, Any] = NOTHING
    rates: str = "{}"
    timing: Timing = NO_TIMING
    reference: str = ""

    def same_content(self, other: "LedgerEvent") -> bool:
        """Whether it states the same: type, call, scopes, amounts, rates; not time or timing (L7)."""
        return self._content() == other._content()

    def _content(self) -> tuple[Any, ...]:
        call = (self.event_type, self.call_id, self.attempt, self.payer)
        return (*call, int(self.estimated), int(self.actual), json.loads(self.rates))


def event_id(call_id: UUID, attempt: int, event_type: EventType, reference: str = "") -> UUID:
    """The id of an event: its call, dispatch and kind; a repetition gets the same one."""
    return named_uuid(call_id, f"{attempt}/{event_type}/{reference}")


@dataclass
class Balance:
    """What the events say about one account."""

    held: int = 0
    spent: int = 0
    requests: int = 0
    tokens: int = 0


class Movement(NamedTuple):
    """What one event changes in each of some accounts."""

    accounts: tuple[Account, ...]
    held: int
    spent: int
    requests: int
    tokens: int


def movements(event: LedgerEvent) -> Iterator[Movement]:
    """What the event changes; the one rule from which every balance follows."""
    payer, estimated, spent = event.payer, int(event.estimated), int(event.actual)
    released = estimated if event.event_type is EventType.HOLD else -estimated
    requests = int(event.event_type is EventType.COMMIT)
    tokens = _tokens(event.usage) if event.usage else 0
    accounts = accounts_of(payer, event.day)
    if event.day == event.hold_day:
        yield Movement(accounts, released, spent, requests, tokens)
        return
    yield Movement(accounts[:-1], released, spent, requests, tokens)
    yield Movement(accounts[-1:], 0, spent, requests, tokens)
    yield Movement(accounts_of(payer, event.hold_day)[-1:], released, 0, 0, 0)


def _tokens(usage: Mapping[str, Any]) -> int:
    return int(usage.get("tokens_in", 0)) + int(usage.get("tokens_out", 0))


def fold(events: Iterable[LedgerEvent]) -> dict[Account, Balance]:
    """Every balance, from the events alone."""
    balances: dict[Account, Balance] = {}
    for event in events:
        for accounts, held, spent, requests, tokens in movements(event):
            for account in accounts:
                balance = balances.setdefault(account, Balance())
                balance.held += held
                balance.spent += spent
                balance.requests += requests
                balance.tokens += tokens
    return balances


class LedgerFact(NamedTuple):
    """What happened beside the money."""

    kind: FactKind
    payer: Payer
    call_id: UUID | None = None
    attempt: int | None = None
    trace_id: str = ""
    data: Mapping[str, Any] = NOTHING


# --- what the readers of the ledger get --------------------------------------------------------------


@dataclass(frozen=True)
class AccountBalance:
    """An account as it stands; `version` grows with every change (O1)."""

    account: Account
    limit: Money | None
    held: Money
    spent: Money
    requests: int
    tokens: int
    version: int

    @property
    def left(self) -> Money | None:
        """What may still be held; below zero after an overrun, `None` without a limit."""
        return None if self.limit is None else self.limit - self.spent - self.held


@dataclass(frozen=True)
class DaySpend:
    """One day of a tenant."""

    day: date
    spent: Money
    held: Money
    requests: int
    tokens: int


@dataclass(frozen=True)
class TenantBudget:
    """What a tenant has set for itself; its day begins in its time zone."""

    time_zone: str = "UTC"
    call_limit: Money | None = None
    daily_limit: Money | None = None
    mode: Mode | None = None


def chosen_mode(*settings: Mode | None) -> Mode:
    """The mode of a call, from the settings of its key, batch and tenant: the strictest one that is set."""
    known = set(settings) - {None}
    return Mode.BEST_EFFORT if known == {Mode.BEST_EFFORT} else Mode.STRICT


# --- the port ----------------------------------------------------------------------------------------


class Ledger(Protocol):
    """What pays for every model call; the gateway's port.

    All of these raise `LedgerOverloaded` when the queue stays full until the deadline, and
    `LedgerUnavailable` when the outcome did not become known in time. Both may be tried again with the same
    arguments: what was done is not done twice.
    """

    async def begin(
        self, call: LedgerCall, *, dispatch: bool = False, fence: Fence | None = None
    ) -> Hold | Replayed | Underway:
        """The journaled reply, the moment until which to wait, or a hold of the caller's own.

        With `dispatch` the hold is dispatched in the same write, for callers that wait for nothing in
        between. Asking again while it is `Underway` is cheap. Raises `BudgetExhausted`, with `refuse_other`
        `IdempotencyMismatch`, and with a fence `EpochSuperseded`.
        """
        ...

    async def dispatch(self, hold: Hold, fence: Fence | None = None) -> Underway | None:
        """Mark the hold dispatched, durably, before the request leaves; `Underway` if another took it over.

        Raises `EpochSuperseded`, and `HoldExpired` for a hold that was cancelled meanwhile.
        """
        ...

    async def settle(self, hold: Hold, settlement: Settlement) -> JournalEntry:
        """Journal the reply and commit its cost in one transaction; answers the entry that counts.

        That is another attempt's where one was faster; this one's cost is adjusted. Raises
        `LedgerConflict` for a repetition with another content.
        """
        ...

    async def cancel(self, hold: Hold, reason: str) -> None:
        """End a hold that cost nothing: connection refused, 429, 4xx, 5xx."""
        ...

    async def doubt(self, hold: Hold, reason: str, rule: DoubtRule | None = None) -> None:
        """Keep the hold charged: it was sent, and nobody knows what became of it."""
        ...

    async def adjust(
        self, hold: Hold, actual: Money, *, usage: Mapping[str, int] | None = None, reference: str = ""
    ) -> None:
        """Settle a doubt from the provider's usage, or correct a commit by `actual` under a reference.

        The same reference is applied once. Raises `LedgerConflict` for the same one with another amount.
        """
        ...

    async def record(self, fact: LedgerFact) -> None:
        """Queue a fact; not awaited to the disk."""
        ...

    async def write_event(self, event: LedgerEvent, *, sync: bool = True) -> None:
        """Append an event made elsewhere; the same id with the same content is a no-op (L7).

        A commit needs its hold. Raises `BudgetExhausted`, `LedgerConflict`.
        """
        ...

    async def spend_today(self, tenant_id: str, *, scope: str = "all", profile: str | None = None) -> Money:
        """What was spent today in the tenant's time zone; `scope` is `all` or `profile`."""
        ...

    async def close(self) -> None:
        """Write what is queued, for at most the closing time, then refuse."""
        ...

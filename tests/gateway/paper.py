"""A door without servers: a ledger on paper, one price for every model, nothing known of tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from domain.completion import Chat, CompletionRequest, Fence, Payer
from domain.errors import BudgetExhausted
from domain.gateway import Affinity, Caller, LimitState, Permit, RateLimit
from domain.identity import ClientStep
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
)
from domain.money import Money
from domain.ports import Models
from domain.prices import ModelPrices, Price
from gateway.context import Authenticated, Context
from gateway.door import CallTerms, Door
from gateway.tokens import TokenEstimates


@dataclass
class PaperLedger:
    """The port `Ledger` in memory, of one process and with one limit; it outlives nothing."""

    limit: int | None = None
    journal: dict[Any, JournalEntry] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    calls: dict[str, LedgerCall] = field(default_factory=dict)
    facts: list[LedgerFact] = field(default_factory=list)
    refused: list[LedgerCall] = field(default_factory=list)

    async def begin(
        self, call: LedgerCall, *, dispatch: bool = False, fence: Fence | None = None
    ) -> Hold | Replayed | Underway:
        """A hold, unless the call was answered, is under way, or is too dear."""
        if (entry := self.journal.get((call.key, call.request_hash))) is not None:
            return Replayed(entry)
        mine = [token for token, known in self.calls.items() if known.key == call.key]
        if any(self.states[token] == "dispatched" for token in mine):
            return Underway(datetime.now(UTC) + timedelta(seconds=call.reply_seconds))
        if self.limit is not None and self._held() + call.estimated > self.limit:
            self.refused.append(call)
            missing, held = self._held() + int(call.estimated) - self.limit, self._held()
            raise BudgetExhausted("Full.", missing_nanodollars=missing, held_nanodollars=held)
        token = str(len(self.calls))
        self.calls[token], self.states[token] = call, "dispatched" if dispatch else "held"
        return Hold(call, token)

    async def dispatch(self, hold: Hold, fence: Fence | None = None) -> Underway | None:
        """It is sent."""
        self.states[hold.token] = "dispatched"
        return None

    async def settle(self, hold: Hold, settlement: Settlement) -> JournalEntry:
        """It is paid for."""
        self.states[hold.token] = "committed"
        entry = JournalEntry(settlement.reply, settlement.provider, settlement.actual, 1, datetime.now(UTC))
        return self.journal.setdefault((hold.call.key, hold.call.request_hash), entry)

    async def cancel(self, hold: Hold, reason: str) -> None:
        """It cost nothing."""
        self.states[hold.token] = "cancelled"

    async def doubt(self, hold: Hold, reason: str, rule: DoubtRule | None = None) -> None:
        """Nobody knows."""
        self.states[hold.token] = "in_doubt"

    async def adjust(
        self, hold: Hold, actual: Money, *, usage: Mapping[str, int] | None = None, reference: str = ""
    ) -> None:
        """Somebody knows better."""
        self.states[hold.token] = "adjusted"

    async def record(self, fact: LedgerFact) -> None:
        """Keep it."""
        self.facts.append(fact)

    async def write_event(self, event: LedgerEvent, *, sync: bool = True) -> None:
        """No event is made elsewhere."""

    async def spend_today(self, tenant_id: str, *, scope: str = "all", profile: str | None = None) -> Money:
        """All that was spent."""
        return Money(sum(int(each.actual) for each in self.journal.values()))

    async def close(self) -> None:
        """Nothing is queued."""

    def _held(self) -> int:
        return sum(
            int(call.estimated) for token, call in self.calls.items() if self.states[token] == "dispatched"
        )


class OnePrice:
    """The port `Prices`: every model costs a thousand nano-dollars a token."""

    async def of_model(self, name: str) -> ModelPrices:
        """The one price."""
        return ModelPrices("1", tuple(Price("", name, unit, 10**9) for unit in ("tokens_in", "tokens_out")))


class NothingLearned:
    """The port `TokenRatios` of an installation that begins."""

    async def add(self, family: str, calls_by_hundredths: Mapping[int, int]) -> None:
        """It begins anew the next time."""

    async def of_family(self, family: str) -> Mapping[int, int]:
        """Nothing."""
        return Counter()


@dataclass
class PaperAffinities:
    """The port `Affinities` in memory."""

    known: dict[tuple[str, str], Affinity] = field(default_factory=dict)

    async def read(self, tenant_id: str, session_id: str) -> Affinity | None:
        """As it was claimed."""
        return self.known.get((tenant_id, session_id))

    async def claim(self, tenant_id: str, session_id: str, model: str, *, seen: Affinity | None) -> bool:
        """Where nobody else did."""
        current = self.known.get((tenant_id, session_id))
        if current != seen:
            return False
        self.known[tenant_id, session_id] = Affinity(model, 1 + (current.version if current else 0))
        return True


@dataclass
class PaperLimits:
    """The port `RateLimits` in memory: it grants everything, and remembers."""

    granted: list[Permit] = field(default_factory=list)
    given_back: dict[str, int | None] = field(default_factory=dict)

    async def acquire(
        self, tenant_id: str, limits: Sequence[RateLimit], *, tokens: int, lease_seconds: float
    ) -> Permit:
        """A place."""
        states = tuple(LimitState(limit, limit.capacity, 0.0) for limit in limits)
        permit = Permit(str(len(self.granted)), tuple(limits), tokens, states)
        self.granted.append(permit)
        return permit

    async def release(self, tenant_id: str, permit: Permit, *, tokens_used: int | None = None) -> None:
        """The place is free; the first word counts."""
        self.given_back.setdefault(permit.id, tokens_used)

    async def freed(self, tenant_id: str, full: Sequence[RateLimit], *, within_seconds: float) -> None:
        """There always is a place."""


async def strict(_: Payer) -> tuple[Mode | None, ...]:
    """No mode is set."""
    return (None,)


def paper_door(upstream: Models, ledger: PaperLedger | None = None, **options: Any) -> Door:
    """A door before the upstream."""
    terms = options.pop("terms", lambda _: CallTerms(timeout_seconds=5, wait_seconds=0.5))
    tokens = TokenEstimates(NothingLearned())
    return Door(upstream, ledger or PaperLedger(), OnePrice(), tokens, terms=terms, modes=strict, **options)


CALLER = Caller("tenant", "key", frozenset({"model"}))
PAYER = Payer("tenant", "", "key")


def a_chat(
    call_id: str = "c", model: str = "one:model", session_id: str = "", **changes: Any
) -> CompletionRequest:
    """A client's request."""
    chat = Chat(({"role": "user", "content": "What is light?"},), session_id=session_id)
    return replace(CompletionRequest(ClientStep(call_id), 1, model, chat=chat, max_tokens=100), **changes)


def a_context(request: CompletionRequest | None = None, **sections: Any) -> Context:
    """A client's call, once it is known who pays."""
    known: dict[str, Any] = {"caller": CALLER, "arrived": monotonic(), "authenticated": Authenticated(PAYER)}
    return Context(request or a_chat(), **(known | sections))

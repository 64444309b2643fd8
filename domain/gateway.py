"""The gateway's words and ports: who calls, under which limits, in which conversation, over which model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable
from uuid import UUID

from domain.completion import (
    DEFAULT_MAX_TOKENS,
    CompletionReply,
    CompletionRequest,
    OnChunk,
    Payer,
)
from domain.ledger import Account


@dataclass(frozen=True)
class RateLimit:
    """At most so many of something a minute: `requests` or `tokens`; or at once: `calls`."""

    #: whose limit it is, such as `key/{id}`, `tenant` or `upstream/{provider}`
    subject: str
    unit: Literal["requests", "tokens", "calls"]
    capacity: int


@dataclass(frozen=True)
class Caller:
    """Who makes a request: a key of one tenant with scopes, and what it may use.

    `models` are patterns, none for all; the limits are the key's and its tenant's.
    """

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    profile: str = ""
    models: tuple[str, ...] = ()
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    limits: tuple[RateLimit, ...] = ()


@dataclass(frozen=True)
class LimitState:
    """What is left of one limit, and in how many seconds all of it will be."""

    limit: RateLimit
    left: int
    reset_seconds: float


OnLimits = Callable[[Sequence[LimitState]], None]


@runtime_checkable
class StreamingModels(Protocol):
    """Models that also tell a reply while it is being written."""

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """As every model does."""
        ...

    async def stream(self, request: CompletionRequest, on_chunk: OnChunk) -> CompletionReply:
        """As `complete`, and each chunk as it comes; the reply is whole when it is answered."""
        ...


class Completions(Protocol):
    """The gateway: every call is limited, paid, routed, journaled and settled there."""

    async def complete(
        self,
        request: CompletionRequest,
        *,
        caller: Caller | None = None,
        on_chunk: OnChunk | None = None,
        on_limits: OnLimits | None = None,
    ) -> CompletionReply:
        """The reply, paid for once; `caller` is an outside one, an agent has none.

        Hears chunks in `on_chunk`, and in `on_limits` what is left of the caller's limits before anything is
        sent. The call goes on to its end when the waiting task is cancelled.

        Raises `RateLimited`, `BudgetExhausted`, `UnpricedModel`, `CallUnderway`, `IdempotencyMismatch`,
        `ConversationBusy`, `Forbidden` and what models raise.
        """
        ...


@dataclass(frozen=True)
class Permit:
    """What a call was granted under rate limits; it is given back once."""

    id: str
    limits: tuple[RateLimit, ...] = ()
    tokens: int = 0
    states: tuple[LimitState, ...] = ()


class RateLimits(Protocol):
    """Rates and concurrency, shared by all processes; each process's share alone while Redis is gone."""

    async def acquire(
        self, tenant_id: str, limits: Sequence[RateLimit], *, tokens: int, lease_seconds: float
    ) -> Permit:
        """Take one request, so many tokens and one place of all of them, or of none.

        Raises `RateLimited` with the longest wait among those that refuse. A place that is never given back
        is free again when the lease ends.
        """
        ...

    async def release(self, tenant_id: str, permit: Permit, *, tokens_used: int | None = None) -> None:
        """Give the place back, and the tokens that were not used; never raises."""
        ...


@dataclass(frozen=True)
class QuotaCopy:
    """An account as Redis has it; never newer than Postgres (O1)."""

    account: Account
    limit: int | None
    held: int
    spent: int
    requests: int
    tokens: int
    version: int


class Quotas(Protocol):
    """The copy of balances that is quick to read; Postgres is the authority."""

    async def read(self, payer: Payer) -> Sequence[QuotaCopy]:
        """The payer's accounts, copied from Postgres where they are missing: once, whoever asks (O7)."""
        ...

    async def check(self, payer: Payer) -> None:
        """Raise `BudgetExhausted` if a limit is spent, asked of Postgres before it is said."""
        ...


@dataclass(frozen=True)
class Affinity:
    """The upstream that last answered a session, and how often that was settled (O5)."""

    model: str
    version: int


class Affinities(Protocol):
    """Which model a session prefers; a preference, never more."""

    async def read(self, tenant_id: str, session_id: str) -> Affinity | None:
        """The session's preference, if there is one and Redis answers."""
        ...

    async def claim(self, tenant_id: str, session_id: str, model: str, *, seen: Affinity | None) -> bool:
        """Prefer the model from now on, unless another call claimed since `seen` was read."""
        ...


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation, taken: what was said before, and the token that appends."""

    session_id: str
    token: str
    last_seq: int
    summary: str
    #: those after the summary, in order, as OpenAI's protocol has them
    messages: tuple[Mapping[str, Any], ...]


class Conversations(Protocol):
    """Conversations by session; gapless, in order, one turn at a time (O4)."""

    async def take_turn(
        self, tenant_id: str, session_id: str, *, wait_seconds: float, lease_seconds: float
    ) -> Turn:
        """The next turn, after the one under way; raises `ConversationBusy` when that lasts too long."""
        ...

    async def append(
        self, tenant_id: str, turn: Turn, call_id: UUID, messages: Sequence[Mapping[str, Any]]
    ) -> int:
        """Append the turn's messages and give it back; answers the last number. The same call appends once.

        Raises `ConversationBusy` when the turn was lost to another one meanwhile.
        """
        ...

    async def give_back(self, tenant_id: str, turn: Turn) -> None:
        """End the turn without a message; never raises."""
        ...

    async def summarise(self, tenant_id: str, session_id: str, summary: str, up_to: int) -> bool:
        """State a summary of the committed messages up to there; false if a later one is there."""
        ...


class ClientCalls(Protocol):
    """Recognises a client's own retry of a call (O10)."""

    async def new(self) -> str:
        """An id for a call that is none's retry."""
        ...

    async def retried(self, key_id: str, request_hash: str) -> str | None:
        """The id of the newest call of that key and request within ten minutes that was not delivered yet."""
        ...

    async def delivered(self, call_id: str) -> None:
        """The reply went out whole; never raises."""
        ...

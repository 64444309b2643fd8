"""The gateway's words and ports: who calls, under which limits, in which conversation, over which model."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, runtime_checkable
from uuid import UUID

from domain.completion import (
    DEFAULT_MAX_TOKENS,
    CompletionReply,
    CompletionRequest,
    OnChunk,
    Payer,
)
from domain.errors import InvalidInput
from domain.ledger import Account

#: begins with a letter or a digit, so that no part of an address means anything else
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,99}")


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

        Raises `RateLimited` with the longest wait among those that refuse. The place is kept until it is
        given back, however long that takes; when its process has died, it is free when the lease ends.
        """
        ...

    async def freed(self, tenant_id: str, full: Sequence[RateLimit], *, within_seconds: float) -> None:
        """Wait until this process gives a place of these limits back, at most so long; then ask again."""
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


def check_session_id(text: str) -> str:
    """The name of a conversation; raises `InvalidInput` for what cannot be one."""
    if not _SESSION_ID.fullmatch(text):
        raise InvalidInput(
            "session: 1 to 100 letters, digits and _ . : @ - are allowed, a letter or a digit first.",
            field="session",
        )
    return text


@dataclass(frozen=True)
class Conversation:
    """A conversation as it stands; its messages are numbered from 1 to `last_seq`."""

    session_id: str
    last_seq: int
    summary: str
    #: the summary is of the messages up to here
    summary_seq: int
    #: whether a turn is under way
    busy: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation, taken: what was said before, and the token that appends."""

    session_id: str
    token: str
    last_seq: int
    summary: str
    #: the newest of those after the summary, in order, as OpenAI's protocol has them
    messages: tuple[Mapping[str, Any], ...]


class Conversations(Protocol):
    """Conversations by session; gapless, in order, one turn at a time (O4)."""

    async def take_turn(
        self, tenant_id: str, session_id: str, *, wait_seconds: float, lease_seconds: float
    ) -> Turn:
        """The next turn, after the one under way; raises `ConversationBusy` when that lasts too long."""
        ...

    async def renew(self, tenant_id: str, turn: Turn, *, lease_seconds: float) -> bool:
        """Let the turn last so long from now on; false if it was lost."""
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

    async def read(self, tenant_id: str, session_id: str) -> Conversation:
        """The conversation; raises `NotFound`."""
        ...

    async def messages(
        self, tenant_id: str, session_id: str, *, after: int, limit: int
    ) -> Sequence[Mapping[str, Any]]:
        """The messages that follow that number, in order; none of a conversation that is not there."""
        ...

    async def list_of_tenant(
        self, tenant_id: str, page: int, page_size: int
    ) -> tuple[list[Conversation], int]:
        """One page of the conversations, the last changed first, and how many there are."""
        ...

    async def delete(self, tenant_id: str, session_id: str) -> None:
        """Forget the conversation; the turn under way is lost. Raises `NotFound`."""
        ...


class ClientCalls(Protocol):
    """Recognises a client's own retry of a call (O10)."""

    async def new(self) -> str:
        """An id for a call that is none's retry."""
        ...

    async def retried(self, key_id: str, request_hash: str) -> str | None:
        """The id of the newest call of that key and request within ten minutes that was not delivered yet.

        None for the retry of a call that was refused, which is a new call; it uses that refusal up.
        """
        ...

    async def refused(self, key_id: str, request_hash: str) -> None:
        """A new call was refused before anything was held: its retry is no other call's; never raises."""
        ...

    async def delivered(self, call_id: str) -> None:
        """The reply went out whole; never raises."""
        ...

"""Upstreams that do as they are told, behind a door on accounts of its own."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from db.postgres.prices import PostgresPrices, PostgresTokenRatios
from db.redis.affinity import RedisAffinities
from domain.completion import Chat, CompletionReply, CompletionRequest, Message, OnChunk, Payer, Usage
from domain.gateway import Caller
from domain.identity import ClientStep, LogicalStep
from domain.ledger import Scope
from domain.prices import Unit, own_prices
from gateway.catalogue import canonical_name, catalogue
from gateway.door import CallTerms, Door
from gateway.tokens import TokenEstimates
from runtime.resources import Resources
from tests.builders import an_exam

QUESTION = an_exam().question("q2")
#: of a reply `at_once`, at a thousand nano-dollars a token in and two thousand out
COST = 100 * 1_000 + 50 * 2_000
#: dollars for a million tokens, in and out
PRICES = {"scripted": ("1", "2"), "one:model": ("1", "2"), "two:model": ("3", "6"), "three:model": ("2", "4")}

Choices = Sequence[Mapping[str, Any]]
Act = Callable[[CompletionRequest], Awaitable[CompletionReply]]


async def at_once(request: CompletionRequest) -> CompletionReply:
    """Reply."""
    return CompletionReply("{}", Usage(tokens_in=100, tokens_out=50), request.model)


def raising(error: Exception) -> Act:
    """Raise that, each time."""

    async def act(_: CompletionRequest) -> CompletionReply:
        raise error

    return act


def raising_once(error: Exception) -> Act:
    """Raise that, and reply from then on."""
    errors = [error]

    async def act(request: CompletionRequest) -> CompletionReply:
        if errors:
            raise errors.pop()
        return await at_once(request)

    return act


@dataclass
class Upstream:
    """Models that do as they are told, and count."""

    act: Act = at_once
    #: what a model does instead, by name
    acts: dict[str, Act] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    models: list[str] = field(default_factory=list)
    requests: list[CompletionRequest] = field(default_factory=list)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """What it is told."""
        self.calls[request.key] += 1
        self.models.append(request.model)
        self.requests.append(request)
        return await self.acts.get(request.model, self.act)(request)


@dataclass
class StreamingUpstream(Upstream):
    """Models that tell their reply in words, and may break off after some."""

    words: tuple[str, ...] = ("Light", " is", " energy.")
    breaks_off: Exception | None = None

    async def stream(self, request: CompletionRequest, on_chunk: OnChunk) -> CompletionReply:
        """Tell word by word."""
        reply = await self.complete(request)
        for word in self.words:
            await on_chunk([{"index": 0, "delta": {"content": word}}])
            if self.breaks_off is not None:
                raise self.breaks_off
        return replace(reply, text="".join(self.words))


@dataclass(frozen=True)
class Lane:
    """A door over one upstream; its calls are made by agents of one batch, or by the clients of one key."""

    resources: Resources
    upstream: Upstream
    payer: Payer
    timeout_seconds: float = 10.0

    def door(self, **options: Any) -> Door:
        """A door of a process of its own."""
        postgres = self.resources.postgres
        return Door(
            self.upstream,
            self.resources.ledger,
            PostgresPrices(postgres, catalogue=catalogue, canonical=canonical_name),
            TokenEstimates(PostgresTokenRatios(postgres)),
            terms=lambda _: CallTerms(self.timeout_seconds, wait_seconds=0.3),
            modes=self.resources.ledger.books.modes,
            affinities=RedisAffinities(self.resources.redis),
            **options,
        )

    def request(self, **changes: Any) -> CompletionRequest:
        """A call of an agent, of this lane's own step."""
        step = LogicalStep(self.payer.batch_id, 1, "q2", "all", "first")
        made = CompletionRequest(step, 1, "scripted", QUESTION, "Light is energy.", payer=self.payer)
        return replace(made, messages=(Message("user", "Light is energy."),), **changes)

    @property
    def caller(self) -> Caller:
        """The key of the lane's tenant."""
        return Caller(self.payer.tenant_id, self.payer.api_key_id, frozenset({"model"}))

    def chat(self, call_id: str = "", *, session_id: str = "", **changes: Any) -> CompletionRequest:
        """A call of a client."""
        chat = Chat(({"role": "user", "content": "What is light?"},), session_id=session_id)
        step = ClientStep(call_id or uuid4().hex)
        return replace(CompletionRequest(step, 1, "scripted", chat=chat, max_tokens=100), **changes)

    async def states(self) -> list[str]:
        """The lane's holds, by dispatch."""
        rows = await self.resources.postgres.rows(
            "SELECT state FROM ledger_holds WHERE tenant_id = %s AND batch_id = %s ORDER BY call_id, attempt",
            [self.payer.tenant_id, self.payer.batch_id],
        )
        return [row["state"] for row in rows]

    async def outside_states(self) -> list[str]:
        """The holds of the lane's clients, by call and dispatch."""
        sql = "SELECT state FROM ledger_holds WHERE tenant_id = %s AND client_call_id <> ''"
        rows = await self.resources.postgres.rows(f"{sql} ORDER BY call_id, attempt", [self.payer.tenant_id])
        return [row["state"] for row in rows]

    async def events(self) -> Sequence[dict[str, Any]]:
        """The tenant's ledger."""
        return await self.resources.postgres.rows(
            "SELECT * FROM ledger_events WHERE tenant_id = %s ORDER BY occurred_at, event_type DESC",
            [self.payer.tenant_id],
        )

    async def facts(self, kind: str) -> list[dict[str, Any]]:
        """What the ledger was told beside the money."""
        while not self.resources.ledger.writer.idle:
            await asyncio.sleep(0.005)
        rows = await self.resources.postgres.rows(
            "SELECT data FROM ledger_facts WHERE tenant_id = %s AND kind = %s ORDER BY id",
            [self.payer.tenant_id, kind],
        )
        return [row["data"] for row in rows]

    async def spent(self) -> int:
        """What the batch's account says."""
        return await self._spent(Scope.BATCH, self.payer.batch_id)

    async def spent_outside(self) -> int:
        """What the key's account says."""
        return await self._spent(Scope.API_KEY, self.payer.api_key_id)

    async def _spent(self, scope: Scope, subject: str) -> int:
        (balance,) = await self.resources.ledger.books.balances(self.payer.tenant_id, scope, subject)
        return int(balance.spent)


async def opened_lane(resources: Resources, upstream: Upstream | None = None) -> Lane:
    """A lane of a tenant of its own, once its models have prices."""
    prices = PostgresPrices(resources.postgres, catalogue=catalogue, canonical=canonical_name)
    for model, (usd_in, usd_out) in PRICES.items():
        await prices.add(own_prices(model, [(Unit.TOKENS_IN, usd_in), (Unit.TOKENS_OUT, usd_out)]))
    payer = Payer(f"tenant-{uuid4().hex[:12]}", str(uuid4()), api_key_id=str(uuid4()))
    return Lane(resources, upstream or Upstream(), payer)

"""The gateway's routes on a real socket, over a scripted gateway or over the door and a talking model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import httpx
import orjson
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.dependencies import Limits
from db.postgres.prices import PostgresPrices
from db.postgres.tenants import PostgresKeys, PostgresTenants
from domain.completion import CompletionReply, CompletionRequest, ModelNames, OnChunk, Usage
from domain.gateway import Caller, Completions, LimitState, OnLimits
from domain.keys import KeyTerms, TenantTerms
from domain.prices import Unit, own_prices
from gateway.catalogue import canonical_name, catalogue
from runtime.resources import Resources
from runtime.server import services
from tests.conftest import KEY

MODEL = "campus:talker"
NAMES = ModelNames(("local", "scripted"), ("campus",), graders=frozenset({"local"}))
HELLO: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}]}


def a_reply(text: str = "Hello there.", **fields: Any) -> CompletionReply:
    """A reply to a chat, as an upstream gives it."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return CompletionReply(
        text, Usage(10, 5, 2), MODEL, **{"choices": orjson.dumps(choices).decode(), **fields}
    )


def chunks_of(text: str) -> list[list[dict[str, Any]]]:
    """The text word by word, as OpenAI streams it."""
    words = [{"content": f"{word} "} for word in text.split()]
    deltas = [{"role": "assistant", "content": ""}, *words]
    told = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    return [*told, [{"index": 0, "delta": {}, "finish_reason": "stop"}]]


Act = Callable[[CompletionRequest, OnChunk | None], Awaitable[CompletionReply]]


async def reply_at_once(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
    """Say hello, in chunks to whoever listens."""
    reply = a_reply()
    for chunk in chunks_of(reply.text) if on_chunk else ():
        await on_chunk(chunk)
    return reply


@dataclass
class ScriptedCompletions:
    """A gateway that does as it is told and notes what it was asked; a call outlives its caller."""

    act: Act = reply_at_once
    states: tuple[LimitState, ...] = ()
    requests: list[CompletionRequest] = field(default_factory=list)
    callers: list[Caller | None] = field(default_factory=list)
    ended: int = 0
    _running: set["asyncio.Task[CompletionReply]"] = field(default_factory=set)

    async def complete(
        self,
        request: CompletionRequest,
        *,
        caller: Caller | None = None,
        on_chunk: OnChunk | None = None,
        on_limits: OnLimits | None = None,
    ) -> CompletionReply:
        """What it is told."""
        self.requests.append(request)
        self.callers.append(caller)
        if on_limits is not None:
            on_limits(self.states)
        running = asyncio.create_task(self._run(request, on_chunk))
        self._running.add(running)
        running.add_done_callback(self._end)
        return await asyncio.shield(running)

    async def _run(self, request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        return await self.act(request, on_chunk)

    def _end(self, running: "asyncio.Task[CompletionReply]") -> None:
        self._running.discard(running)
        self.ended += 1
        if not running.cancelled():
            running.exception()


@dataclass
class TalkingModel:
    """An upstream that answers chats, in chunks too, and counts what it was asked."""

    act: Act = reply_at_once
    calls: int = 0

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """What it is told."""
        self.calls += 1
        return await self.act(request, None)

    async def stream(self, request: CompletionRequest, on_chunk: OnChunk) -> CompletionReply:
        """What it is told."""
        self.calls += 1
        return await self.act(request, on_chunk)


@asynccontextmanager
async def chat_server(
    resources: Resources, completions: Completions, **limits: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """The whole API over these completions; a client with the local tenant's key."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        made = services(resources, completions=completions)
        await made.keys.ensure("local", "Local", "local", KEY)  # type: ignore[attr-defined]  # the real one's
        yield {"services": replace(made, models=NAMES, limits=replace(Limits(), **limits))}

    server = uvicorn.Server(uvicorn.Config(create_app(lifespan), port=0, log_config=None, access_log=False))
    running = asyncio.create_task(server.serve())
    while not server.started:
        if running.done():
            running.result()
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=20
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await running


async def state_price(resources: Resources) -> None:
    """A thousand nano-dollars a token in, two thousand out: nothing is free that is to be paid once."""
    prices = PostgresPrices(resources.postgres, catalogue=catalogue, canonical=canonical_name)
    await prices.add(own_prices(MODEL, [(Unit.TOKENS_IN, "1"), (Unit.TOKENS_OUT, "2")]))


def events(text: str) -> list[str]:
    """The data of each event of a stream."""
    return [each.removeprefix("data: ") for each in text.split("\n\n") if each.startswith("data: ")]


async def commits(resources: Resources, key_id: str) -> int:
    """How many calls of that key have been paid for."""
    row = await resources.postgres.row(
        "SELECT count(*) AS n FROM ledger_holds WHERE api_key_id = %s AND journaled", [key_id]
    )
    assert row is not None
    return int(row["n"])


async def new_key(resources: Resources, **terms: Any) -> tuple[str, str]:
    """The id and the secret of a key that may ask models, and nothing else."""
    tenants, keys = PostgresTenants(resources.postgres), PostgresKeys(resources.postgres)
    tenant_id = f"tenant-{uuid4().hex[:12]}"
    first = KeyTerms("first", ("admin",))
    await tenants.create(tenant_id, TenantTerms(tenant_id), str(uuid4()), first)
    made = await keys.create(tenant_id, str(uuid4()), KeyTerms("talker", ("model",), **terms))
    assert made.secret is not None
    return made.key.id, made.secret


def told(replies: Sequence[httpx.Response]) -> list[int]:
    """The statuses of these answers, sorted."""
    return sorted(each.status_code for each in replies)

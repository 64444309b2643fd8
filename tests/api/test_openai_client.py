"""The official OpenAI client, unchanged, over the real door: what it asks for, and its own retries (O10)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import orjson
import pytest
from pydantic import BaseModel

from db.postgres.tenants import PostgresKeys, PostgresTenants
from domain.completion import CompletionReply, CompletionRequest, OnChunk, Usage
from domain.errors import BudgetExhausted, ModelUnavailable, RateLimited
from domain.gateway import Caller, Completions, OnLimits
from gateway.door import Door
from runtime.gateway import door
from runtime.resources import Resources
from tests.api.chatting import (
    HELLO,
    MODEL,
    TalkingModel,
    a_reply,
    chat_server,
    chunks_of,
    commits,
    new_key,
    reply_at_once,
    state_price,
)

TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}


@dataclass
class Turnstile:
    """The gateway, refusing as many calls as it is told before it lets one through."""

    behind: Door
    refusals: list[Exception] = field(default_factory=list)
    asked: int = 0

    async def complete(
        self,
        request: CompletionRequest,
        *,
        caller: Caller | None = None,
        on_chunk: OnChunk | None = None,
        on_limits: OnLimits | None = None,
    ) -> CompletionReply:
        """As the gateway, once nothing is left to refuse with."""
        self.asked += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return await self.behind.complete(request, caller=caller, on_chunk=on_chunk, on_limits=on_limits)


@dataclass
class Desk:
    """The official client with a key of its own, what stands behind it, and what it has paid."""

    resources: Resources
    model: TalkingModel
    turnstile: Turnstile
    client: openai.AsyncOpenAI
    key_id: str

    async def paid(self) -> int:
        """How many calls have been paid for."""
        return await commits(self.resources, self.key_id)


@pytest.fixture(scope="session")
async def served(session_resources: Resources) -> AsyncIterator[tuple[TalkingModel, Turnstile, httpx.URL]]:
    """The API over the real door."""
    await state_price(session_resources)
    model = TalkingModel()
    gateway = door(session_resources, model)
    turnstile = Turnstile(gateway)
    completions: Completions = turnstile
    async with chat_server(session_resources, completions) as client:
        yield model, turnstile, client.base_url
    await gateway.close()


@pytest.fixture
async def desk(
    session_resources: Resources, served: tuple[TalkingModel, Turnstile, httpx.URL]
) -> AsyncIterator[Desk]:
    """A desk whose gateway has nothing to tell of an earlier test."""
    model, turnstile, url = served
    model.act, model.calls = reply_at_once, 0
    turnstile.refusals.clear()
    turnstile.asked = 0
    key_id, secret = await new_key(session_resources)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=secret, timeout=20) as client:
        yield Desk(session_resources, model, turnstile, client, key_id)


# --- what it asks for ---------------------------------------------------------------------------------


async def test_it_completes_a_chat(desk: Desk) -> None:
    completion = await desk.client.chat.completions.create(**HELLO, temperature=0.5)
    assert completion.choices[0].message.content == "Hello there."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 15
    assert completion._request_id


async def test_it_streams(desk: Desk) -> None:
    stream = await desk.client.chat.completions.create(
        **HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said.split() == ["Hello", "there."]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 15
    assert await desk.paid() == 1


class Mark(BaseModel):
    """A structured answer."""

    points: int
    reason: str


async def test_it_parses_structured_output(desk: Desk) -> None:
    schemas = []

    async def mark(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        assert request.chat is not None
        schemas.append(request.chat.parameters["response_format"])
        return a_reply(json.dumps({"points": 3, "reason": "Good."}))

    desk.model.act = mark
    parsed = await desk.client.chat.completions.parse(**HELLO, response_format=Mark)
    assert parsed.choices[0].message.parsed == Mark(points=3, reason="Good.")
    assert schemas[0]["json_schema"]["schema"]["required"] == ["points", "reason"]


async def call_tool(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
    """Look at the sky."""
    message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    return CompletionReply("", Usage(10, 5), MODEL, choices=orjson.dumps(choices).decode())


async def test_it_calls_tools(desk: Desk) -> None:
    asked = []

    async def call(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        assert request.chat is not None
        asked.append(request.chat)
        return await call_tool(request, on_chunk)

    desk.model.act = call
    tools: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    completion = await desk.client.chat.completions.create(**HELLO, tools=tools, tool_choice="required")
    message = completion.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].model_dump() == TOOL_CALL
    assert asked[0].parameters == {"tools": tools, "tool_choice": "required"}

    answer: list[Any] = [
        *HELLO["messages"],
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
    ]
    await desk.client.chat.completions.create(model=MODEL, messages=answer, tools=tools)
    assert list(asked[1].messages) == answer


async def test_a_tool_is_called_in_a_stream_too(desk: Desk) -> None:
    desk.model.act = call_tool
    async with desk.client.chat.completions.stream(**HELLO) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert (calls[0].function.name, calls[0].function.arguments) == ("look", '{"at": "sky"}')


async def test_it_lists_models(desk: Desk) -> None:
    assert [model.id async for model in desk.client.models.list()] == ["scripted"]
    assert (await desk.client.models.retrieve(MODEL)).owned_by == "campus"


async def test_assays_own_parameters_go_in_the_extra_body(desk: Desk) -> None:
    postgres = desk.resources.postgres
    tenant_id = (await PostgresKeys(postgres).authenticate(desk.client.api_key)).tenant_id
    await PostgresTenants(postgres).set_profile(tenant_id, "class-b", None)
    completion = await desk.client.chat.completions.create(
        **HELLO, extra_body={"wait_on_rate_limit": True, "profile": "class-b"}
    )
    assert completion.choices
    row = await desk.resources.postgres.row(
        "SELECT profile FROM ledger_holds WHERE api_key_id = %s", [desk.key_id]
    )
    assert row == {"profile": "class-b"}


# --- its errors ---------------------------------------------------------------------------------------


async def test_its_errors_are_told_apart(desk: Desk) -> None:
    chats = desk.client.chat.completions
    with pytest.raises(openai.NotFoundError) as not_there:
        await chats.create(model="gpt-nowhere", messages=HELLO["messages"])
    with pytest.raises(openai.BadRequestError) as bad:
        await chats.create(**HELLO, temperature=7)
    with pytest.raises(openai.AuthenticationError) as unknown:
        await desk.client.with_options(api_key="no_such_key").models.list()
    assert (not_there.value.code, bad.value.param) == ("model_not_found", "temperature")
    assert unknown.value.code == "invalid_api_key"
    assert bad.value.request_id


async def test_a_spent_budget_is_said_once(desk: Desk) -> None:
    desk.turnstile.refusals = [BudgetExhausted("Spent.")] * 3
    with pytest.raises(openai.APIStatusError) as spent:
        await desk.client.chat.completions.create(**HELLO)
    assert (spent.value.status_code, spent.value.type) == (402, "insufficient_quota")
    assert desk.turnstile.asked == 1


async def test_an_error_in_a_stream_is_raised(desk: Desk) -> None:
    async def break_off(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        assert on_chunk is not None
        await on_chunk(chunks_of("Hello")[1])
        raise ModelUnavailable("Cut off.", in_doubt=True)

    desk.model.act = break_off
    stream = await desk.client.chat.completions.create(**HELLO, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "Hello "
    with pytest.raises(openai.APIError, match="Cut off") as broken:
        await anext(stream)
    assert broken.value.code == "model_unavailable"


# --- its own retries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_it_comes_again_after_a_limit_and_pays_once(desk: Desk, stream: bool) -> None:
    desk.turnstile.refusals = [RateLimited("Slow down.", retry_after_seconds=0.02)] * 2
    answer = await desk.client.chat.completions.create(**HELLO, stream=stream)
    if stream:
        assert [chunk async for chunk in answer]
    assert desk.turnstile.asked == 3
    assert (desk.model.calls, await desk.paid()) == (1, 1)


async def test_it_gives_up_on_a_limit_in_the_end(desk: Desk) -> None:
    desk.turnstile.refusals = [RateLimited("Slow down.", retry_after_seconds=0.02)] * 3
    with pytest.raises(openai.RateLimitError) as limited:
        await desk.client.chat.completions.create(**HELLO)
    assert limited.value.code == "rate_limit_exceeded"
    assert await desk.paid() == 0


@asynccontextmanager
async def cutting(url: httpx.URL, after_bytes: int) -> AsyncIterator[str]:
    """A way to the server that breaks off the first answer after so many bytes, and no other."""
    cuts = [after_bytes]

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, at_most: int | None) -> None:
        left = at_most
        with suppress(ConnectionError):
            while data := await reader.read(65_536 if left is None else left):
                writer.write(data)
                await writer.drain()
                if left is not None and (left := left - len(data)) <= 0:
                    break
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(url.host, url.port)
        cut = cuts.pop() if cuts else None
        there = asyncio.create_task(pipe(reader, server_writer, None))
        if cut == 0:
            # the request arrives, and nobody waits for its answer
            await asyncio.sleep(0.05)
        else:
            await pipe(server_reader, writer, cut)
        there.cancel()
        for each in (writer, server_writer):
            each.transport.abort()

    async with await asyncio.start_server(connect, "127.0.0.1") as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize("after_bytes", [0, 100], ids=["before the answer", "in the middle of it"])
async def test_it_comes_again_after_a_cut_and_pays_once(desk: Desk, after_bytes: int) -> None:
    async def at_length(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        await asyncio.sleep(0.2)
        # more than a connection's buffers hold: the server notices that nobody takes it
        return a_reply("word " * 2_000_000)

    desk.model.act = at_length
    url = httpx.URL(str(desk.client.base_url))
    async with cutting(url, after_bytes) as way, desk.client.with_options(base_url=way) as client:
        completion = await client.chat.completions.create(**HELLO)
    assert completion.choices[0].message.content == "word " * 2_000_000
    assert (desk.model.calls, await desk.paid()) == (1, 1)


async def test_its_own_key_names_the_call(desk: Desk) -> None:
    named = {"Idempotency-Key": "once"}
    first = await desk.client.chat.completions.create(**HELLO, extra_headers=named)
    again = await desk.client.chat.completions.create(**HELLO, extra_headers=named)
    assert first.id == again.id
    with pytest.raises(openai.UnprocessableEntityError):
        await desk.client.chat.completions.create(**HELLO, temperature=1, extra_headers=named)
    assert await desk.paid() == 1

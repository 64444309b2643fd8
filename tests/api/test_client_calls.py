"""Which call a request is: a repetition is recognised and paid for once, two equal calls are two (O10)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest

from db.client_calls import RETRY_SECONDS, StoredClientCalls, refused_key
from db.redis.connection import RedisLink
from domain.completion import CompletionReply, CompletionRequest, OnChunk
from domain.errors import ModelUnavailable
from domain.ports import Clock
from runtime.gateway import door
from runtime.resources import Resources, SystemClock
from tests.api.chatting import (
    HELLO,
    TalkingModel,
    a_reply,
    chat_server,
    commits,
    new_key,
    reply_at_once,
    state_price,
    told,
)

RETRY = {"x-stainless-retry-count": "1"}
FIRST = {"x-stainless-retry-count": "0"}


@dataclass
class Till:
    """The API over the real door, a model that does as it is told, and what one key has paid."""

    resources: Resources
    model: TalkingModel
    client: httpx.AsyncClient
    key_id: str

    async def post(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """One request, as a client makes it."""
        return await self.client.post("/v1/chat/completions", json=HELLO | fields, headers=headers)

    async def lose(self, headers: dict[str, str] | None = None, **fields: Any) -> None:
        """One request whose client goes before it is answered; its call ends well."""
        began, go_on = asyncio.Event(), asyncio.Event()

        async def take_time(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
            began.set()
            await go_on.wait()
            return a_reply("The lost one.")

        before, act, self.model.act = await self.paid(), self.model.act, take_time
        asking = asyncio.create_task(self.post(headers, **fields))
        await began.wait()
        asking.cancel()
        await asyncio.wait({asking})
        # the server hears of it in a moment
        await asyncio.sleep(0.05)
        go_on.set()
        self.model.act = act
        while await self.paid() == before:
            await asyncio.sleep(0.01)

    async def paid(self) -> int:
        """How many calls have been paid for."""
        return await commits(self.resources, self.key_id)


@pytest.fixture(scope="session")
async def talking(session_resources: Resources) -> AsyncIterator[tuple[TalkingModel, httpx.AsyncClient]]:
    """The API over the real door, and the model behind it."""
    await state_price(session_resources)
    model = TalkingModel()
    gateway = door(session_resources, model)
    async with chat_server(session_resources, gateway) as client:
        yield model, client
    await gateway.close()


@pytest.fixture
async def till(
    session_resources: Resources, talking: tuple[TalkingModel, httpx.AsyncClient]
) -> AsyncIterator[Till]:
    """A till with a key of this test's own."""
    model, client = talking
    model.act, model.calls = reply_at_once, 0
    key_id, secret = await new_key(session_resources)
    headers = {"Authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(base_url=client.base_url, headers=headers, timeout=20) as own:
        yield Till(session_resources, model, own, key_id)


async def test_a_key_names_the_call(till: Till) -> None:
    key = {"Idempotency-Key": "k1"}
    first, again = await till.post(key), await till.post(key)
    assert first.json() | {"created": 0} == again.json() | {"created": 0}
    assert (till.model.calls, await till.paid()) == (1, 1)

    assert (await till.post({"Idempotency-Key": "k2"})).json()["id"] != first.json()["id"]
    assert await till.paid() == 2


async def test_another_body_under_the_same_key_is_refused(till: Till) -> None:
    key = {"Idempotency-Key": "k1"}
    await till.post(key)
    for fields in ({"temperature": 1}, {"max_tokens": 5}, {"session": "s"}):
        answer = await till.post(key, **fields)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_mismatch")
    assert await till.paid() == 1


async def test_a_stream_repeats_a_plain_reply(till: Till) -> None:
    key = {"Idempotency-Key": "k1"}
    await till.post(key)
    streamed = await till.post(key, stream=True)
    assert "Hello there." in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert await till.paid() == 1


async def test_the_same_key_beside_itself_is_refused_and_its_clients_own_retry_waits(till: Till) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def take_time(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        began.set()
        await go_on.wait()
        return a_reply()

    till.model.act = take_time
    key = {"Idempotency-Key": "k1"}
    first = asyncio.create_task(till.post(key))
    await began.wait()
    beside = await till.post(key)
    retry = asyncio.create_task(till.post(key | RETRY))
    assert (beside.status_code, beside.json()["error"]["code"]) == (409, "call_underway")
    assert beside.headers["x-should-retry"] == "true"
    await asyncio.sleep(0.05)
    go_on.set()
    assert (await retry).json()["choices"] == (await first).json()["choices"]
    assert (till.model.calls, await till.paid()) == (1, 1)


async def test_two_equal_calls_are_two(till: Till) -> None:
    one, other = await till.post(FIRST), await till.post(FIRST)
    assert one.json()["id"] != other.json()["id"]
    assert await till.paid() == 2


async def test_a_retry_of_a_lost_call_gets_its_reply(till: Till) -> None:
    await till.lose(FIRST)
    retry = await till.post(RETRY)
    assert retry.json()["choices"][0]["message"]["content"] == "The lost one."
    assert (till.model.calls, await till.paid()) == (1, 1)


async def test_a_retry_of_a_lost_stream_gets_its_reply(till: Till) -> None:
    await till.lose(FIRST, stream=True)
    assert "The lost one." in (await till.post(RETRY, stream=True)).text
    assert await till.paid() == 1


async def test_a_retry_waits_for_the_call_that_is_still_under_way(till: Till) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def take_time(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        began.set()
        await go_on.wait()
        return a_reply("The slow one.")

    till.model.act = take_time
    lost = asyncio.create_task(till.post(FIRST))
    await began.wait()
    lost.cancel()
    retry = asyncio.create_task(till.post(RETRY))
    await asyncio.sleep(0.1)
    go_on.set()
    assert (await retry).json()["choices"][0]["message"]["content"] == "The slow one."
    assert (till.model.calls, await till.paid()) == (1, 1)


async def test_what_was_delivered_is_nobodys_retry(till: Till) -> None:
    delivered = await till.post(FIRST)
    retry = await till.post(RETRY)
    assert retry.json()["id"] != delivered.json()["id"]
    assert await till.paid() == 2


async def test_a_retry_is_of_its_own_body_alone(till: Till) -> None:
    await till.lose(FIRST)
    await till.post(RETRY, temperature=0.5)
    assert await till.paid() == 2


async def test_a_call_that_its_client_named_is_no_other_calls_retry(till: Till) -> None:
    await till.lose({"Idempotency-Key": "k1"})
    await till.post(RETRY)
    assert await till.paid() == 2


async def test_a_refused_call_is_made_anew_by_its_retry(till: Till) -> None:
    async def refuse(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        raise ModelUnavailable("Connection refused.")

    act, till.model.act = till.model.act, refuse
    refused = await till.post(FIRST, retry_budget_s=0)
    till.model.act = act
    answers = [refused, await till.post(RETRY, retry_budget_s=0)]
    assert told(answers) == [200, 503]
    assert await till.paid() == 1


async def test_the_retry_of_a_call_that_a_limit_refused_is_no_other_calls(till: Till) -> None:
    began: asyncio.Queue[None] = asyncio.Queue()
    go_on = asyncio.Event()

    async def take_time(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        began.put_nowait(None)
        await go_on.wait()
        return a_reply()

    async def limit(calls_at_once: int | None) -> None:
        parameters = [calls_at_once, till.key_id]
        await till.resources.postgres.run("UPDATE api_keys SET max_concurrent = %s WHERE id = %s", parameters)

    till.model.act = take_time
    await limit(1)
    sibling = asyncio.create_task(till.post(FIRST))
    await began.get()
    assert told([await till.post(FIRST), await till.post(RETRY)]) == [429, 429]
    await limit(None)
    retry = asyncio.create_task(till.post({"x-stainless-retry-count": "2"}))
    async with asyncio.timeout(60):
        await began.get()
    go_on.set()
    assert (await sibling).json()["id"] != (await retry).json()["id"]
    assert await till.paid() == 2


async def test_a_refusal_is_used_up_by_one_retry(till: Till) -> None:
    await till.lose(FIRST)
    calls = StoredClientCalls(till.resources.ledger.books, till.resources.redis, till.resources.clock)
    asked = await request_hash(till)
    await calls.refused(till.key_id, asked)
    await calls.refused("another-key", asked)
    told = await asyncio.gather(*(calls.retried(till.key_id, asked) for _ in range(3)))
    assert [each is None for each in told].count(True) == 1
    left = await till.resources.redis.client.ttl(refused_key("another-key", asked))
    assert 0 < left <= RETRY_SECONDS


async def test_without_redis_a_refusal_is_not_remembered(till: Till) -> None:
    await till.lose(FIRST)
    gone = RedisLink.to("redis://127.0.0.1:1", max_connections=1, timeout_seconds=0.2)
    calls = StoredClientCalls(till.resources.ledger.books, gone, till.resources.clock)
    asked = await request_hash(till)
    await calls.refused(till.key_id, asked)
    assert await calls.retried(till.key_id, asked)
    await gone.close()


class Later:
    """The machine's clock, so many seconds ahead."""

    def __init__(self, seconds: float) -> None:
        self._ahead = timedelta(seconds=seconds)

    def now(self) -> Any:
        return SystemClock().now() + self._ahead


async def found(till: Till, *, clock: Clock | None = None, redis: RedisLink | None = None) -> str | None:
    """What a retry of the hello finds."""
    resources = till.resources
    calls = StoredClientCalls(resources.ledger.books, redis or resources.redis, clock or resources.clock)
    return await calls.retried(till.key_id, await request_hash(till))


async def request_hash(till: Till) -> str:
    """The hash of what the till's key asked for."""
    row = await till.resources.postgres.row(
        "SELECT request_hash FROM ledger_holds WHERE api_key_id = %s LIMIT 1", [till.key_id]
    )
    assert row is not None
    return str(row["request_hash"])


async def test_after_ten_minutes_a_retry_is_a_new_call(till: Till) -> None:
    await till.lose(FIRST)
    assert await found(till, clock=Later(590))
    assert await found(till, clock=Later(610)) is None


async def test_without_redis_a_reply_is_rather_told_twice_than_paid_twice(till: Till) -> None:
    delivered = await till.post(FIRST)
    gone = RedisLink.to("redis://127.0.0.1:1", max_connections=1, timeout_seconds=0.2)
    assert await found(till) is None
    lost = await found(till, redis=gone)
    assert lost is not None
    row = await till.resources.postgres.row(
        "SELECT call_id FROM ledger_holds WHERE client_call_id = %s", [lost]
    )
    assert row is not None
    assert delivered.json()["id"] == f"chatcmpl-{row['call_id']}"
    await gone.close()


async def test_marks_that_redis_does_not_take_are_let_go(till: Till) -> None:
    gone = RedisLink.to("redis://127.0.0.1:1", max_connections=1, timeout_seconds=0.2)
    calls = StoredClientCalls(till.resources.ledger.books, gone, till.resources.clock)
    for number in range(3):
        await calls.delivered(f"call-{number}")
    await calls.close()
    await gone.close()


async def test_another_keys_calls_are_not_found(till: Till) -> None:
    await till.lose(FIRST)
    calls = StoredClientCalls(till.resources.ledger.books, till.resources.redis, till.resources.clock)
    assert await calls.retried("another-key", await request_hash(till)) is None

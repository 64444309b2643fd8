"""Chat completions in OpenAI's protocol, on the wire: what goes in, what comes out, what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.exchange import SMALL_BYTES
from domain.completion import CompletionReply, CompletionRequest, FinishReason, OnChunk, Usage
from domain.errors import (
    AssayError,
    BudgetExhausted,
    CallUnderway,
    ConversationBusy,
    Defect,
    Forbidden,
    IdempotencyMismatch,
    ModelAccessDenied,
    ModelRefused,
    ModelUnavailable,
    PromptTooLong,
    RateLimited,
    UnpricedModel,
)
from domain.gateway import LimitState, RateLimit
from domain.ledger import CallKey
from runtime.resources import Resources
from tests.api.chatting import HELLO, MODEL, ScriptedCompletions, a_reply, chat_server, chunks_of, events


@pytest.fixture(scope="session")
async def desk(session_resources: Resources) -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedCompletions]]:
    """A client, and the gateway that answers it."""
    completions = ScriptedCompletions()
    async with chat_server(
        session_resources, completions, max_chat_bytes=100_000, stall_seconds=0.3
    ) as client:
        yield client, completions


@pytest.fixture
def gateway(desk: tuple[httpx.AsyncClient, ScriptedCompletions]) -> ScriptedCompletions:
    """The gateway, with nothing to tell of an earlier test."""
    _, completions = desk
    fresh = ScriptedCompletions()
    completions.act, completions.states, completions.ended = fresh.act, (), 0
    completions.requests.clear()
    completions.callers.clear()
    return completions


@pytest.fixture
def client(
    desk: tuple[httpx.AsyncClient, ScriptedCompletions], gateway: ScriptedCompletions
) -> httpx.AsyncClient:
    """The client, whose gateway is fresh."""
    return desk[0]


async def post(
    client: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=HELLO | fields, headers=headers)


# --- what goes in -------------------------------------------------------------------------------------


async def test_what_is_not_ours_is_passed_on_as_it_came(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    passed = {
        "temperature": 0.5,
        "n": 2,
        "stop": ["END"],
        "seed": 7,
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "user": "u1",
    }
    answer = await post(client, **passed, max_tokens=50, top_p=None)

    assert answer.status_code == 200, answer.text
    (request,) = gateway.requests
    assert request.chat is not None
    assert dict(request.chat.parameters) == passed
    assert list(request.chat.messages) == HELLO["messages"]
    assert (request.model, request.max_tokens, request.question) == (MODEL, 50, None)


async def test_a_bound_of_the_reply_is_always_sent_on(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    await post(client)
    await post(client, max_tokens=7, max_completion_tokens=9)
    (caller, _) = gateway.callers
    assert caller is not None
    assert [each.max_tokens for each in gateway.requests] == [caller.default_max_tokens, 9]


async def test_assays_own_parameters_are_read(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    await client.put("/v1/profiles/class-b", json={"limit_usd": "1.00"})
    own = {"wait_on_rate_limit": True, "max_wait_timeout_s": 5, "retry_budget_s": 6.5}
    answer = await post(
        client, **own, session="exam-7", session_when_busy="refuse", profile="class-b", stream=False
    )

    assert answer.status_code == 200, answer.text
    (request,), (caller,) = gateway.requests, gateway.callers
    patience = request.patience
    assert (patience.wait_on_rate_limit, patience.max_wait_timeout_s, patience.retry_budget_s) == (
        True,
        5,
        6.5,
    )
    assert request.chat is not None
    assert (request.chat.session_id, request.chat.when_busy) == ("exam-7", "refuse")
    assert caller is not None
    assert (caller.profile, request.payer.profile) == ("class-b", "class-b")
    assert (request.payer.tenant_id, request.payer.api_key_id) == ("local", caller.key_id)


async def test_without_a_word_nobody_waits_for_a_limit(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    await post(client)
    assert not gateway.requests[0].patience.wait_on_rate_limit


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": ""}] * 2049}, "messages"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": f"{MODEL}\x1b[2J"}, "model"),
        ({"model": f"{MODEL}\nforged"}, "model"),
        ({"model": f"{MODEL}\u202e"}, "model"),
        ({"model": f"{MODEL}\u2066"}, "model"),
        ({"model": f"{MODEL} b"}, "model"),
        ({"model": f"{MODEL}\u3000"}, "model"),
        ({"model": "campus:" + "a" * 194}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"n": 17}, "n"),
        ({"n": 2, "session": "s"}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tools": [1]}, "tools"),
        ({"tools": [{"type": "web_search_20250305"}]}, "tools[0].type"),
        ({"response_format": {}}, "response_format"),
        ({"store": True}, "store"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"top_k": 5}, "top_k"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"all": True}}, "stream_options.all"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"session": "../up"}, "session"),
        ({"session_when_busy": "push"}, "session_when_busy"),
        ({"profile": "a/b"}, "profile"),
        ({"profile": "no-such-profile"}, "profile"),
        ({"max_wait_timeout_s": -1}, "max_wait_timeout_s"),
        ({"metadata": {"a": "b\0c"}}, "body"),
    ],
)
async def test_a_bad_parameter_is_refused_by_name(
    client: httpx.AsyncClient, gateway: ScriptedCompletions, fields: dict[str, Any], param: str
) -> None:
    answer = await post(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param.split(".")[-1].split("[")[0] in error["message"]
    assert gateway.requests == []


@pytest.mark.parametrize("kind", ["image_url", "input_image", "input_audio", "file", "video_url"])
async def test_a_part_whose_cost_nobody_knows_is_refused(
    client: httpx.AsyncClient, gateway: ScriptedCompletions, kind: str
) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": kind, kind: {"url": "https://a.example/b.png"}},
    ]
    answer = await post(client, messages=[{"role": "user", "content": parts}])
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[0].content[1].type")
    assert f"'{kind}' is not served here: nobody could say beforehand what it costs" in error["message"]
    assert gateway.requests == []


async def test_a_stored_sound_is_refused(client: httpx.AsyncClient, gateway: ScriptedCompletions) -> None:
    said = {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}
    answer = await post(client, messages=[said])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].audio")
    assert gateway.requests == []


async def test_a_profile_without_a_budget_pays_for_nothing_until_it_has_one(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    refused = await post(client, profile="class-new")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "profile")
    assert "PUT /v1/profiles/class-new" in refused.json()["error"]["message"]
    assert gateway.requests == []

    await client.put("/v1/profiles/class-new", json={"limit_usd": "1.00"})
    assert (await post(client, profile="class-new")).status_code == 200


async def test_what_is_null_counts_as_not_sent(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    answer = await post(client, temprature=None, audio=None, top_p=None)
    assert answer.status_code == 200, answer.text
    assert gateway.requests[0].chat is not None
    assert dict(gateway.requests[0].chat.parameters) == {}


async def test_two_idempotency_keys_are_refused(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    async def named(*names: str) -> httpx.Response:
        keys = [("Idempotency-Key", each) for each in names]
        return await client.post("/v1/chat/completions", json=HELLO, headers=keys)

    assert (await named("a", "a")).status_code == 200
    answer = await named("a", "b")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert len(gateway.requests) == 1


async def test_an_unknown_parameter_is_refused_in_openais_words(client: httpx.AsyncClient) -> None:
    answer = await post(client, temprature=1)
    assert answer.json()["error"]["message"] == "Unrecognized request argument supplied: temprature"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model": NaN}', b'{"user": "\\ud800"}', b'{"a":' * 500 + b"1" + b"}" * 500]
)
async def test_what_is_no_json_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_what_is_nested_too_deeply_is_refused(client: httpx.AsyncClient) -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    answer = await post(client, response_format={"type": "json_schema", "json_schema": schema})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "body")


async def test_a_body_over_the_limit_is_refused_from_its_stated_length(client: httpx.AsyncClient) -> None:
    answer = await post(client, messages=[{"role": "user", "content": "a" * 100_001}])
    assert answer.status_code == 413
    assert "max_chat_bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("header", [{"Authorization": ""}, {"Authorization": "Bearer no_such_key"}])
async def test_without_a_known_key_nothing_is_read(client: httpx.AsyncClient, header: dict[str, str]) -> None:
    for answer in (await post(client, headers=header), await client.get("/v1/models", headers=header)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_model_that_is_not_there_is_said_in_openais_words(client: httpx.AsyncClient) -> None:
    answer = await post(client, model="gpt-nowhere")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")


# --- what comes out -----------------------------------------------------------------------------------


async def test_a_completion_has_openais_form(client: httpx.AsyncClient, gateway: ScriptedCompletions) -> None:
    answer = await post(client)
    document = answer.json()
    call_id = CallKey.of(gateway.requests[0]).id
    assert document.pop("created") > 1_700_000_000
    assert document == {
        "id": f"chatcmpl-{call_id}",
        "object": "chat.completion",
        "model": MODEL,
        "choices": json.loads(a_reply().choices),
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 2},
            "cost_usd": "0.00",
        },
    }
    assert answer.headers["x-request-id"] == gateway.requests[0].trace_id
    assert answer.headers["content-type"] == "application/json"


async def test_a_reply_of_text_alone_is_a_choice_too(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    async def cut(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        return CompletionReply("Hel", Usage(1, 1), MODEL, finish_reason=FinishReason.LENGTH)

    gateway.act = cut
    (choice,) = (await post(client)).json()["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "Hel"},
        "finish_reason": "length",
    }


async def test_a_stream_has_openais_chunks_and_ends_with_done(client: httpx.AsyncClient) -> None:
    answer = await post(client, stream=True)
    *chunks, last = events(answer.text)
    documents = [json.loads(each) for each in chunks]

    assert last == "[DONE]"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [each["choices"] for each in documents] == chunks_of("Hello there.")
    assert {each["object"] for each in documents} == {"chat.completion.chunk"}
    assert len({each["id"] for each in documents}) == 1
    assert all("usage" not in each for each in documents)


async def test_the_usage_is_streamed_to_who_asks_for_it(client: httpx.AsyncClient) -> None:
    answer = await post(client, stream=True, stream_options={"include_usage": True})
    *chunks, usage, last = events(answer.text)
    assert last == "[DONE]"
    assert all(json.loads(each)["usage"] is None for each in chunks)
    document = json.loads(usage)
    assert (document["choices"], document["usage"]["total_tokens"]) == ([], 15)


async def test_what_is_left_of_limits_is_in_the_headers(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    gateway.states = (
        LimitState(RateLimit("key/k1", "requests", 60), 12, 48.2),
        LimitState(RateLimit("tenant", "requests", 600), 11, 100.0),
        LimitState(RateLimit("key/k1", "tokens", 9_000), 8_000, 0.25),
        LimitState(RateLimit("key/k1", "calls", 4), 3, 0.0),
    )
    for answer in (await post(client), await post(client, stream=True)):
        assert answer.headers["ratelimit-policy"] == (
            '"key-requests";q=60;w=60, "tenant-requests";q=600;w=60, '
            '"key-tokens";q=9000;w=60;qu="tokens", "key-calls";q=4;qu="concurrent-requests"'
        )
        assert answer.headers["ratelimit"] == (
            '"key-requests";r=12;t=49, "tenant-requests";r=11;t=100, '
            '"key-tokens";r=8000;t=1, "key-calls";r=3;t=0'
        )
        limits = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit")}
        assert limits == {
            "x-ratelimit-limit-requests": "600",
            "x-ratelimit-remaining-requests": "11",
            "x-ratelimit-reset-requests": "1m40s",
            "x-ratelimit-limit-tokens": "9000",
            "x-ratelimit-remaining-tokens": "8000",
            "x-ratelimit-reset-tokens": "250ms",
        }


REFUSALS: list[tuple[AssayError, int, str, str, str | None]] = [
    (BudgetExhausted("Spent."), 402, "insufficient_quota", "budget_exhausted", "false"),
    (RateLimited("Slow.", retry_after_seconds=0.25), 429, "rate_limit_error", "rate_limit_exceeded", "true"),
    (Forbidden("No."), 403, "permission_error", "forbidden", "false"),
    (CallUnderway("Wait."), 409, "invalid_request_error", "call_underway", "true"),
    (ConversationBusy("Wait."), 409, "invalid_request_error", "conversation_busy", "false"),
    (IdempotencyMismatch("Other."), 422, "invalid_request_error", "idempotency_mismatch", "false"),
    (ModelUnavailable("Gone."), 503, "server_error", "model_unavailable", "true"),
    (ModelRefused("No."), 400, "invalid_request_error", "model_refused", "false"),
    (ModelAccessDenied("No."), 502, "server_error", "model_access_denied", "false"),
    (PromptTooLong("Long."), 400, "invalid_request_error", "context_length_exceeded", "false"),
    (UnpricedModel("How much?"), 400, "invalid_request_error", "unpriced_model", "false"),
    (Defect("secret inside"), 500, "server_error", "defect", "true"),
]


@pytest.mark.parametrize(
    ("error", "status", "type_", "code", "again"), REFUSALS, ids=lambda value: getattr(value, "code", None)
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_condition_has_openais_form_and_says_whether_to_come_again(
    client: httpx.AsyncClient,
    gateway: ScriptedCompletions,
    stream: bool,
    error: AssayError,
    status: int,
    type_: str,
    code: str,
    again: str,
) -> None:
    async def refuse(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        raise error

    gateway.act = refuse
    gateway.states = (LimitState(RateLimit("key/k1", "requests", 60), 0, 1.0),)
    answer = await post(client, stream=stream)
    document = answer.json()["error"]
    assert (answer.status_code, document["type"], document["code"]) == (status, type_, code)
    assert answer.headers["x-should-retry"] == again
    assert "secret" not in answer.text
    assert {"x-request-id", "ratelimit"} <= answer.headers.keys()


async def test_a_limit_says_when_to_come_again_to_the_millisecond(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    async def refuse(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        raise RateLimited("Slow.", retry_after_seconds=1.2501)

    gateway.act = refuse
    answer = await post(client)
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "1251")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_its_limits_refuse_is_told_how_all_of_them_stand(
    client: httpx.AsyncClient, gateway: ScriptedCompletions, stream: bool
) -> None:
    states = (
        LimitState(RateLimit("key/k1", "requests", 60), 0, 59.5),
        LimitState(RateLimit("key/k1", "calls", 4), 1, 1.0),
    )

    async def refuse(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        raise RateLimited("Slow.", retry_after_seconds=1.0, states=states)

    # nothing is heard of limits before a grant
    gateway.act, gateway.states = refuse, ()
    answer = await post(client, stream=stream)
    assert answer.status_code == 429
    assert answer.headers["ratelimit"] == '"key-requests";r=0;t=60, "key-calls";r=1;t=1'
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-ratelimit-remaining-tokens" not in answer.headers


@pytest.mark.parametrize("error", [ModelUnavailable("Cut."), ValueError("secret inside")])
async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    client: httpx.AsyncClient, gateway: ScriptedCompletions, error: Exception
) -> None:
    async def break_off(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        assert on_chunk is not None
        await on_chunk(chunks_of("Hello")[0])
        raise error

    gateway.act = break_off
    answer = await post(client, stream=True)
    *_, last = events(answer.text)
    assert answer.status_code == 200
    assert json.loads(last)["error"]["type"] == "server_error"
    assert "[DONE]" not in answer.text
    assert "secret" not in answer.text


async def test_a_defect_is_said_without_its_inside(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    async def crash(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        raise ValueError("secret inside")

    gateway.act = crash
    answer = await post(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


# --- models and methods -------------------------------------------------------------------------------


async def test_the_models_that_chat_are_listed(client: httpx.AsyncClient) -> None:
    document = (await client.get("/v1/models")).json()
    assert document["object"] == "list"
    assert [each["id"] for each in document["data"]] == ["scripted"]
    assert (await client.get("/v1/models/scripted")).json() == document["data"][0]
    assert (await client.get(f"/v1/models/{MODEL}")).json()["owned_by"] == "campus"


@pytest.mark.parametrize("name", ["local", "gpt-nowhere", "nobody:a/b"])
async def test_a_model_that_does_not_chat_is_not_there(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_other_methods_are_answered_sanely(client: httpx.AsyncClient) -> None:
    options = await client.options("/v1/chat/completions")
    assert (options.status_code, options.headers["allow"]) == (204, "POST, OPTIONS")
    head = await client.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert (await client.get("/v1/chat/completions")).status_code == 405


@pytest.mark.parametrize("size", [0, SMALL_BYTES, 1_000_000])
async def test_a_reply_of_any_size_comes_whole(
    client: httpx.AsyncClient, gateway: ScriptedCompletions, size: int
) -> None:
    async def answer_at_length(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        return a_reply("x" * size)

    gateway.act = answer_at_length
    for _ in range(2):  # over one connection
        answer = await post(client)
        assert answer.json()["choices"][0]["message"]["content"] == "x" * size
        assert int(answer.headers["content-length"]) == len(answer.content)


async def test_chats_are_counted_and_traced_by_their_route_however_they_get_there(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    async def counted() -> float:
        text = (await client.get("/metrics")).text
        sample = 'http_requests_total{method="POST",route="/v1/chat/completions",status="200"} '
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(sample)), 0.0)

    before = await counted()
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await post(client, {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"})
    assert answer.headers["traceparent"].split("-")[1] == trace_id
    assert gateway.requests[-1].trace_id == trace_id
    assert await counted() == before + 1


# --- clients that go ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_only_stops_listening(
    client: httpx.AsyncClient, gateway: ScriptedCompletions, stream: bool
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def take_time(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        began.set()
        await go_on.wait()
        for chunk in chunks_of("word " * 1_000) if on_chunk else ():
            await on_chunk(chunk)
        return a_reply()

    gateway.act = take_time
    asking = asyncio.create_task(post(client, stream=stream))
    await began.wait()
    asking.cancel()
    await asyncio.wait({asking})
    go_on.set()
    while not gateway.ended:
        await asyncio.sleep(0.01)
    assert (await post(client)).status_code == 200


async def test_a_client_that_takes_nothing_is_cut_off_and_its_call_ends(
    client: httpx.AsyncClient, gateway: ScriptedCompletions
) -> None:
    async def pour(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
        assert on_chunk is not None
        for _ in range(2_000):
            await on_chunk([{"index": 0, "delta": {"content": "x" * 10_000}}])
        return a_reply()

    gateway.act = pour
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port, limit=1_000)
    body = json.dumps(HELLO | {"stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: assay\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: {client.headers['authorization']}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await reader.readexactly(100)
    while not gateway.ended:
        await asyncio.sleep(0.01)
    writer.close()

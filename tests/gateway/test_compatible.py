"""The thin client: what it sends, and what it makes of whatever a server answers."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest

from domain.completion import FinishReason, Usage
from domain.errors import ModelRefused, ModelUnavailable, PromptTooLong
from gateway.compatible import CompatibleModel
from gateway.providers import Provider
from tests.gateway.chatting import ASKED, WEATHER, Listener, chat, choice
from tests.gateway.conftest import KEY
from tests.gateway.upstream import Answer
from tests.gateway.wire import Wire, chunked, event, listening, said, whole

USAGE = {"prompt_tokens": 7, "completion_tokens": 2}
DONE = b"data: [DONE]\n\n"
GOOD = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
    "usage": USAGE,
}
FINISHED = [event([said("It is ")]), event([said("warm.")]), event([said("", "stop")])]


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with listening() as server:
        yield server


@pytest.fixture
async def model(wire) -> AsyncIterator[CompatibleModel]:
    opened = CompatibleModel(Provider.compatible("campus", f"{wire.url}/v1", KEY), timeout_seconds=5)
    yield opened
    await opened.close()


ASK = chat("campus:qwen3")


# --- what is sent --------------------------------------------------------------------------------------


async def test_a_chat_goes_out_as_it_came(model, wire):
    wire.answers.append(whole(GOOD))
    parameters = {
        "tools": [WEATHER],
        "temperature": 0,
        "seed": 7,
        "logit_bias": {"50256": -100},
        "unheard_of": [1],
    }
    await model.complete(
        chat("campus:qwen3", *ASKED, {"role": "user", "content": "雨"}, max_tokens=9, **parameters)
    )
    assert wire.requests == [
        {
            "messages": [*ASKED, {"role": "user", "content": "雨"}],
            **parameters,
            "model": "qwen3",
            "max_tokens": 9,
        }
    ]
    assert f"authorization: bearer {KEY}" in wire.heads[0]


async def test_what_a_chat_may_cost_is_not_in_its_parameters(model, wire):
    wire.answers.append(whole(GOOD))
    await model.complete(
        chat("campus:qwen3", max_tokens=9, model="dear", max_completion_tokens=10**6, stream=True)
    )
    assert wire.requests == [{"messages": list(ASKED), "model": "qwen3", "max_tokens": 9}]


async def test_a_streamed_chat_asks_for_its_usage(model, wire):
    wire.answers.append(chunked(*FINISHED, event(usage=USAGE), DONE))
    await model.stream(ASK, Listener())
    assert (wire.requests[0]["stream"], wire.requests[0]["stream_options"]) == (True, {"include_usage": True})


async def test_connections_are_used_again_and_closed(model, wire):
    wire.answers.extend([whole(GOOD)] * 20 + [chunked(*FINISHED, DONE)] * 5)
    await asyncio.gather(*(model.complete(ASK) for _ in range(4)))
    for _ in range(16):
        await model.complete(ASK)
    for _ in range(5):
        await model.stream(ASK, Listener())
    assert wire.connections <= 4
    await model.close()
    async with asyncio.timeout(60):
        while wire.open:
            await asyncio.sleep(0.01)


async def test_a_call_that_finds_no_free_connection_never_left(wire, monkeypatch):
    monkeypatch.setattr("gateway.compatible.MAX_CONNECTIONS", 1)
    monkeypatch.setattr("gateway.compatible.CONNECT_SECONDS", 0.1)
    model = CompatibleModel(Provider.compatible("campus", f"{wire.url}/v1"))
    wire.answers.append(chunked(FINISHED[0], end=False))
    first = asyncio.create_task(model.stream(ASK, Listener()))
    while not wire.requests:
        await asyncio.sleep(0.01)
    with pytest.raises(ModelUnavailable) as caught:
        await model.complete(ASK)
    assert not caught.value.in_doubt
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await model.close()
    assert len(wire.requests) == 1


async def test_no_log_has_a_key_or_what_was_said(model, wire, caplog):
    caplog.set_level(logging.DEBUG)
    wire.answers.extend([whole(GOOD), [None], whole({"error": {"message": KEY}}, status="401 x")])
    await model.complete(ASK)
    for _ in range(2):
        with pytest.raises((ModelUnavailable, ModelRefused)) as caught:
            await model.complete(ASK)
        assert KEY not in repr(caught.value)
    assert KEY not in caplog.text
    assert "Rome" not in caplog.text


async def test_nobody_is_led_elsewhere_with_the_key(model, wire):
    wire.answers.append(
        [f"HTTP/1.1 307 x\r\nlocation: {wire.url}/other\r\ncontent-length: 0\r\n\r\n".encode()]
    )
    with pytest.raises(ModelRefused, match="status 307"):
        await model.complete(ASK)
    assert len(wire.heads) == 1


# --- streamed replies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_streamed_reply_is_the_same_in_any_pieces(model, wire, size):
    text = b": ping\r\n\r\n" + b"".join(FINISHED).replace(b"\n", b"\r\n") + event(usage=USAGE) + DONE
    wire.answers.append(chunked(*(text[at : at + size] for at in range(0, len(text), size))))
    listener = Listener()
    reply = await model.stream(ASK, listener)
    assert listener.chunks == [[said("It is ")], [said("warm.")], [said("", "stop")]]
    assert (reply.text, reply.usage, reply.usage_estimated) == ("It is warm.", Usage(7, 2), False)
    message = {"role": "assistant", "content": "It is warm."}
    assert choice(reply) == {"index": 0, "message": message, "finish_reason": "stop"}


async def test_chunks_are_told_while_the_model_still_writes(model, wire):
    wire.answers.append(chunked(FINISHED[0], end=False))
    heard = asyncio.Event()

    async def listener(choices) -> None:
        heard.set()

    task = asyncio.create_task(model.stream(ASK, listener))
    await asyncio.wait_for(heard.wait(), 60)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "pieces",
    [
        [*chunked(*FINISHED[:2], end=False), None],
        chunked(*FINISHED[:2]),
        chunked(*FINISHED[:2], b'data: {"choices": [{"del'),
        chunked(FINISHED[0], b'data: {"error": {"message": "Ann Smith", "code": 429}}\n\n'),
        chunked(FINISHED[0], b'event: error\ndata: {"message": "Ann Smith"}\n\n'),
        chunked(event([said("a", "stop"), said("b", index=1)])),
        chunked(DONE),
        chunked(),
        [None],
    ],
    ids=[
        "reset",
        "end",
        "half an event",
        "error",
        "named error",
        "one of two",
        "nothing",
        "empty",
        "no answer",
    ],
)
async def test_a_reply_that_is_not_whole_is_in_doubt(model, wire, pieces):
    wire.answers.append(pieces)
    with pytest.raises(ModelUnavailable) as caught:
        await model.stream(ASK, Listener())
    assert caught.value.in_doubt
    assert "Ann Smith" not in str(caught.value)


@pytest.mark.parametrize(
    "pieces",
    [
        [*chunked(*FINISHED, end=False), None],
        chunked(*FINISHED),
        chunked(*FINISHED, b"data: [DONE]"),
        chunked(*FINISHED, event(usage={"prompt_tokens": "many"}), DONE),
        chunked(*FINISHED[:2], DONE),
        chunked(*FINISHED, DONE, b"data: what comes now is nobody's\n\n"),
    ],
    ids=["reset at the end", "no [DONE]", "no empty line", "no usage", "no reason", "more after it"],
)
async def test_a_whole_reply_without_its_count_is_estimated(model, wire, pieces):
    wire.answers.append(pieces)
    reply = await model.stream(ASK, Listener())
    assert (reply.text, reply.finish_reason, reply.usage_estimated) == (
        "It is warm.",
        FinishReason.STOP,
        True,
    )
    assert reply.usage.tokens_in >= len(json.dumps(wire.requests[0], separators=(",", ":")))
    assert reply.usage.tokens_out == 50


async def test_an_error_in_place_of_a_reply_is_a_refusal(model, wire):
    error = {"error": {"message": "slow down", "code": 429, "type": "rate_limit"}}
    wire.answers.extend([whole(error), chunked(b"data: " + json.dumps(error).encode() + b"\n\n")])
    for ask in (model.complete, lambda asked: model.stream(asked, Listener())):
        with pytest.raises(ModelUnavailable, match=r"status 429, rate_limit\)") as caught:
            await ask(ASK)
        assert not caught.value.in_doubt


async def test_a_server_that_does_not_stream_is_told_at_once(model, wire):
    wire.answers.append(whole(GOOD))
    listener = Listener()
    reply = await model.stream(ASK, listener)
    assert (reply.text, listener.text, listener.finished) == ("Hi.", "Hi.", ["stop"])
    assert reply.usage == Usage(7, 2)


# --- tools ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["campus", "anthropic"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_of_a_tool_comes_back_as_openai_has_it(named, upstream, name, streamed):
    upstream.will(Answer(text="", tool='{"city": "Rome"}'))
    asked = chat({"campus": "campus:qwen3", "anthropic": "anthropic:claude-of-tests"}[name], tools=[WEATHER])
    listener = Listener()
    reply = await (named[name].stream(asked, listener) if streamed else named[name].complete(asked))
    only = choice(reply)
    (call,) = only["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert call["id"]
    assert only["message"]["content"] is None
    assert only["finish_reason"] == "tool_calls"
    if streamed:
        calls = [
            call
            for chunk in listener.chunks
            for each in chunk
            for call in each["delta"].get("tool_calls", ())
        ]
        assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Rome"}
        assert {call["index"] for call in calls} == {0}
        assert listener.finished == ["tool_calls"]


# --- plain replies -------------------------------------------------------------------------------------


async def test_choices_are_answered_as_they_came(model, wire):
    more = GOOD["choices"] + [
        {"index": 1, "message": {"content": "Ho."}, "finish_reason": "length", "odd": 1}
    ]
    wire.answers.append(whole(GOOD | {"choices": more}))
    reply = await model.complete(chat("campus:qwen3", n=2))
    assert json.loads(reply.choices) == more
    assert (reply.text, reply.finish_reason) == ("Hi.", FinishReason.STOP)


@pytest.mark.parametrize(
    "pieces",
    [
        whole(b"not json"),
        whole({"choices": []}),
        whole({"choices": "none"}),
        whole({}),
        whole(b"[]"),
        whole(b'{"choices": [{"message": {"content": "\\u0000", "x": ' + b"[" * 700 + b"]" * 700 + b"}}]}"),
        [whole(GOOD)[0][:-5], None],
        [b"not even HTTP\r\n\r\n", None],
        [None],
    ],
    ids=["no JSON", "no choices", "odd choices", "nothing", "a list", "deep", "cut", "no HTTP", "no answer"],
)
async def test_an_answer_that_is_no_reply_is_in_doubt(model, wire, pieces):
    wire.answers.append(pieces)
    with pytest.raises(ModelUnavailable) as caught:
        await model.complete(ASK)
    assert caught.value.in_doubt


async def test_a_page_is_a_wrong_address(model, wire):
    wire.answers.append(whole(b"<html>", kind="text/html; charset=utf-8"))
    with pytest.raises(ModelRefused, match="a page; is its address one up to `/v1`"):
        await model.complete(ASK)


async def test_a_reply_without_end_is_given_up(model, wire, monkeypatch):
    monkeypatch.setattr("gateway.compatible.MAX_REPLY_BYTES", 1_000)
    monkeypatch.setattr("gateway.compatible.MAX_STREAM_BYTES", 1_000)
    wire.answers.extend([whole(b" " * 2_000), chunked(*[event([said("x" * 500)])] * 4)])
    for ask in (model.complete, lambda asked: model.stream(asked, Listener())):
        with pytest.raises(ModelUnavailable, match="more than") as caught:
            await ask(ASK)
        assert caught.value.in_doubt


async def test_a_server_that_says_nothing_is_given_up_in_doubt(wire):
    model = CompatibleModel(Provider.compatible("campus", f"{wire.url}/v1"), timeout_seconds=0.2)
    wire.answers.extend([[b"HTTP/1.1 200 OK\r\n"], chunked(FINISHED[0], end=False)])
    for ask in (model.complete, lambda asked: model.stream(asked, Listener())):
        with pytest.raises(ModelUnavailable, match="did not answer in time") as caught:
            await ask(ASK)
        assert caught.value.in_doubt
    await model.close()


async def test_a_refusal_is_read_even_if_its_body_is_not(model, wire):
    wire.answers.extend(
        [
            [b"HTTP/1.1 503 x\r\nretry-after: 3\r\ncontent-length: 99\r\n\r\nhalf", None],
            whole(b"the maximum context length is 8 tokens", status="400 x", kind="text/plain"),
        ]
    )
    with pytest.raises(ModelUnavailable) as caught:
        await model.complete(ASK)
    assert (caught.value.in_doubt, caught.value.retry_after_seconds) == (False, 3.0)
    with pytest.raises(PromptTooLong):
        await model.complete(ASK)


async def test_an_address_that_is_none_is_refused():
    model = CompatibleModel(Provider.compatible("campus", "http://[nowhere/v1"))
    with pytest.raises(ModelRefused):
        await model.complete(ASK)
    await model.close()

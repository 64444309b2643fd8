"""Chats over LangChain: what is passed on arrives, and what cannot be is refused by its name."""

import json

import pytest

from domain.completion import FinishReason, Usage
from domain.errors import ModelRefused, ModelUnavailable
from tests.gateway.chatting import WEATHER, Listener, chat, choice
from tests.gateway.upstream import Answer

CLAUDE = "anthropic:claude-of-tests"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


async def test_messages_and_parameters_arrive_in_the_providers_words(anthropic, upstream):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    await anthropic.complete(
        chat(
            CLAUDE,
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Where is this?"}, picture]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "31 degrees"},
            max_tokens=9,
            temperature=0.5,
            top_p=0.9,
            stop="END",
            tools=[WEATHER],
            tool_choice="required",
            user="somebody",
            n=1,
            seed=None,
        )
    )
    body = upstream.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == (
        "claude-of-tests", 9, 0.5, 0.9,
    )  # fmt: skip
    assert (body["stop_sequences"], body["tool_choice"]["type"]) == (["END"], "any")
    assert [each["name"] for each in body["tools"]] == ["weather"]
    assert "somebody" not in json.dumps(body)
    assert body["system"] == "Be short."
    said, called, result = body["messages"]
    assert [part["type"] for part in said["content"]] == ["text", "image"]
    assert called["content"][-1]["input"] == {"city": "Rome"}
    assert result["content"][0]["tool_use_id"] == "call_1"


@pytest.mark.parametrize(
    ("stated", "sent"),
    [
        ("auto", None),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
    ],
)
async def test_a_choice_among_tools_is_passed_on(anthropic, upstream, stated, sent):
    await anthropic.complete(chat(CLAUDE, tools=[WEATHER], tool_choice=stated))
    assert upstream.bodies[0].get("tool_choice") == sent


async def test_no_tool_is_offered_that_must_not_be_called(anthropic, upstream):
    await anthropic.complete(chat(CLAUDE, tools=[WEATHER], tool_choice="none"))
    assert "tools" not in upstream.bodies[0]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("finish", "reason"), [("", "stop"), ("max_tokens", "length"), ("refusal", "content_filter")]
)
async def test_a_schema_is_asked_for_and_the_reply_left_as_it_is(
    anthropic, upstream, streamed, finish, reason
):
    upstream.will(Answer(text='{"city": "Ro', finish=finish))
    asked, listener = chat(CLAUDE, response_format=FORMAT), Listener()
    reply = await (anthropic.stream(asked, listener) if streamed else anthropic.complete(asked))
    assert upstream.bodies[0]["output_config"]["format"]["schema"]["properties"] == SCHEMA["properties"]
    assert (reply.text, choice(reply)["finish_reason"]) == ('{"city": "Ro', reason)
    if streamed:
        assert (listener.text, listener.finished) == (reply.text, [reason])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2), ("logprobs", True), ("seed", 7), ("presence_penalty", 0.5), ("logit_bias", {"1": 5}),
        ("response_format", {"type": "json_object"}), ("response_format", FORMAT | {"json_schema": {}}),
        ("tool_choice", {"type": "custom"}), ("modalities", ["audio"]), ("unheard_of", 1),
    ],
)  # fmt: skip
async def test_what_cannot_be_passed_on_is_refused_by_its_name(anthropic, upstream, name, value):
    with pytest.raises(ModelRefused, match=name) as caught:
        await anthropic.complete(chat(CLAUDE, **{name: value}))
    assert caught.value.field == name
    assert not upstream.bodies


async def test_tools_and_a_schema_at_once_are_refused(anthropic):
    with pytest.raises(ModelRefused, match="either tools or a response_format"):
        await anthropic.complete(chat(CLAUDE, tools=[WEATHER], response_format=FORMAT))


@pytest.mark.parametrize(
    "message", [{"role": "wizard", "content": "Ann"}, {"content": "Ann"}, {"role": "tool", "content": "Ann"}]
)
async def test_messages_that_are_none_are_refused_without_being_quoted(anthropic, upstream, message):
    with pytest.raises(ModelRefused, match="messages") as caught:
        await anthropic.complete(chat(CLAUDE, message))
    assert "Ann" not in str(caught.value)
    assert not upstream.bodies


async def test_text_and_a_call_are_told_in_order(anthropic, upstream):
    upstream.will(Answer(text="I look it up.", tool='{"city": "Rome"}'))
    listener = Listener()
    reply = await anthropic.stream(chat(CLAUDE, tools=[WEATHER]), listener)
    deltas = [each["delta"] for chunk in listener.chunks for each in chunk]
    assert deltas[0]["role"] == "assistant"
    assert sum("role" in delta for delta in deltas) == 1
    (first, *rest) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert (first["index"], first["id"], first["function"]["name"]) == (0, "toolu_1", "weather")
    assert all(call["index"] == 0 and "id" not in call for call in rest)
    assert reply.text == listener.text == "I look it up."
    assert reply.usage == Usage(700, 90, 512)


async def test_a_stream_that_ends_as_if_it_were_whole_is_in_doubt(anthropic, upstream):
    """Anthropic's client takes the end of the connection for the end of the reply."""
    upstream.will(Answer(text="a b c d e f", cut="end"))
    with pytest.raises(ModelUnavailable, match="broke off its reply") as caught:
        await anthropic.stream(chat(CLAUDE), Listener())
    assert caught.value.in_doubt


async def test_an_error_in_the_middle_of_a_stream_is_in_doubt(anthropic, upstream):
    upstream.will(
        Answer(text="a b c d e f", cut="error", error={"type": "overloaded_error", "message": "Ann"})
    )
    with pytest.raises(ModelUnavailable, match="overloaded_error") as caught:
        await anthropic.stream(chat(CLAUDE), Listener())
    assert caught.value.in_doubt
    assert "Ann" not in str(caught.value)


async def test_a_chat_over_a_client_made_of_openais(derived, upstream):
    upstream.will(Answer(text="Hi there.", usage=False))
    listener = Listener()
    reply = await derived.stream(chat("openai:gpt-4o"), listener)
    assert (reply.text, listener.text, reply.finish_reason) == ("Hi there.", "Hi there.", FinishReason.STOP)
    assert reply.usage_estimated
    assert reply.usage.tokens_in >= len("Be short.Is it warm in Rome now?")
    assert 9 <= reply.usage.tokens_out <= 50

"""Replies gathered from chunks are what the official client makes of them; counts are believed with care."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from domain.completion import FinishReason, Usage
from gateway.replies import (
    MOST_TOKENS,
    Gathering,
    are_choices,
    as_chunk,
    estimated_usage,
    from_json,
    reason_of,
    stated_usage,
    text_of,
    to_json,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TOKEN = st.fixed_dictionaries(
    {"token": TEXT, "logprob": st.floats(-9, 0), "bytes": st.none(), "top_logprobs": st.just([])}
)


@st.composite
def chunks(draw) -> list[list[dict[str, Any]]]:
    """The choices of chunks, those of each choice in order."""
    told = []
    for index in range(draw(st.integers(1, 3))):
        mine = [{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
        for text in draw(st.lists(TEXT, max_size=4)):
            kind = draw(st.sampled_from(["content", "refusal"]))
            logprobs = {"content": draw(st.lists(TOKEN, max_size=2)), "refusal": None}
            mine.append({"index": index, "delta": {kind: text}, "logprobs": logprobs, "finish_reason": None})
        for number in range(draw(st.integers(0, 2))):
            for part, piece in enumerate(draw(st.lists(TEXT, min_size=1, max_size=3))):
                call: dict[str, Any] = {"index": number, "function": {"arguments": piece}}
                if not part:
                    call |= {"id": f"call_{number}", "type": "function"}
                    call["function"]["name"] = "weather"
                mine.append({"index": index, "delta": {"tool_calls": [call]}, "finish_reason": None})
        mine.append({"index": index, "delta": {}, "finish_reason": "stop"})
        told.append([[each] for each in mine])
    # the official client takes choices that begin in order only
    begun = list(range(len(told)))
    order = draw(st.permutations([index for index, mine in enumerate(told) for _ in mine[1:]]))
    queues = [iter(mine) for mine in told]
    return [next(queues[index]) for index in begun + order]


@given(chunks())
def test_a_gathered_reply_is_what_the_official_client_makes_of_its_chunks(told):
    gathering, state = Gathering(), ChatCompletionStreamState()
    for choices in told:
        gathering.add(choices)
        document = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": choices,
        }
        state.handle_chunk(ChatCompletionChunk.model_validate(document))
    assert gathering.ended
    snapshot = sorted(state.current_completion_snapshot.choices, key=lambda each: each.index)
    for ours, theirs in zip(gathering.choices(), snapshot, strict=True):
        assert ours["index"] == theirs.index
        assert ours["finish_reason"] == theirs.finish_reason
        assert ours["message"]["content"] == theirs.message.content
        assert ours["message"].get("refusal") == theirs.message.refusal
        calls = [
            (each.id, each.function.name, each.function.arguments) for each in theirs.message.tool_calls or []
        ]
        mine = ours["message"].get("tool_calls", [])
        assert [
            (each["id"], each["function"]["name"], each["function"]["arguments"]) for each in mine
        ] == calls
        tokens = [each.token for each in (theirs.logprobs.content or [])] if theirs.logprobs else []
        assert [each["token"] for each in (ours.get("logprobs") or {}).get("content") or []] == tokens


WORDS = st.sampled_from(
    ["content", "tool_calls", "function", "index", "id", "message", "finish_reason", "refusal", "x"]
)
ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)
ANY_CHOICE = st.fixed_dictionaries(
    {}, optional={"index": ANY_JSON, "delta": ANY_JSON, "finish_reason": ANY_JSON, "x": ANY_JSON}
)


@given(st.lists(st.lists(ANY_CHOICE, max_size=2), max_size=4), ANY_JSON)
def test_no_server_can_tell_what_cannot_be_gathered(told, stated):
    gathering = Gathering()
    for choices in told:
        gathering.add(choices)
    choices = gathering.choices()
    assert are_choices(choices) == bool(choices)
    assert json.loads(to_json(choices)) == choices
    text_of(choices)
    as_chunk(choices)
    if choices:
        reason_of(choices)
    stated_usage(stated, wrote=True)


def test_what_only_some_servers_tell_is_gathered_too():
    gathering = Gathering()
    for delta in (
        {"role": "", "content": None, "reasoning_content": "Let me "},
        {"reasoning_content": "think."},
    ):
        gathering.add([{"index": 0, "delta": {"role": "assistant"} | delta, "finish_reason": ""}])
    assert not gathering.ended
    gathering.add([{"delta": {"content": "4"}, "finish_reason": "length", "stop_reason": 7}])
    assert gathering.choices() == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "4", "reasoning_content": "Let me think."},
            "finish_reason": "length",
            "stop_reason": 7,
        }
    ]


def test_whole_choices_told_at_once_are_gathered_to_the_same():
    function = {"name": "weather", "arguments": "{}"}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    gathering = Gathering()
    gathering.add(as_chunk(choices))
    assert gathering.choices() == choices


@pytest.mark.parametrize(
    "stated",
    [
        None, "7", [], {}, {"prompt_tokens": 7}, {"prompt_tokens": 7, "completion_tokens": -1},
        {"prompt_tokens": "7", "completion_tokens": 1}, {"prompt_tokens": 7.5, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1}, {"prompt_tokens": 0, "completion_tokens": 1},
        {"prompt_tokens": 7, "completion_tokens": MOST_TOKENS + 1},
        {"prompt_tokens": 7, "completion_tokens": 0},
    ],
)  # fmt: skip
def test_a_count_that_cannot_be_is_none(stated):
    assert stated_usage(stated, wrote=True) is None


@pytest.mark.parametrize(
    ("details", "cached"), [({"cached_tokens": 5}, 5), ({"cached_tokens": 8}, 0), (None, 0), ("x", 0)]
)
def test_cached_tokens_are_part_of_those_that_were_read(details, cached):
    stated = {"prompt_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": details}
    assert stated_usage(stated, wrote=False) == Usage(7, 0, cached)


def test_an_estimate_is_in_bytes_and_within_the_limit():
    assert estimated_usage("雨", "é", most_out=50) == Usage(3, 2)
    assert estimated_usage(b"abc", "x" * 60, most_out=50) == Usage(3, 50)


def test_json_that_nobody_could_store_or_send_is_mended():
    value = from_json(b'{"a": ["\\ud800", "x\\u0000"], "b": NaN, "c": "\\\\u0000 \\ud83d\\ude00"}')
    assert value == {"a": ["?", "x\ufffd"], "b": None, "c": "\\u0000 😀"}
    assert json.loads(to_json({"a": "\ud800"})) == {"a": "\ud800"}
    for broken in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError):  # noqa: PT011  # of what kind is the decoder's affair
            from_json(broken)


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ("a", "a"), ([{"text": "a"}, {"image": 1}, {"text": "b"}], "ab"), (7, "")],
)
def test_the_text_is_the_first_choices(content, text):
    assert text_of([{"message": {"content": content}}, {"message": {"content": "other"}}]) == text


def test_a_model_that_refuses_withholds_its_reply():
    choice = {"message": {"refusal": "No."}, "finish_reason": "stop"}
    assert reason_of([choice]) is FinishReason.FILTERED

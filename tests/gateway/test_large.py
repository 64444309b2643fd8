"""Large models over the real wire: the providers' own clients against a scripted upstream."""

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agents.grading.rendering import reply_schema
from domain.completion import CompletionRequest, FinishReason, Message, Usage
from domain.errors import (
    ModelAccessDenied,
    ModelRefused,
    ModelUnavailable,
    PromptTooLong,
    UnknownModel,
)
from domain.exam import Criterion, Question, QuestionType
from domain.identity import LogicalStep
from gateway.compatible import CompatibleModel
from gateway.large import LangChainModel
from gateway.providers import Provider
from tests.gateway.conftest import KEY
from tests.gateway.upstream import GOOD, Answer

ROOT = Path(__file__).parents[2]
ANSWER = "Because it rains. My name is Ann Smith."
QUESTION = Question(
    "q1", QuestionType.ESSAY, "Why?", 3.0, (Criterion("c1", 2.0, "One."), Criterion("c2", 1.0, "Two."))
)


def request(model: str, **changes) -> CompletionRequest:
    fields = {
        "messages": (Message("system", "Mark."), Message("user", ANSWER)),
        "schema": reply_schema(QUESTION),
        **changes,
    }
    return CompletionRequest(
        LogicalStep("f", 1, "q1", "all", "first"), 1, model, QUESTION, ANSWER, max_tokens=700, **fields
    )


async def test_a_compatible_server_is_asked_with_schema_key_and_limit(campus, upstream):
    reply = await campus.complete(request("campus:qwen3"))
    assert json.loads(reply.text) == GOOD
    assert (reply.model, reply.finish_reason, reply.advisory) == ("campus:qwen3", FinishReason.STOP, False)
    assert reply.usage == Usage(tokens_in=700, tokens_out=90, tokens_cached=512)
    (body,), (headers,) = upstream.bodies, upstream.headers
    assert (body["model"], body["max_tokens"]) == ("qwen3", 700)
    assert "max_completion_tokens" not in body
    assert [each["role"] for each in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == ANSWER
    asked = body["response_format"]["json_schema"]
    assert asked["strict"] is True
    assert asked["schema"]["properties"] == reply_schema(QUESTION)["properties"]
    assert headers["authorization"] == f"Bearer {KEY}"


async def test_a_compatible_server_without_a_key_gets_no_other_providers_key(upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-provider")
    model = CompatibleModel(Provider.compatible("campus", f"{upstream.url}/v1"))
    await model.complete(request("campus:qwen3"))
    await model.close()
    assert "authorization" not in upstream.headers[0]


async def test_without_structured_output_the_prompt_alone_asks_for_json(upstream):
    provider = Provider.compatible("campus", f"{upstream.url}/v1", structured_output=False)
    model = CompatibleModel(provider, temperature=0.5)
    reply = await model.complete(request("campus:qwen3"))
    await model.close()
    assert json.loads(reply.text) == GOOD
    assert "response_format" not in upstream.bodies[0]
    assert upstream.bodies[0]["temperature"] == 0.5


async def test_openai_is_asked_by_its_own_names(openai, upstream):
    reply = await openai.complete(request("openai:gpt-4o"))
    assert json.loads(reply.text) == GOOD
    assert (upstream.bodies[0]["model"], upstream.bodies[0]["max_completion_tokens"]) == ("gpt-4o", 700)
    assert not {"temperature", "max_tokens"} & upstream.bodies[0].keys()
    assert upstream.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_anthropic_is_asked_with_a_schema_and_a_cached_system_prompt(anthropic, upstream):
    reply = await anthropic.complete(request("anthropic:claude-of-tests"))
    assert json.loads(reply.text) == GOOD
    assert reply.usage == Usage(tokens_in=700, tokens_out=90, tokens_cached=512)
    (body,), (headers,) = upstream.bodies, upstream.headers
    assert (body["model"], body["max_tokens"]) == ("claude-of-tests", 700)
    assert body["system"] == [{"type": "text", "text": "Mark.", "cache_control": {"type": "ephemeral"}}]
    assert body["output_config"]["format"]["type"] == "json_schema"
    # in which header is the client's affair
    assert KEY in str(headers)


@pytest.mark.parametrize(
    ("upstream_name", "model", "finish", "reason"),
    [
        ("campus", "campus:qwen3", "length", FinishReason.LENGTH),
        ("campus", "campus:qwen3", "content_filter", FinishReason.FILTERED),
        ("openai", "openai:gpt-4o", "length", FinishReason.LENGTH),
        ("derived", "openai:gpt-4o", "length", FinishReason.LENGTH),
        ("derived", "openai:gpt-4o", "content_filter", FinishReason.FILTERED),
        ("anthropic", "anthropic:claude-of-tests", "max_tokens", FinishReason.LENGTH),
        ("anthropic", "anthropic:claude-of-tests", "refusal", FinishReason.FILTERED),
        ("anthropic", "anthropic:claude-of-tests", "model_context_window_exceeded", FinishReason.LENGTH),
    ],
)
async def test_a_reply_cut_in_the_middle_of_json_comes_back_with_its_cost(
    named, upstream, upstream_name, model, finish, reason
):
    upstream.will(Answer(text='{"criteria": [{"crit', finish=finish))
    reply = await named[upstream_name].complete(request(model))
    assert (reply.text, reply.finish_reason) == ('{"criteria": [{"crit', reason)
    assert reply.usage == Usage(tokens_in=700, tokens_out=90, tokens_cached=512)


async def test_a_refusal_of_the_model_is_a_filtered_reply(campus, upstream):
    upstream.will(Answer(text="", refusal="I cannot do that."))
    assert (await campus.complete(request("campus:qwen3"))).finish_reason is FinishReason.FILTERED


async def test_a_reply_whose_tokens_nobody_counted_is_never_counted_short(campus, upstream):
    upstream.will(Answer(text="é" * 30, usage=False), Answer(text="é" * 3_000, usage=False))
    reply, long = [await campus.complete(request("campus:qwen3")) for _ in range(2)]
    assert reply.usage_estimated
    assert reply.usage.tokens_in >= len(json.dumps(upstream.bodies[0], separators=(",", ":")))
    # a token has at least a byte, and a reply at most as many tokens as it may
    assert 60 <= reply.usage.tokens_out < 300
    assert long.usage.tokens_out == 700


@pytest.mark.parametrize(
    ("answer", "condition", "retry_after"),
    [
        (Answer(status=429, headers={"retry-after": "7"}), ModelUnavailable, 7.0),
        (Answer(status=429, headers={"retry-after-ms": "1500"}), ModelUnavailable, 1.5),
        (Answer(status=429, headers={"retry-after": "99999"}), ModelUnavailable, 600.0),
        (
            Answer(status=429, headers={"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}),
            ModelUnavailable,
            600.0,
        ),
        (Answer(status=429, headers={"retry-after": "soon"}), ModelUnavailable, 1.0),
        (Answer(status=503), ModelUnavailable, 1.0),
        (Answer(status=529), ModelUnavailable, 1.0),
        (Answer(status=401), ModelAccessDenied, None),
        (Answer(status=403), ModelAccessDenied, None),
        (Answer(status=404), UnknownModel, None),
        (Answer(status=400), ModelRefused, None),
        (Answer(status=422), ModelRefused, None),
        (Answer(status=413), PromptTooLong, None),
    ],
)
@pytest.mark.parametrize(
    ("upstream_name", "model"), [("campus", "campus:qwen3"), ("anthropic", "anthropic:claude-of-tests")]
)
async def test_a_providers_refusal_is_a_condition_of_ours_that_tells_nothing_secret(
    named, upstream, upstream_name, model, answer, condition, retry_after
):
    # providers' messages quote keys and inputs
    error = {"type": "invalid_request_error", "message": f"bad {KEY} {ANSWER}", "code": None}
    upstream.will(replace(answer, error=error))
    with pytest.raises(condition) as caught:
        await named[upstream_name].complete(request(model))
    assert type(caught.value) is condition
    assert caught.value.retry_after_seconds == retry_after
    assert model in caught.value.message
    assert KEY not in str(caught.value)
    assert "Ann Smith" not in str(caught.value)
    assert len(upstream.bodies) == 1, "retries are the caller's"


async def test_a_denied_key_names_its_setting(openai, upstream):
    upstream.will(Answer(status=401))
    with pytest.raises(ModelAccessDenied, match="check ASSAY_MODELS__OPENAI_API_KEY or OPENAI_API_KEY"):
        await openai.complete(request("openai:gpt-4o"))


async def test_a_server_that_refuses_schemas_is_told_what_to_turn_off(campus, upstream):
    upstream.will(Answer(status=400, error={"message": "no", "param": "response_format"}))
    with pytest.raises(ModelRefused, match=r"status 400, response_format\).*structured_output off"):
        await campus.complete(request("campus:qwen3"))


@pytest.mark.parametrize(
    ("upstream_name", "model", "error"),
    [
        ("campus", "campus:qwen3", {"message": "too long", "code": "context_length_exceeded"}),
        (
            "campus",
            "campus:qwen3",
            {"message": "This model's maximum context length is 8 tokens. However, …"},
        ),
        ("campus", "campus:qwen3", {"message": "no", "type": "exceed_context_size_error", "code": 400}),
        ("anthropic", "anthropic:claude-of-tests", {"message": "prompt is too long: 9 tokens > 8 maximum"}),
    ],
)
async def test_more_than_the_model_can_read_is_a_limit(named, upstream, upstream_name, model, error):
    upstream.will(Answer(status=400, error=error))
    with pytest.raises(PromptTooLong):
        await named[upstream_name].complete(request(model))


async def test_a_server_that_hangs_is_given_up_and_the_call_is_in_doubt(anthropic, upstream):
    upstream.will(Answer(delay_seconds=1))
    model = LangChainModel(Provider("anthropic", "the key", api_key=KEY), timeout_seconds=0.2)
    with pytest.raises(ModelUnavailable) as caught:
        await model.complete(request("anthropic:claude-of-tests"))
    assert caught.value.in_doubt


async def test_a_provider_whose_package_is_missing_is_a_coded_refusal():
    model = LangChainModel(Provider("groq", "the key"))
    with pytest.raises(ModelRefused, match=r"groq:llama.*ImportError"):
        await model.complete(request("groq:llama"))


async def test_nobody_is_sent_a_trace(derived, upstream, monkeypatch):
    """LangSmith's variables would send every prompt to its server, which is ours here."""
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "x")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", upstream.url)
    from langchain_core.tracers.langchain import wait_for_all_tracers
    from langsmith.utils import get_env_var, tracing_is_enabled

    get_env_var.cache_clear()
    assert tracing_is_enabled()
    await derived.complete(request("openai:gpt-4o"))
    await asyncio.to_thread(wait_for_all_tracers)
    monkeypatch.undo()
    get_env_var.cache_clear()
    assert upstream.paths == ["/v1/chat/completions"]


def test_importing_the_gateway_imports_no_client():
    code = (
        "import sys, gateway.compatible, gateway.directory, gateway.large, gateway.providers;"
        "slow = {'aiohttp', 'langchain', 'langchain_core',"
        " 'openai', 'anthropic', 'langsmith', 'httpx', 'tiktoken'};"
        "sys.exit(', '.join(slow & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

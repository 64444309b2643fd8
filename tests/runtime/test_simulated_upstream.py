"""The simulated upstream: what clients of OpenAI's protocol get from it, and every fault on the real wire."""

import asyncio
import hashlib
import json
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from pydantic import BaseModel

from domain.errors import InvalidInput
from runtime.simulated_upstream import Behaviour, Fault, Latency, SimulatedUpstream, stated_behaviour
from tests.river.installation import ASSAY

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture
async def upstream() -> AsyncIterator[SimulatedUpstream]:
    """One that answers well, unless it is told otherwise."""
    async with SimulatedUpstream(seed=1).serving() as serving:
        yield serving


@pytest.fixture
async def http(upstream: SimulatedUpstream) -> AsyncIterator[httpx.AsyncClient]:
    """A plain client of it."""
    async with httpx.AsyncClient(base_url=upstream.url, timeout=5) as client:
        yield client


@pytest.fixture
async def client(upstream: SimulatedUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client of it, as it comes."""
    async with openai.AsyncOpenAI(base_url=f"{upstream.url}/v1", api_key="none", timeout=5) as made:
        yield made


async def asked(http: httpx.AsyncClient, **changes: object) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=CHAT | changes)


# --- when all is well -------------------------------------------------------------------------------------


async def test_the_official_client_gets_a_reply_with_usage_and_a_limit_that_is_kept(client, upstream) -> None:
    reply = await client.chat.completions.create(**CHAT)
    (choice,) = reply.choices
    assert choice.message.content.startswith("Simulated reply 1:")
    assert (choice.finish_reason, reply.model) == ("stop", "m")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (6, 16)
    short = await client.chat.completions.create(**CHAT, max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    assert [each.id async for each in client.models.list()] == ["simulated"]


async def test_a_stream_says_the_same_and_its_usage_only_when_asked(client) -> None:
    async def streamed(**options: object) -> tuple[str, list[object]]:
        chunks = [each async for each in await client.chat.completions.create(**CHAT, stream=True, **options)]
        text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
        return text, [each.usage.completion_tokens for each in chunks if each.usage]

    assert await streamed() == ("Simulated reply 1: " + " ".join(["word"] * 16), [])
    text, usage = await streamed(stream_options={"include_usage": True})
    assert (text.startswith("Simulated reply 2:"), usage) == (True, [16])


async def test_a_schema_and_a_tool_that_are_asked_for_are_kept(client) -> None:
    class Step(BaseModel):
        explanation: str
        points: int

    class Marks(BaseModel):
        steps: list[Step]
        sure: bool

    parsed = await client.chat.completions.parse(**CHAT, response_format=Marks)
    assert parsed.choices[0].message.parsed == Marks(
        steps=[Step(explanation="simulated", points=0)], sure=False
    )
    function = {"name": "mark", "parameters": Marks.model_json_schema()}
    called = await client.chat.completions.create(
        **CHAT, tools=[{"type": "function", "function": function}], tool_choice="required"
    )
    (call,) = called.choices[0].message.tool_calls
    assert (call.function.name, called.choices[0].finish_reason) == ("mark", "tool_calls")
    Marks.model_validate_json(call.function.arguments)


async def test_the_statistics_tell_calls_apart_by_path_model_and_body(http) -> None:
    for content in (CHAT, CHAT, CHAT | {"model": "other"}):
        await http.post("/v1/chat/completions", json=content)
    body = http.build_request("POST", "/", json=CHAT).content
    found = (await http.get("/simulation/stats")).json()
    assert (found["calls"], found["worked"], found["answered"], found["underway"]) == (3, 3, 3, 0)
    assert found["paths"] == {"/v1/chat/completions": 3}
    assert found["models"] == {"m": 2, "other": 1}
    assert found["bodies"][hashlib.sha256(body).hexdigest()] == 2
    assert (await http.delete("/simulation/stats")).json()["calls"] == 0
    assert (await http.get("/simulation/stats")).json()["bodies"] == {}


async def test_the_behaviour_changes_while_it_runs_for_all_models_or_for_one(http) -> None:
    refusing = {"faults": {"unavailable": 1}}
    (await http.put("/simulation/behaviour/bad%2Fmodel", json=refusing)).raise_for_status()
    assert (await asked(http, model="bad/model")).status_code == 503
    assert (await asked(http)).status_code == 200
    (await http.put("/simulation/behaviour", json={"text": "Yes."})).raise_for_status()
    assert (await asked(http)).json()["choices"][0]["message"]["content"] == "Yes."
    assert [each["id"] for each in (await http.get("/v1/models")).json()["data"]] == ["bad/model"]
    wrong = await http.put("/simulation/behaviour", json={"faults": {"unheard_of": 1}})
    assert wrong.status_code == 422
    assert (await asked(http)).status_code == 200


async def test_what_is_no_chat_is_refused_and_not_counted(http) -> None:
    for body in (b"no json", b"[]", b'{"messages": 1}'):
        assert (await http.post("/v1/chat/completions", content=body)).status_code == 400
    assert (await http.get("/v1/embeddings")).status_code == 404
    assert (await http.get("/simulation/stats")).json()["calls"] == 0


# --- when it is not ---------------------------------------------------------------------------------------


def behave(upstream: SimulatedUpstream, *faults: Fault, **others: object) -> None:
    upstream.behave(Behaviour.model_validate({"sequence": faults, "hang_seconds": 0.2, **others}))


async def test_refusals_have_their_status_and_429_says_when_to_come_again(http, upstream) -> None:
    behave(upstream, Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.UNAVAILABLE, retry_after_seconds=1.25)
    first, *others = [await asked(http) for _ in range(4)]
    assert (first.status_code, first.headers["retry-after"], first.headers["retry-after-ms"]) == (
        429,
        "2",
        "1250",
    )
    assert [each.status_code for each in others] == [500, 503, 200]
    assert first.json()["error"]["code"] == "rate_limited"
    assert upstream.statistics.worked == 1


async def test_the_official_client_retries_what_it_is_refused(client, upstream) -> None:
    behave(upstream, Fault.RATE_LIMITED, Fault.RATE_LIMITED, retry_after_seconds=0.01)
    reply = await client.chat.completions.create(**CHAT)
    assert reply.choices[0].message.content.startswith("Simulated reply 3:")
    assert upstream.statistics.faults == {"rate_limited": 2, "none": 1}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("fault", "worked"),
    [
        (Fault.CUT_BEFORE, 0),
        (Fault.HANGING, 0),
        (Fault.CUT_AFTER, 1),
        (Fault.TRUNCATED, 1),
    ],
)
async def test_a_connection_is_cut(http, upstream, fault: Fault, worked: int, stream: bool) -> None:
    behave(upstream, fault)
    with pytest.raises(httpx.TransportError):
        await asked(http, stream=stream)
    assert (upstream.statistics.worked, upstream.statistics.answered) == (worked, 0)
    assert (await asked(http)).status_code == 200
    assert upstream.statistics.underway == 0


async def test_a_stream_ends_in_order_without_its_end(http, upstream) -> None:
    behave(upstream, Fault.ENDS_EARLY)
    cut = await asked(http, stream=True)
    assert cut.status_code == 200
    assert "[DONE]" not in cut.text
    assert 'finish_reason": "stop' not in cut.text
    assert (await asked(http, stream=True)).text.endswith("data: [DONE]\n\n")


async def test_usage_is_wrong_in_three_ways(http, upstream) -> None:
    behave(upstream, Fault.USAGE_MISSING, Fault.USAGE_NEGATIVE, Fault.USAGE_ABSURD)
    missing, negative, absurd = [(await asked(http)).json() for _ in range(3)]
    assert "usage" not in missing
    assert negative["usage"]["completion_tokens"] == -16
    assert absurd["usage"]["prompt_tokens"] == 10**15


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_reply_is_no_json(http, upstream, stream: bool) -> None:
    behave(upstream, Fault.INVALID_JSON)
    reply = await asked(http, stream=stream)
    assert reply.status_code == 200
    lines = [line[6:] for line in reply.text.splitlines() if line] if stream else [reply.text]
    with pytest.raises(ValueError, match="line 1"):
        [json.loads(each) for each in lines if each != "[DONE]"]


async def test_a_client_that_has_gone_is_counted_and_its_call_ends(http, upstream) -> None:
    behave(upstream, latency={"seconds": 30})
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/chat/completions", json=CHAT, timeout=0.1)
    async with asyncio.timeout(60):
        while upstream.statistics.underway:
            await asyncio.sleep(0.01)
    assert (upstream.statistics.abandoned, upstream.statistics.answered) == (1, 0)


async def test_the_same_seed_draws_the_same_faults_in_about_their_shares() -> None:
    async def drawn() -> list[int]:
        behaviour = Behaviour(faults={Fault.RATE_LIMITED: 0.2, Fault.SERVER_ERROR: 0.1})
        async with (
            SimulatedUpstream(behaviour, seed=7).serving() as upstream,
            httpx.AsyncClient(base_url=upstream.url) as http,
        ):
            return [(await asked(http)).status_code for _ in range(200)]

    first = await drawn()
    assert first == await drawn()
    counts = Counter(first)
    assert 20 < counts[429] < 60
    assert 8 < counts[500] < 40


def test_latencies_are_read_and_drawn_within_their_bounds() -> None:
    chance = random.Random(3)  # noqa: S311  # draws to be repeated
    fixed, uniform = Latency.parse("0.05"), Latency.parse("uniform:0.1,0.4")
    assert fixed.draw(chance) == 0.05
    assert all(0.1 <= uniform.draw(chance) <= 0.5 for _ in range(200))
    drawn = sorted(Latency.parse("lognormal:0.2,0.5").draw(chance) for _ in range(999))
    assert 0.15 < drawn[499] < 0.25
    assert drawn[-1] > 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latency": "steep:1"}, "shape"),
        ({"latency": "fixed:soon"}, "seconds"),
        ({"faults": ["hanging"]}, "FAULT=SHARE"),
        ({"faults": ["hanging=2"]}, "faults.hanging"),
        ({"faults": ["sulking=0.1"]}, "rate_limited"),
    ],
)
def test_wrong_options_name_their_field(options: dict[str, object], said: str) -> None:
    stated = {"latency": "0", "tokens": 16, "tokens_per_second": None, "faults": (), **options}
    with pytest.raises(InvalidInput, match=said):
        stated_behaviour(**stated)


def test_the_command_tells_its_address_serves_and_ends_on_sigterm() -> None:
    process = subprocess.Popen(
        [ASSAY, "simulate-upstream", "--tokens", "2", "--fault", "server_error=1", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        told = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert told["pid"] == process.pid
        assert told["url"].startswith("http://127.0.0.1:")
        assert httpx.post(f"{told['url']}/v1/chat/completions", json=CHAT).status_code == 500
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        process.stdout.close()

"""What every upstream promises: a thin client, LangChain's and the script, each over its own wire."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from domain.completion import CompletionRequest, FinishReason, Usage
from domain.errors import ModelRefused, ModelUnavailable
from domain.gateway import StreamingModels
from gateway.compatible import CompatibleModel
from gateway.large import LangChainModel
from gateway.providers import Provider
from gateway.scripted import Rule, Script, ScriptedModel
from tests.gateway.chatting import ASKED, Listener, chat, choice
from tests.gateway.conftest import KEY
from tests.gateway.upstream import Answer

SAID = "Yes, it is warm."


@dataclass
class Party:
    """An upstream, a model's name there, and how it is made to answer."""

    model: Any
    name: str
    #: the text, or an `Answer` of the wire that fails
    will: Callable[[Answer], None]
    #: calls that were begun, and those whose client went away
    asked: Callable[[], int]
    left: Callable[[], bool]
    usage: Usage

    def chat(self, **changes: Any) -> CompletionRequest:
        return chat(self.name, **changes)


FAILURES = {429: "model_unavailable", 503: "model_unavailable", 400: "model_refused"}


def scripted() -> Party:
    model = ScriptedModel()

    def will(answer: Answer) -> None:
        fail = "in_doubt" if answer.cut else FAILURES.get(answer.status)
        rule = Rule(reply=answer.text, fail=fail, hang_seconds=answer.delay_seconds)
        model.script = Script(rules=(rule,))

    def left() -> bool:
        return model.begun.total() > model.returned.total()

    words = sum(len(each["content"].split()) for each in ASKED)
    return Party(model, "scripted", will, model.begun.total, left, Usage(words, len(SAID.split())))


@pytest.fixture(params=["compatible", "langchain", "scripted"])
def party(request, upstream) -> Party:
    """One of the three."""
    if request.param == "scripted":
        return scripted()
    name, model = {
        "compatible": ("campus", "campus:qwen3"),
        "langchain": ("anthropic", "anthropic:claude-of-tests"),
    }[request.param]
    return Party(
        request.getfixturevalue(name),
        model,
        upstream.will,
        lambda: len(upstream.bodies),
        lambda: upstream.hung_up > 0,
        Usage(700, 90, 512),
    )


@pytest.fixture(params=["complete", "stream"])
def ask(request, party) -> Callable[..., Awaitable[Any]]:
    """Both ways to ask it."""
    if request.param == "complete":
        return party.model.complete
    return lambda asked: party.model.stream(asked, Listener())


async def test_a_reply_is_whole_and_counted(party, ask):
    assert isinstance(party.model, StreamingModels)
    party.will(Answer(text=SAID))
    reply = await ask(party.chat())
    assert (reply.text, reply.model, reply.finish_reason) == (SAID, party.name, FinishReason.STOP)
    assert (reply.usage, reply.usage_estimated) == (party.usage, False)
    only = choice(reply)
    assert (only["index"], only["finish_reason"]) == (0, "stop")
    assert (only["message"]["role"], only["message"]["content"]) == ("assistant", SAID)


async def test_what_was_told_is_what_is_answered(party):
    party.will(Answer(text=SAID))
    listener = Listener()
    reply = await party.model.stream(party.chat(), listener)
    assert listener.text == reply.text == SAID
    assert len(listener.chunks) >= len(SAID.split())
    assert listener.finished == ["stop"]


@pytest.mark.parametrize(
    ("status", "condition"), [(429, ModelUnavailable), (503, ModelUnavailable), (400, ModelRefused)]
)
async def test_a_refusal_is_no_doubt(party, ask, status, condition):
    party.will(Answer(status=status, error={"message": ASKED[1]["content"]}))
    with pytest.raises(condition) as caught:
        await ask(party.chat())
    assert not getattr(caught.value, "in_doubt", False)
    assert "Rome" not in str(caught.value)
    assert party.asked() == 1, "retries are the caller's"


async def test_a_reply_that_breaks_off_is_in_doubt(party):
    party.will(Answer(text=SAID * 3, cut="connection"))
    listener = Listener()
    with pytest.raises(ModelUnavailable) as caught:
        await party.model.stream(party.chat(), listener)
    assert caught.value.in_doubt
    assert not listener.finished


async def test_a_cancelled_call_ends_at_once_and_lets_go_of_its_upstream(party, ask):
    party.will(Answer(delay_seconds=30))
    task = asyncio.ensure_future(ask(party.chat()))
    while not party.asked():
        await asyncio.sleep(0.01)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while not party.left():
        assert time.monotonic() < begun + 5
        await asyncio.sleep(0.01)


@pytest.fixture
async def unreachable(monkeypatch) -> AsyncIterator[dict[str, CompatibleModel | LangChainModel]]:
    """Models whose server listens no more, by a name of theirs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        campus = CompatibleModel(Provider.compatible("campus", f"{url}/v1", KEY))
        anthropic = LangChainModel(Provider("anthropic", "the key", api_key=KEY))
        yield {"campus:qwen3": campus, "anthropic:claude-of-tests": anthropic}
        await campus.close()


@pytest.mark.parametrize("name", ["campus:qwen3", "anthropic:claude-of-tests"])
async def test_a_refused_connection_never_left(unreachable, name):
    model = unreachable[name]
    for ask in (model.complete, lambda asked: model.stream(asked, Listener())):
        with pytest.raises(ModelUnavailable) as caught:
            await ask(chat(name))
        assert not caught.value.in_doubt

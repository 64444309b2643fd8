"""The scripted upstream, and providers that reach it with the real clients."""

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.compatible import CompatibleModel
from gateway.large import LangChainModel
from gateway.providers import Provider, find_providers
from tests.gateway.upstream import ScriptedUpstream, running_upstream

KEY = "sk-secret-that-must-not-be-shown"


@pytest.fixture(scope="session")
def server() -> Iterator[ScriptedUpstream]:
    """One server for all tests: starting it takes longer than most of them."""
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(server: ScriptedUpstream) -> ScriptedUpstream:
    """The server, with nothing to tell of an earlier test."""
    server.answers.clear()
    server.bodies.clear()
    server.headers.clear()
    server.paths.clear()
    server.hung_up = 0
    return server


@pytest.fixture
async def campus(upstream: ScriptedUpstream) -> AsyncIterator[CompatibleModel]:
    """`campus:…`: an OpenAI-compatible server."""
    model = CompatibleModel(Provider.compatible("campus", f"{upstream.url}/v1", KEY), timeout_seconds=5)
    yield model
    await model.close()


@pytest.fixture
async def openai(upstream: ScriptedUpstream) -> AsyncIterator[CompatibleModel]:
    """`openai:…`, led to the server by OpenAI's own variable."""
    found = find_providers({"openai": KEY}, [], {"OPENAI_BASE_URL": f"{upstream.url}/v1"})
    model = CompatibleModel(found.available["openai"], timeout_seconds=5)
    yield model
    await model.close()


@pytest.fixture
def derived(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> LangChainModel:
    """LangChain's client for OpenAI, which those of several other providers are made of."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{upstream.url}/v1")
    return LangChainModel(Provider("openai", "the key", api_key=KEY), timeout_seconds=5)


@pytest.fixture
def anthropic(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> LangChainModel:
    """`anthropic:…`, led to the server by the client's own variable."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", upstream.url)
    found = find_providers({"anthropic": KEY}, [], {})
    return LangChainModel(found.available["anthropic"], timeout_seconds=5)


@pytest.fixture
def named(
    campus: CompatibleModel, openai: CompatibleModel, derived: LangChainModel, anthropic: LangChainModel
) -> dict[str, CompatibleModel | LangChainModel]:
    """All of them, by name."""
    return {"campus": campus, "openai": openai, "derived": derived, "anthropic": anthropic}

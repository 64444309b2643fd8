"""The scripted upstream, and providers that reach it with the real clients."""

from collections.abc import Iterator

import pytest

from gateway.large import LangChainModel
from gateway.providers import Provider
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
    return server


@pytest.fixture
def campus(upstream: ScriptedUpstream) -> LangChainModel:
    """`campus:…`: an OpenAI-compatible server."""
    return LangChainModel(Provider.compatible("campus", f"{upstream.url}/v1", KEY), timeout_seconds=5)


@pytest.fixture
def openai(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> LangChainModel:
    """`openai:…`, led to the server by the client's own variable."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{upstream.url}/v1")
    provider = Provider("openai", "openai", "ASSAY_MODELS__OPENAI_API_KEY or OPENAI_API_KEY", api_key=KEY)
    return LangChainModel(provider, timeout_seconds=5)


@pytest.fixture
def anthropic(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> LangChainModel:
    """`anthropic:…`, led to the server by the client's own variable."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", upstream.url)
    provider = Provider(
        "anthropic", "anthropic", "ASSAY_MODELS__ANTHROPIC_API_KEY or ANTHROPIC_API_KEY", api_key=KEY
    )
    return LangChainModel(provider, timeout_seconds=5)

"""Providers: what is set up is known by name, and what is not says what it needs."""

from urllib.parse import urlsplit

import pytest

from domain.completion import ModelNames
from domain.errors import UnknownModel
from gateway.providers import Provider, find_providers


def names(*compatible: Provider, keys=None, environment=None) -> ModelNames:
    found = find_providers(keys or {}, compatible, environment or {})
    return ModelNames(("local",), tuple(found.available), found.absent)


def test_a_provider_needs_its_key_from_the_settings_or_its_own_variable():
    names(keys={"openai": "sk-1"}).check("openai:gpt-4o")
    names(environment={"ANTHROPIC_API_KEY": "sk-2"}).check("anthropic:claude-x")
    with pytest.raises(
        UnknownModel,
        match=r"'openai:gpt-4o' is not known here: there is no key for it; "
        r"set ASSAY_MODELS__OPENAI_API_KEY or OPENAI_API_KEY; known: local\.",
    ) as caught:
        names().check("openai:gpt-4o")
    assert caught.value.field == "model"


def test_a_compatible_server_makes_its_models_known():
    campus = names(Provider.compatible("campus", "http://127.0.0.1:1/v1"))
    campus.check("campus:qwen3")
    campus.check("campus:qwen3:latest")
    assert str(campus) == "local, campus:…"


@pytest.mark.parametrize("name", ["campus", "campus:", "other:qwen3", ":qwen3", "", "Local"])
def test_what_nothing_serves_is_refused(name):
    with pytest.raises(UnknownModel, match="known: local, campus:…"):
        names(Provider.compatible("campus", "http://127.0.0.1:1/v1")).check(name)


def test_a_missing_package_says_what_to_install(monkeypatch):
    with pytest.raises(UnknownModel, match="package is not installed; install langchain-groq"):
        names().check("groq:llama")
    monkeypatch.setattr("gateway.providers.find_spec", lambda name: None)
    with pytest.raises(
        UnknownModel, match=r"install assay with the extra 'anthropic' \(`assay\[anthropic\]`\)"
    ):
        names(keys={"anthropic": "sk"}).check("anthropic:claude-x")


def test_what_speaks_openais_protocol_needs_no_package(monkeypatch):
    monkeypatch.setattr("gateway.providers.find_spec", lambda name: None)
    names(Provider.compatible("campus", "http://127.0.0.1:1/v1")).check("campus:qwen3")
    names(keys={"openai": "sk"}).check("openai:gpt-5-mini")


@pytest.mark.parametrize(
    ("name", "host", "limit_name"),
    [
        ("openai", "api.openai.com", "max_completion_tokens"),
        ("dashscope", "dashscope.aliyuncs.com", "max_tokens"),
        ("deepseek", "api.deepseek.com", "max_tokens"),
    ],
)
def test_providers_with_openais_protocol_are_asked_at_their_own_address(name, host, limit_name):
    variable = f"{name.upper()}_API_KEY"
    provider = find_providers({}, [], {variable: "sk-3"}).available[name]
    assert (urlsplit(provider.url).netloc, provider.api_key, provider.limit_name) == (
        host,
        "sk-3",
        limit_name,
    )
    with pytest.raises(UnknownModel, match=f"no key for it; set .*{variable}; known"):
        names().check(f"{name}:some-model")


def test_keys_are_shown_nowhere():
    provider = Provider.compatible("campus", "http://127.0.0.1:1/v1", "sk-secret")
    assert "sk-secret" not in repr(find_providers({"openai": "sk-secret"}, [provider], {}))

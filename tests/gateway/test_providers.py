"""Providers: what is set up is known by name, and what is not says what it needs."""

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
    with pytest.raises(UnknownModel, match="extra 'openai'"):
        names(Provider.compatible("campus", "http://127.0.0.1:1/v1")).check("campus:qwen3")


def test_keys_are_shown_nowhere():
    provider = Provider.compatible("campus", "http://127.0.0.1:1/v1", "sk-secret")
    assert "sk-secret" not in repr(find_providers({"openai": "sk-secret"}, [provider], {}))

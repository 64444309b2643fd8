"""The models of an installation, from its settings."""

import pytest

from domain.errors import UnknownModel
from runtime.gateway import known_models, providers
from runtime.settings import ModelSettings, Settings


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_compatible_server_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "ASSAY_MODELS__COMPATIBLE",
        '{"campus": {"url": "http://127.0.0.1:1/v1", "api_key": "sk-1", "structured_output": false}}',
    )
    settings = Settings()
    campus = providers(settings.models).available["campus"]
    assert (campus.url, campus.api_key, campus.structured_output) == ("http://127.0.0.1:1/v1", "sk-1", False)
    known_models(settings.models).check("campus:qwen3")
    assert "sk-1" not in str(settings.model_dump(mode="json"))


@pytest.mark.parametrize(
    "text",
    ['{"campus": {"url": "ftp://x"}}', '{"a:b": {"url": "http://x/v1"}}', '{"campus": {"uri": "http://x"}}'],
)
def test_a_server_that_is_no_server_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("ASSAY_MODELS__COMPATIBLE", text)
    with pytest.raises(ValueError, match="compatible"):
        Settings()


def test_a_key_makes_a_provider_known() -> None:
    known_models(ModelSettings(openai_api_key="sk-1")).check("openai:gpt-5-mini")
    with pytest.raises(UnknownModel, match="ASSAY_MODELS__ANTHROPIC_API_KEY or ANTHROPIC_API_KEY"):
        known_models(ModelSettings(openai_api_key="sk-1")).check("anthropic:claude")


def test_without_settings_there_is_the_embedded_model() -> None:
    assert "local" in str(known_models(ModelSettings()))
    assert "scripted" not in str(known_models(ModelSettings()))

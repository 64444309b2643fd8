"""The providers of large models: which are set up here, and how their models are opened."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Self

OPENAI, ANTHROPIC = "openai", "anthropic"


@dataclass(frozen=True)
class _Hosted:
    """A provider whose own servers speak OpenAI's protocol."""

    url: str
    #: its own variables: of its key, and of another address where its clients know one
    key_variable: str
    url_variable: str = ""
    limit_name: str = "max_tokens"
    structured_output: bool = True


_HOSTED = {
    # its newer models refuse `max_tokens`, and all of them know the newer word
    OPENAI: _Hosted(
        "https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL", limit_name="max_completion_tokens"
    ),
    "dashscope": _Hosted(
        "https://dashscope.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY", structured_output=False
    ),
    "deepseek": _Hosted("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", structured_output=False),
}
#: the provider's package, which the extra of its name installs, and the provider's own variable for the key
_KEYED = {ANTHROPIC: ("langchain_anthropic", "ANTHROPIC_API_KEY")}
#: LangChain's other providers, served once their package is installed; keys are their packages' own matter
_OTHERS = {
    "bedrock_converse": "langchain_aws",
    "cohere": "langchain_cohere",
    "fireworks": "langchain_fireworks",
    "google_genai": "langchain_google_genai",
    "groq": "langchain_groq",
    "mistralai": "langchain_mistralai",
    "ollama": "langchain_ollama",
    "openrouter": "langchain_openrouter",
    "together": "langchain_together",
    "xai": "langchain_xai",
}
#: those whose keys the settings take as well
_IN_SETTINGS = {OPENAI, ANTHROPIC}


@dataclass(frozen=True)
class Provider:
    """Where models of the name `{name}:…` are, and with what they are opened."""

    name: str
    #: the setting to look at when access is denied
    key_setting: str
    #: of a server that speaks OpenAI's protocol, up to `/v1`; the others are LangChain's
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    #: whether it takes a JSON Schema for the reply; otherwise the prompt alone asks for JSON
    structured_output: bool = True
    #: the server's word for the limit of a reply's tokens
    limit_name: str = "max_tokens"
    #: whether its marks are proposals for a human, and no marks
    advisory: bool = False

    @classmethod
    def compatible(
        cls,
        name: str,
        url: str,
        api_key: str | None = None,
        *,
        structured_output: bool = True,
        advisory: bool = False,
    ) -> Self:
        """A server that speaks OpenAI's protocol."""
        setting = f"ASSAY_MODELS__COMPATIBLE (api_key of {name!r})"
        return cls(name, setting, url, api_key, structured_output, advisory=advisory)

    def model_name(self, model: str) -> str:
        """The model's name at the provider."""
        return model.removeprefix(f"{self.name}:")

    def arguments(self, max_tokens: int) -> dict[str, Any]:
        """What LangChain's client is opened with beside the model's name."""
        limit = "num_predict" if self.name == "ollama" else "max_tokens"
        return {limit: max_tokens} | ({"api_key": self.api_key} if self.api_key else {})


@dataclass(frozen=True)
class Providers:
    """Those that can be asked here, and of the others what is missing."""

    available: Mapping[str, Provider]
    absent: Mapping[str, str]


def find_providers(
    keys: Mapping[str, str | None],
    compatible: Iterable[Provider],
    environment: Mapping[str, str] = os.environ,
) -> Providers:
    """What is set up here; `keys` are those of the settings, the providers' own variables count as well."""
    available: dict[str, Provider] = {}
    absent: dict[str, str] = {}
    for name, hosted in _HOSTED.items():
        setting = _key_setting(name, hosted.key_variable)
        url = environment.get(hosted.url_variable) or hosted.url
        if key := keys.get(name) or environment.get(hosted.key_variable):
            available[name] = Provider(name, setting, url, key, hosted.structured_output, hosted.limit_name)
        else:
            absent[name] = f"there is no key for it; set {setting}"
    for name, (package, variable) in _KEYED.items():
        setting = _key_setting(name, variable)
        if not find_spec(package):
            absent[name] = _to_install(name)
        elif not (keys.get(name) or environment.get(variable)):
            absent[name] = f"there is no key for it; set {setting}"
        else:
            available[name] = Provider(name, setting, api_key=keys.get(name))
    for name, package in _OTHERS.items():
        if find_spec(package):
            available[name] = Provider(name, f"the key of {name}, as {package} reads it")
        else:
            absent[name] = f"its package is not installed; install {package.replace('_', '-')}"
    for each in compatible:
        available[each.name] = each
        absent.pop(each.name, None)
    return Providers(available, absent)


def _key_setting(name: str, variable: str) -> str:
    return f"ASSAY_MODELS__{name.upper()}_API_KEY or {variable}" if name in _IN_SETTINGS else variable


def _to_install(extra: str) -> str:
    return f"its package is not installed; install assay with the extra {extra!r} (`assay[{extra}]`)"

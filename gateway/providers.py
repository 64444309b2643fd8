"""The providers of large models: which are set up here, and how their models are opened."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Self

OPENAI, ANTHROPIC = "openai", "anthropic"
#: the provider's package, which the extra of its name installs, and the provider's own variable for the key
_KEYED = {
    OPENAI: ("langchain_openai", "OPENAI_API_KEY"),
    ANTHROPIC: ("langchain_anthropic", "ANTHROPIC_API_KEY"),
}
#: LangChain's other providers, served once their package is installed; keys are their packages' own matter
_OTHERS = {
    "bedrock_converse": "langchain_aws",
    "cohere": "langchain_cohere",
    "deepseek": "langchain_deepseek",
    "fireworks": "langchain_fireworks",
    "google_genai": "langchain_google_genai",
    "groq": "langchain_groq",
    "mistralai": "langchain_mistralai",
    "ollama": "langchain_ollama",
    "openrouter": "langchain_openrouter",
    "together": "langchain_together",
    "xai": "langchain_xai",
}
#: a server without keys gets this one: the client asks for a key, and must not send it another provider's
_NO_KEY = "none"


@dataclass(frozen=True)
class Provider:
    """Where models of the name `{name}:…` are, and with what they are opened."""

    name: str
    #: LangChain's name for its kind of client
    client: str
    #: the setting to look at when access is denied
    key_setting: str
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    #: whether it takes a JSON Schema for the reply; otherwise the prompt alone asks for JSON
    structured_output: bool = True

    @classmethod
    def compatible(
        cls, name: str, url: str, api_key: str | None = None, *, structured_output: bool = True
    ) -> Self:
        """A server that speaks OpenAI's protocol."""
        setting = f"ASSAY_MODELS__COMPATIBLE (api_key of {name!r})"
        return cls(name, OPENAI, setting, url, api_key or _NO_KEY, structured_output)

    @property
    def ours(self) -> bool:
        """Whether the address is one that an operator gave, and not the provider's own."""
        return self.url is not None

    def arguments(self, max_tokens: int) -> dict[str, Any]:
        """What the client is opened with beside the model's name."""
        arguments: dict[str, Any] = {"base_url": self.url, "api_key": self.api_key}
        if self.ours:
            # the client's own word for the limit is newer than most such servers
            arguments["extra_body"] = {"max_tokens": max_tokens}
        elif self.client == "ollama":
            arguments["num_predict"] = max_tokens
        else:
            arguments["max_tokens"] = max_tokens
        return {name: value for name, value in arguments.items() if value is not None}


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
    for name, (package, variable) in _KEYED.items():
        setting = f"ASSAY_MODELS__{name.upper()}_API_KEY or {variable}"
        if not find_spec(package):
            absent[name] = _to_install(name)
        elif not (keys.get(name) or environment.get(variable)):
            absent[name] = f"there is no key for it; set {setting}"
        else:
            available[name] = Provider(name, name, setting, api_key=keys.get(name))
    for name, package in _OTHERS.items():
        if find_spec(package):
            available[name] = Provider(name, name, f"the key of {name}, as {package} reads it")
        else:
            absent[name] = f"its package is not installed; install {package.replace('_', '-')}"
    for each in compatible:
        if find_spec(_KEYED[OPENAI][0]):
            available[each.name] = each
            absent.pop(each.name, None)
        else:
            absent[each.name] = _to_install(OPENAI)
    return Providers(available, absent)


def _to_install(extra: str) -> str:
    return f"its package is not installed; install assay with the extra {extra!r} (`assay[{extra}]`)"

"""Which models an installation has, from its settings: for the API, which checks names, and for workers."""

from domain.completion import ModelNames
from gateway.providers import Provider, Providers, find_providers
from runtime.settings import ModelSettings


def providers(settings: ModelSettings) -> Providers:
    """The providers of large models that are set up here."""
    keys = {"openai": settings.openai_api_key, "anthropic": settings.anthropic_api_key}
    return find_providers(
        {name: key.get_secret_value() if key else None for name, key in keys.items()},
        [
            Provider.compatible(
                name,
                server.url,
                server.api_key.get_secret_value() if server.api_key else None,
                structured_output=server.structured_output,
            )
            for name, server in settings.compatible.items()
        ],
    )


def known_models(settings: ModelSettings) -> ModelNames:
    """What a batch may name."""
    large = providers(settings)
    names = ("local", "scripted") if settings.script else ("local",)
    return ModelNames(names, tuple(large.available), large.absent)

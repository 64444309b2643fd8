"""Which models an installation has, from its settings: for the API, which checks names, and for workers."""

from collections.abc import Callable
from dataclasses import replace

from db.postgres.prices import PostgresPrices, PostgresTokenRatios
from domain.completion import ModelNames
from domain.ledger import DoubtRule
from domain.ports import Models
from gateway.catalogue import canonical_name, catalogue
from gateway.door import CallTerms, Door
from gateway.providers import Provider, Providers, find_providers
from gateway.tokens import TokenEstimates
from runtime.resources import Resources
from runtime.settings import ModelSettings

_SCRIPTED_WAIT_SECONDS = 2.0
#: a model that computes in this very process: nobody waits long for what is free, and nothing is in doubt
_EMBEDDED = CallTerms(timeout_seconds=300.0, wait_seconds=1.0, doubt_rule=DoubtRule.ZERO)


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


def door(resources: Resources, upstreams: Models) -> Door:
    """The door of this process: every call of its agents is paid for there."""
    postgres = resources.postgres
    return Door(
        upstreams,
        resources.ledger,
        PostgresPrices(postgres, catalogue=catalogue, canonical=canonical_name),
        TokenEstimates(PostgresTokenRatios(postgres)),
        terms=terms(resources.settings.models),
        modes=resources.ledger.books.modes,
    )


def terms(settings: ModelSettings) -> Callable[[str], CallTerms]:
    """How long calls to a model may take."""
    large = CallTerms(timeout_seconds=settings.timeout_seconds, wait_seconds=settings.timeout_seconds)
    # a script takes as long as it says; whoever tests with kills need not wait for a large model's time
    scripted = replace(large, wait_seconds=min(large.wait_seconds, _SCRIPTED_WAIT_SECONDS))
    known = {"local": _EMBEDDED, "scripted": scripted}
    return lambda model: known.get(model, large)

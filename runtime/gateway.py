"""Which models an installation has, from its settings, and the door to them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from db.postgres.conversations import PostgresConversations
from db.postgres.prices import PostgresPrices, PostgresTokenRatios
from db.postgres.tenants import PostgresTenants
from db.redis.affinity import RedisAffinities
from domain.completion import ModelNames
from domain.errors import NotFound
from domain.gateway import Completions, RateLimit
from domain.keys import rate_limits
from domain.ledger import DoubtRule
from domain.ports import Models
from gateway.catalogue import canonical_name, catalogue
from gateway.conversations import ConversationStep, Window
from gateway.directory import ModelDirectory
from gateway.door import Door
from gateway.providers import Provider, Providers, find_providers
from gateway.quotas import QuotaStep
from gateway.routing import UpstreamRoom
from gateway.summaries import Summaries
from gateway.terms import CallTerms, TermsOf
from gateway.tokens import TokenEstimates
from runtime.resources import Resources
from runtime.settings import ModelSettings, UpstreamSettings

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
                advisory=server.advisory,
            )
            for name, server in settings.compatible.items()
        ],
    )


def known_models(settings: ModelSettings) -> ModelNames:
    """What a batch or an outside caller may name."""
    large = providers(settings)
    come_along = ("local", "scripted") if settings.script else ("local",)
    names = (*come_along, *settings.routes)
    return ModelNames(names, tuple(large.available), large.absent, graders=frozenset({"local"}))


def models(settings: ModelSettings) -> ModelDirectory:
    """Every model that can be asked for by name, behind the door that pays for it.

    They are imported here, and nowhere that need not wait for them.
    """
    from agents.local.model import LocalModel
    from gateway.compatible import CompatibleModel
    from gateway.large import LangChainModel
    from gateway.scripted import Script, ScriptedModel

    def opened(provider: Provider) -> Models:
        client = LangChainModel if provider.url is None else CompatibleModel
        return client(provider, timeout_seconds=settings.timeout_seconds, temperature=settings.temperature)

    upstreams: dict[str, Models] = {"local": LocalModel()}
    if settings.script is not None:
        upstreams["scripted"] = ScriptedModel(Script.load(settings.script))
    large = providers(settings)
    return ModelDirectory(
        upstreams, {name: opened(each) for name, each in large.available.items()}, large.absent
    )


def door(resources: Resources, upstreams: Models) -> Door:
    """The door of this process: each call is limited, paid and settled; it closes with the resources."""
    postgres, redis, settings = resources.postgres, resources.redis, resources.settings.models
    made = Door(
        upstreams,
        resources.ledger,
        PostgresPrices(postgres, catalogue=catalogue, canonical=canonical_name),
        TokenEstimates(PostgresTokenRatios(postgres)),
        terms=terms(settings),
        modes=resources.ledger.books.modes,
        routes=settings.routes,
        room=UpstreamRoom(resources.limits, upstream_limits(settings)),
        affinities=RedisAffinities(redis),
        quotas=QuotaStep(
            resources.limits,
            resources.quotas,
            record=resources.ledger.record,
            limits_of=_tenant_limits(PostgresTenants(postgres)),
        ),
        conversations=_conversations(resources, lambda: made),
        figures=resources.figures,
        max_calls=settings.max_calls,
    )
    if isinstance(upstreams, ModelDirectory):
        resources.ends.push_async_callback(upstreams.close)
    # calls whose clients have gone are settled before the ledger closes
    resources.ends.push_async_callback(made.close)
    return made


def _conversations(resources: Resources, completions: Callable[[], Completions]) -> ConversationStep:
    settings = resources.settings.conversations
    kept = PostgresConversations(resources.postgres, on_conflict=resources.figures.write_conflict)
    window = Window(settings.window_messages, settings.window_bytes)
    return ConversationStep(
        kept, window, Summaries(kept, completions, window) if settings.summaries else None
    )


def _tenant_limits(tenants: PostgresTenants) -> Callable[[str], Awaitable[Sequence[RateLimit]]]:
    """The rates that a tenant's agents have in common with its keys."""

    async def limits_of(tenant_id: str) -> Sequence[RateLimit]:
        with suppress(NotFound):
            terms = (await tenants.read(tenant_id)).terms
            rates = (terms.requests_per_minute, terms.tokens_per_minute, terms.max_concurrent)
            return rate_limits("tenant", *rates)
        return ()

    return limits_of


def upstream_limits(settings: ModelSettings) -> Mapping[str, Sequence[RateLimit]]:
    """How much each provider may be asked, by all processes together."""
    stated: dict[str, UpstreamSettings] = {**settings.compatible, **settings.upstreams}
    return {
        name: rate_limits(f"upstream/{name}", each.requests_per_minute, None, each.max_concurrent)
        for name, each in stated.items()
    }


def terms(settings: ModelSettings) -> TermsOf:
    """How long calls to a model may take."""
    large = CallTerms(timeout_seconds=settings.timeout_seconds, wait_seconds=settings.timeout_seconds)
    # a script takes as long as it says; whoever tests with kills need not wait for a large model's time
    scripted = replace(large, wait_seconds=min(large.wait_seconds, _SCRIPTED_WAIT_SECONDS))
    known = {"local": _EMBEDDED, "scripted": scripted}
    return lambda model: known.get(model, large)

"""The step `route`: which models may answer a call, in which order, and which are left alone (O5, O9)."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from domain.completion import PROVIDER_SEPARATOR
from domain.errors import ModelUnavailable, RateLimited
from domain.gateway import Affinities, Affinity, Permit, RateLimit, RateLimits
from gateway.context import Context, Routed
from gateway.figures import GatewayFigures
from gateway.quotas import LEASE_SECONDS
from gateway.waiting import Later, UpstreamFull, full_places

#: a model that failed without a word about when to come again is left alone for so long, doubled each time
FIRST_COOLDOWN_SECONDS, LONGEST_COOLDOWN_SECONDS = 1.0, 60.0
COOLDOWNS_KEPT = 1_000
#: whose limits an upstream's are: everybody's, which is no tenant's id
EVERYBODY = "*"
#: a place of a process that was killed is free again so long after a short call should have ended
LEASE_MARGIN_SECONDS = 30.0


@dataclass(frozen=True)
class _Cooldown:
    failures: int
    until: float
    #: whether the upstream itself said until when
    stated: bool


class Cooldowns:
    """Which models have failed lately, in this process; the oldest failures are forgotten first."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._cooldowns: OrderedDict[str, _Cooldown] = OrderedDict()

    def fail(self, model: str, stated_seconds: float | None = None) -> None:
        """The model failed; it said for how long, or it is left alone longer with every failure."""
        before = self._cooldowns.pop(model, None)
        failures = 1 + (before.failures if before else 0)
        if stated_seconds is None:
            seconds = min(FIRST_COOLDOWN_SECONDS * 2 ** min(failures - 1, 20), LONGEST_COOLDOWN_SECONDS)
        else:
            seconds = stated_seconds
        self._cooldowns[model] = _Cooldown(failures, self._now() + seconds, stated_seconds is not None)
        if len(self._cooldowns) > COOLDOWNS_KEPT:
            self._cooldowns.popitem(last=False)

    def answered(self, model: str) -> None:
        """The model is well."""
        self._cooldowns.pop(model, None)

    def seconds_left(self, model: str, *, alone: bool = False) -> float:
        """How long it is left alone still; the only model there is, only for as long as it says itself."""
        cooldown = self._cooldowns.get(model)
        if cooldown is None or (alone and not cooldown.stated):
            return 0.0
        return max(0.0, cooldown.until - self._now())


class UpstreamRoom:
    """Places at upstreams that take only so many calls, at once or a minute."""

    def __init__(
        self, limits: RateLimits | None = None, of_provider: Mapping[str, Sequence[RateLimit]] | None = None
    ) -> None:
        self._limits = limits
        self._of_provider = of_provider or {}
        self._giving_back: set[asyncio.Task[None]] = set()

    async def take(self, model: str, most_seconds: float) -> Permit | None:
        """A place for one call of at most so long, `None` where none is needed; raises `RateLimited`."""
        limits = self._of_provider.get(provider_of(model))
        if self._limits is None or not limits:
            return None
        lease_seconds = min(LEASE_SECONDS, most_seconds + LEASE_MARGIN_SECONDS)
        return await self._limits.acquire(EVERYBODY, limits, tokens=0, lease_seconds=lease_seconds)

    async def freed(self, full: Sequence[RateLimit], within_seconds: float) -> None:
        """Wait until one of these limits may have a place again, at most so long."""
        if self._limits is not None:
            await self._limits.freed(EVERYBODY, full, within_seconds=within_seconds)

    def give_back(self, place: Permit | None) -> None:
        """Give the place back without waiting for it: a reply that came must not get lost here.

        The limits know what was given back already.
        """
        if place is not None and self._limits is not None:
            giving = asyncio.ensure_future(self._limits.release(EVERYBODY, place))
            self._giving_back.add(giving)
            giving.add_done_callback(self._giving_back.discard)

    async def close(self) -> None:
        """Wait for what is being given back."""
        if self._giving_back:
            await asyncio.wait(self._giving_back)


def provider_of(model: str) -> str:
    """The upstream of a model: its provider, or the model itself where it has none."""
    return model.partition(PROVIDER_SEPARATOR)[0]


class RouteStep:
    """Chooses among the models of an alias those that can be asked, the session's preferred one first."""

    def __init__(
        self,
        routes: Mapping[str, Sequence[str]],
        cooldowns: Cooldowns,
        room: UpstreamRoom,
        *,
        timeout_of: Callable[[str], float],
        affinities: Affinities | None = None,
        figures: GatewayFigures | None = None,
    ) -> None:
        self._routes = routes
        self._cooldowns = cooldowns
        self._room = room
        self._timeout_of = timeout_of
        self._affinities = affinities
        self._figures = figures

    def models(self, name: str) -> tuple[str, ...]:
        """All models behind a name, in the settings' order; a name without a route is one itself."""
        return tuple(self._routes.get(name, (name,)))

    async def route(self, context: Context) -> Routed:
        """The candidates; raises `Later` while every one of them cools down or is full."""
        ready = self._ready(context)
        preferred = await self._preference(context)
        if preferred is not None and preferred.model in ready:
            ready.sort(key=lambda model: model != preferred.model)
        elif preferred is not None and self._figures is not None:
            self._figures.affinity_was_stale()
        return await self._with_place(context, ready, preferred)

    async def prefer(self, context: Context) -> None:
        """The session prefers from now on the model that answered it; never raises."""
        session = _session_of(context)
        if self._affinities is None or not session or context.routed is None or context.called is None:
            return
        seen, answered = context.routed.preferred, context.called.candidate
        await self._affinities.claim(context.payer.tenant_id, session, answered, seen=seen)
        if seen is not None and self._figures is not None:
            self._figures.affinity(hit=seen.model == answered)

    def _ready(self, context: Context) -> list[str]:
        models = self.models(context.request.model)
        left = [model for model in models if model not in context.passed_over]
        cooling = {model: self._cooldowns.seconds_left(model, alone=len(models) == 1) for model in left}
        if ready := [model for model, seconds in cooling.items() if not seconds]:
            return ready
        seconds = min(cooling.values(), default=0.0)
        message = f"{context.request.model}: no upstream can be asked now; the first one in {seconds:.1f} s."
        raise Later(ModelUnavailable(message, retry_after_seconds=seconds), "cooldown", seconds)

    async def _preference(self, context: Context) -> Affinity | None:
        session = _session_of(context)
        if self._affinities is None or not session:
            return None
        return await self._affinities.read(context.payer.tenant_id, session)

    async def _with_place(self, context: Context, ready: list[str], preferred: Affinity | None) -> Routed:
        """The candidates from the first one that has room on; full ones come last."""
        refusals: list[RateLimited] = []
        for index, model in enumerate(ready):
            try:
                place = await self._room.take(model, self._timeout_of(model))
            except RateLimited as full:
                refusals.append(full)
            else:
                return Routed((*ready[index:], *ready[:index]), preferred, place)
        seconds = min(each.retry_after_seconds or 0.0 for each in refusals)
        message = f"{context.request.model}: its upstream takes no more calls now ({refusals[0].limit})."
        condition = ModelUnavailable(message, retry_after_seconds=seconds)
        if places := [limit for each in refusals for limit in full_places(each)]:
            raise UpstreamFull(condition, lambda within_seconds: self._room.freed(places, within_seconds))
        raise Later(condition, "upstream_full", seconds)


def _session_of(context: Context) -> str:
    return context.request.chat.session_id if context.request.chat is not None else ""

"""Property 33: a session prefers the upstream that answered it last, and is never led to an excluded one."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.redis.affinity import RedisAffinities
from db.redis.connection import RedisLink
from domain.completion import IMPATIENT, CompletionReply, CompletionRequest
from domain.errors import AssayError, ModelRefused, ModelUnavailable
from domain.gateway import Caller
from gateway.door import Door
from gateway.routing import Cooldowns
from runtime.embedded import Addresses
from tests.gateway.lane import at_once
from tests.gateway.paper import PaperLedger, a_chat, paper_door

MODELS = ("one:model", "two:model", "three:model", "four:model")
ROUTES = {"small": MODELS}

#: what an upstream does with a call: answer, refuse and say for how many seconds, refuse the call, be cut off
DEEDS = st.one_of(st.none(), st.integers(1, 5), st.sampled_from(["refused", "in_doubt"]))
#: of each call: which session it belongs to, how many seconds later it comes, and what each upstream does
CALLS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 4), st.fixed_dictionaries(dict.fromkeys(MODELS, DEEDS))),
    min_size=1,
    max_size=12,
)


@dataclass
class Upstreams:
    """Models that do as the example says."""

    deeds: Mapping[str, object] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """What is drawn."""
        self.asked.append(request.model)
        await asyncio.sleep(0)
        match self.deeds.get(request.model):
            case int() as seconds:
                raise ModelUnavailable("Too many.", retry_after_seconds=seconds)
            case "refused":
                raise ModelRefused("No such parameter.")
            case "in_doubt":
                raise ModelUnavailable("Cut off.", in_doubt=True)
        return await at_once(request)


@dataclass
class Clock:
    """The monotonic clock of cooldowns, held."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    """One door with its upstreams, and what must be true of them."""

    def __init__(self, affinities: RedisAffinities) -> None:
        self.tenant = f"tenant-{uuid4().hex[:12]}"
        self.affinities = affinities
        self.upstreams, self.clock = Upstreams(), Clock()
        self.cools_until: dict[str, float] = {}
        self.answered: dict[str, str] = {}
        self.door: Door = paper_door(
            self.upstreams,
            PaperLedger(),
            routes=ROUTES,
            affinities=affinities,
            cooldowns=Cooldowns(self.clock),
        )

    async def call(self, session: str, deeds: Mapping[str, object]) -> CompletionReply | None:
        """One call; `None` where nobody answers it."""
        self.upstreams.deeds, self.upstreams.asked = deeds, []
        request = a_chat(uuid4().hex, "small", session, patience=IMPATIENT)
        try:
            return await self.door.complete(request, caller=Caller(self.tenant, "key", frozenset()))
        except AssayError:
            return None

    async def check(self, session: str, reply: CompletionReply | None, deeds: Mapping[str, object]) -> None:
        """The preference follows the reply, and nobody was asked who had asked to be left alone."""
        excluded = {model for model, until in self.cools_until.items() if until > self.clock.now}
        assert not excluded & set(self.upstreams.asked)
        assert len(self.upstreams.asked) == len(set(self.upstreams.asked)), "nobody is asked twice"
        preferred = self.answered.get(session)
        if preferred is not None and preferred not in excluded and self.upstreams.asked:
            assert self.upstreams.asked[0] == preferred
        for model in self.upstreams.asked:
            if isinstance(seconds := deeds[model], int):
                self.cools_until[model] = self.clock.now + seconds
            elif deeds[model] == "in_doubt":
                self.cools_until[model] = self.clock.now + 1000  # at least a moment, and at most a minute
        if reply is not None:
            assert deeds[reply.model] is None
            self.answered[session] = reply.model
        found = await self.affinities.read(self.tenant, session)
        assert (found.model if found else None) == self.answered.get(session)


@pytest.fixture(scope="module")
async def affinities(addresses: Addresses) -> AsyncIterator[RedisAffinities]:
    link = RedisLink.to(addresses.redis_url, max_connections=50, timeout_seconds=5)
    yield RedisAffinities(link)
    await link.close()

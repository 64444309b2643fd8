"""Property 33: a session prefers the upstream that answered it last, and is never led to an excluded one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.redis.affinity import RedisAffinities
from db.redis.connection import RedisLink
from domain.completion import IMPATIENT, CompletionReply, CompletionRequest
from domain.errors import ModelRefused, ModelUnavailable
from domain.gateway import Affinity, Caller
from gateway.door import Door
from gateway.routing import FIRST_COOLDOWN_SECONDS, LONGEST_COOLDOWN_SECONDS, Cooldowns
from runtime.embedded import Addresses
from tests.gateway.lane import at_once
from tests.gateway.paper import a_chat, paper_door

MODELS = ("one:model", "two:model", "three:model", "four:model")
ROUTES = {"small": MODELS}

#: what an upstream does with a call: answer, refuse and say for how many seconds, refuse the call, be cut off
DEEDS = st.one_of(st.none(), st.integers(1, 5), st.sampled_from(["refused", "in_doubt"]))
#: which session they belong to, how many calls come at once and how much later, and what each upstream does
CALLS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from([1, 1, 1, 3]),
        st.integers(0, 4),
        st.fixed_dictionaries(dict.fromkeys(MODELS, DEEDS)),
    ),
    min_size=1,
    max_size=8,
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
    """One door with its upstreams, and a model of what it should know of them."""

    def __init__(self, affinities: RedisAffinities) -> None:
        self.tenant = f"tenant-{uuid4().hex[:12]}"
        self.affinities = affinities
        self.upstreams, self.clock = Upstreams(), Clock()
        #: how often in a row each has failed, and until when it is left alone
        self.failures: Counter[str] = Counter()
        self.cools_until: dict[str, float] = {}
        #: who may have answered each session last
        self.answered: dict[str, set[str]] = {}
        self.door: Door = paper_door(
            self.upstreams, routes=ROUTES, affinities=affinities, cooldowns=Cooldowns(self.clock)
        )

    async def calls(self, session: str, count: int, deeds: Mapping[str, object]) -> set[str]:
        """So many calls at once; who answered them."""
        self.upstreams.deeds, self.upstreams.asked = deeds, []
        replies = await asyncio.gather(*(self._call(session) for _ in range(count)))
        return {reply.model for reply in replies if reply is not None}

    async def _call(self, session: str) -> CompletionReply | None:
        request = a_chat(uuid4().hex, "small", session, patience=IMPATIENT)
        try:
            return await self.door.complete(request, caller=Caller(self.tenant, "key", frozenset()))
        except (ModelUnavailable, ModelRefused):
            return None

    def check_asked(self, session: str, count: int) -> None:
        """Nobody was asked who is to be left alone, and the preferred one first."""
        asked = self.upstreams.asked
        excluded = {model for model, until in self.cools_until.items() if until > self.clock.now}
        assert not excluded & set(asked)
        if count > 1:
            return
        assert len(asked) == len(set(asked)), "nobody is asked twice"
        preferred = self.answered.get(session, set())
        if len(preferred) == 1 and not preferred & excluded:
            assert asked[0] in preferred

    def learn(self, deeds: Mapping[str, object]) -> None:
        """Who was asked, and failed, is left alone from now on."""
        for model in self.upstreams.asked:
            match deeds[model]:
                case None:
                    self.failures[model], self.cools_until[model] = 0, 0.0
                case "refused":
                    continue
                case deed:
                    self.failures[model] += 1
                    guess = FIRST_COOLDOWN_SECONDS * 2 ** (self.failures[model] - 1)
                    seconds = deed if isinstance(deed, int) else min(guess, LONGEST_COOLDOWN_SECONDS)
                    self.cools_until[model] = self.clock.now + seconds

    async def check_preferred(self, session: str, answered: set[str], deeds: Mapping[str, object]) -> None:
        """The preference follows the replies, and stays where there were none."""
        assert all(deeds[model] is None for model in answered)
        if answered:
            self.answered[session] = answered
        found = await self.affinities.read(self.tenant, session)
        if session in self.answered:
            assert found is not None
            assert found.model in self.answered[session]
            self.answered[session] = {found.model}
        else:
            assert found is None


@pytest.fixture(scope="module")
async def affinities(addresses: Addresses) -> AsyncIterator[RedisAffinities]:
    link = RedisLink.to(addresses.redis_url, max_connections=50, timeout_seconds=5)
    yield RedisAffinities(link)
    await link.close()


@settings(max_examples=100)
@given(calls=CALLS)
async def test_a_preference_follows_replies_and_never_leads_to_who_is_excluded(
    affinities: RedisAffinities, calls: list[tuple[int, int, int, dict[str, object]]]
) -> None:
    """
    **功能: assay, 属性 33: 亲和正确性**
    **验证: 需求 O5**

    For every sequence of calls, refusals, doubts and cool-downs, the session's preference is the upstream
    that answered it last, whoever is to be left alone is not asked, and a failure changes no preference.
    """
    world = World(affinities)
    for number, count, seconds, deeds in calls:
        session = f"s{number}"
        world.clock.now += seconds
        answered = await world.calls(session, count, deeds)
        world.check_asked(session, count)
        world.learn(deeds)
        await world.check_preferred(session, answered, deeds)


@settings(max_examples=100)
@given(rounds=st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4))
async def test_of_concurrent_claims_that_saw_the_same_exactly_one_counts(
    affinities: RedisAffinities, rounds: list[list[bool]]
) -> None:
    """
    **功能: assay, 属性 33: 亲和正确性**
    **验证: 需求 O5**

    For every sequence of claims at once, some of which saw an older preference: one of those that saw the
    newest one wins, and its version is one higher; without any of those nothing changes.
    """
    tenant, session, older = f"tenant-{uuid4().hex[:12]}", "s", None
    for claims in rounds:
        seen = await affinities.read(tenant, session)
        models = [f"campus:{uuid4().hex}" for _ in claims]
        won = await asyncio.gather(
            *(
                affinities.claim(tenant, session, model, seen=seen if fresh else older)
                for model, fresh in zip(models, claims, strict=True)
            )
        )
        found = await affinities.read(tenant, session)
        if any(claims) or older == seen:
            assert sum(won) == 1
            assert found == Affinity(models[won.index(True)], (seen.version if seen else 0) + 1)
        else:
            assert not any(won)
            assert found == seen
        older = seen

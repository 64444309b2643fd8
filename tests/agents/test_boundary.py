"""Between two steps: events come in once, whatever crashes; a paused batch lets no call begin (G2.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agents.boundary import Boundary, Heard
from agents.session import GradingSession
from domain.batch import Pause
from domain.completion import CompletionReply, CompletionRequest
from domain.errors import BudgetExhausted
from domain.identity import WorkflowRef
from domain.ports import AgentOutcome
from gateway.scripted import Rule, ScriptedModel
from tests.agents.conftest import Bench, FixedClock
from tests.agents.outside import Fate, Killed, World


class MortalSaver(InMemorySaver):
    """A saver whose process may die at every save."""

    def __init__(self, fate: Fate) -> None:
        super().__init__(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        self.fate = fate

    async def aput(self, *arguments: Any) -> Any:
        """Save a checkpoint."""
        self.fate.strikes(after=False)
        saved = await super().aput(*arguments)
        self.fate.strikes(after=True)
        return saved

    async def aput_writes(self, *arguments: Any, **options: Any) -> None:
        """Save what a task wrote."""
        self.fate.strikes(after=False)
        await super().aput_writes(*arguments, **options)
        self.fate.strikes(after=True)


@dataclass
class MortalModel:
    """A model whose caller may die, too."""

    fate: Fate
    upstream: ScriptedModel = field(default_factory=ScriptedModel)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The scripted reply."""
        self.fate.strikes(after=False)
        reply = await self.upstream.complete(request)
        self.fate.strikes(after=True)
        return reply


async def attempt(bench: Bench, world: World, model: Any = None) -> AgentOutcome:
    session = GradingSession(
        models=model or bench.model,
        open_saver=lambda _: bench.saver,
        clock=FixedClock(),
        outside=world,
    )
    return await session.assess(
        bench.run, on_state=bench.states.append, on_restart=bench.restarts.append, draining=lambda: False
    )


async def values_of(bench: Bench) -> Mapping[str, Any]:
    found = await bench.saver.aget_tuple(bench.config)
    assert found is not None
    values: Mapping[str, Any] = found.checkpoint["channel_values"]
    return values


DEATHS = st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=4)


@given(
    arrivals=st.lists(st.integers(0, 3), max_size=6),
    silent=st.sets(st.integers(1, 4), max_size=2),
    deaths=DEATHS,
    repaired=st.booleans(),
)
async def test_every_event_is_in_the_state_once_from_the_next_boundary_on_whatever_dies(
    arrivals: list[int], silent: set[int], deaths: list[tuple[int, bool]], repaired: bool
) -> None:
    world, bench = World(arrivals, silent, fate=Fate(deaths)), Bench()
    bench.exam = replace(bench.exam, questions=bench.exam.questions[2:4])
    bench.saver = MortalSaver(world.fate)
    rules = [Rule(match="*/q4/*/1", fail="bad_quote")] if repaired else []
    model = MortalModel(world.fate, bench.script(*rules).model)
    outcome = None
    while outcome is None:
        try:
            outcome = await attempt(bench, world, model)
        except Killed:
            continue
    assert outcome.assessment.score == 4.0
    assert bench.restarts == []
    seen: list[str] = []
    checkpoints = [each async for each in bench.saver.alist(bench.config)]
    for checkpoint in reversed(checkpoints):
        heard = checkpoint.checkpoint["channel_values"].get("external_events", {})
        assert all(key == f"g2/{each['event_id']}" for key, each in heard.items())
        ids = sorted(each["event_id"] for each in heard.values())
        assert set(seen) <= set(ids), "an event that was heard stays"
        seen = ids
    if world.looks not in world.silent:
        assert seen == sorted(world.told)
    assert outcome.state.external_events == sorted(seen)[-20:]


OPEN_CALLS = ("q4", "q5", "q6")


async def test_a_paused_batch_lets_no_call_begin_and_shows_in_the_state() -> None:
    bench, world = Bench(), World(pause=Pause("batch", 1_500), limit_nanodollars=5)
    with pytest.raises(BudgetExhausted) as refused:
        await attempt(bench, world)
    assert (refused.value.scope, refused.value.missing_nanodollars) == ("batch", 1_500)
    assert not bench.model.begun
    values = await values_of(bench)
    assert (values["batch"]["state"], values["batch"]["limit_nanodollars"]) == ("paused", 5)
    world.pause, world.limit_nanodollars = None, 50
    assert (await attempt(bench, world)).assessment.score == 11.5
    values = await values_of(bench)
    assert (values["batch"]["state"], values["batch"]["limit_nanodollars"]) == ("scattering", 50)
    assert set(bench.model.begun.values()) == {1}
    assert bench.restarts == []


async def test_a_pause_stops_a_repair_and_keeps_what_is_done() -> None:
    bench, world = Bench(), World()
    bench.script(Rule(match="*/q4/*/1", fail="bad_quote"))

    @dataclass
    class Pausing:
        upstream: Any

        async def complete(self, request: CompletionRequest) -> CompletionReply:
            world.pause = Pause("key")
            reply: CompletionReply = await self.upstream.complete(request)
            return reply

    with pytest.raises(BudgetExhausted):
        await attempt(bench, world, Pausing(bench.model))
    assert [len(bench.calls(each)) for each in OPEN_CALLS] == [1, 1, 1]
    world.pause = None
    assert (await attempt(bench, world)).assessment.score == 11.5
    assert [len(bench.calls(each)) for each in OPEN_CALLS] == [2, 1, 1]


async def test_what_costs_nothing_is_finished_in_a_paused_batch() -> None:
    bench = Bench()
    bench.exam = replace(bench.exam, questions=bench.exam.questions[:3])
    outcome = await attempt(bench, World(pause=Pause("batch")))
    assert outcome.assessment.score == 3.0
    assert outcome.state.stage == "done"


async def test_a_fork_hears_its_own_events_beside_those_of_the_generation_before() -> None:
    world, workflow = World(arrivals=[1]), WorkflowRef("batch-1", "file-1", 2)
    before = Heard(event_id="event-000", type="weather", data=None, received_at="earlier")
    heard, _ = await Boundary(world, workflow).hear({"external_events": {"g1/event-000": before}})
    assert list(heard["external_events"]) == ["g2/event-000"]
    again, _ = await Boundary(world, workflow).hear(heard)
    assert again == {}, "what is known and unchanged is not written again"

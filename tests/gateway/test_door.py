"""What the door does when an attempt's calls end differently: what has left is settled, the rest costs nothing."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from db.postgres.grading import PostgresThreads
from db.postgres.ledger_port import PostgresLedger
from domain.completion import CompletionReply, CompletionRequest, Fence, Payer
from domain.errors import ModelUnavailable
from domain.identity import LogicalStep
from domain.ledger import Hold, LedgerCall, Replayed, Underway
from domain.ports import AssessmentStart
from gateway.door import Door
from gateway.scripted import Rule, Script
from runtime.gateway import door
from runtime.resources import Resources
from tests.builders import ANSWERS, ONE_QUESTION, a_submission, an_exam, open_batch
from tests.workflows import plant

HELD = "slow"


@dataclass
class Attempt:
    """One attempt at a submission, which makes calls side by side; the calls of the reader `slow` are held."""

    resources: Resources
    file_id: str
    fence: Fence
    payer: Payer
    upstream: plant.WatchedModel
    door: Door

    def call(self, reader: str) -> "asyncio.Task[CompletionReply]":
        """A call of its own for each reader."""
        (question,) = an_exam(ONE_QUESTION).questions
        request = CompletionRequest(
            LogicalStep(self.file_id, 1, question.id, "all", reader),
            1,
            "scripted",
            question,
            ANSWERS[question.id],
            payer=self.payer,
            fence=self.fence,
        )
        return asyncio.create_task(self.door.complete(request))

    async def holds(self) -> Counter[str]:
        """How many holds are in each state."""
        rows = await self.resources.postgres.rows("SELECT state FROM ledger_holds")
        return Counter(row["state"] for row in rows)


@pytest.fixture
async def attempt(resources: Resources) -> Attempt:
    """An attempt whose upstream refuses the reader `refused`."""
    batch = await open_batch(resources, {"one.json": a_submission()}, exam=ONE_QUESTION)
    (file,) = await plant.files_of(resources, batch)
    epoch = await PostgresThreads(resources.postgres).begin(
        AssessmentStart(file.id, 1, "thread", "workflow", "run")
    )
    assert epoch is not None
    script = Script(rules=(Rule("*/refused/1", fail="model_unavailable"),))
    upstream = plant.WatchedModel(script, holds=lambda request: request.step.reader == HELD)
    payer = Payer("local", batch.id)
    return Attempt(resources, file.id, Fence("thread", epoch), payer, upstream, door(resources, upstream))


async def test_a_failure_waits_for_the_replies_that_are_on_their_way(attempt: Attempt) -> None:
    slow = attempt.call(HELD)
    await attempt.upstream.is_holding(1)
    refused = attempt.call("refused")
    while not (await attempt.holds())["cancelled"]:
        await asyncio.sleep(0.01)
    assert not refused.done()
    with pytest.raises(ModelUnavailable):
        await attempt.call("another")
    attempt.upstream.released.set()
    # as a graph does: the first failure cancels whatever is not done
    await asyncio.wait([slow, refused], return_when=asyncio.FIRST_EXCEPTION)
    assert (await slow).text
    assert isinstance(refused.exception(), ModelUnavailable)
    assert await attempt.holds() == {"committed": 1, "cancelled": 1}
    assert attempt.upstream.begun.total() == 2, "a call has left after the failure"
    # the next attempt is another one
    assert (await attempt.call("another")).text


async def test_another_attempt_is_not_held_up(attempt: Attempt) -> None:
    slow = attempt.call(HELD)
    await attempt.upstream.is_holding(1)
    other = replace(attempt, fence=None)
    with pytest.raises(ModelUnavailable):
        await asyncio.wait_for(other.call("refused"), 5)
    assert not slow.done()
    attempt.upstream.released.set()
    assert (await slow).text


@dataclass
class SlowBegin:
    """The ledger, whose holds are made and told late."""

    ledger: PostgresLedger
    made: asyncio.Event = field(default_factory=asyncio.Event)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> object:
        return getattr(self.ledger, name)

    async def begin(
        self, call: LedgerCall, *, dispatch: bool = False, fence: Fence | None = None
    ) -> Hold | Replayed | Underway:
        """As the ledger's, once it may be told."""
        began = await self.ledger.begin(call, dispatch=dispatch, fence=fence)
        self.made.set()
        await self.told.wait()
        return began


async def test_a_call_that_is_cancelled_before_it_left_costs_nothing(attempt: Attempt) -> None:
    ledger = SlowBegin(attempt.resources.ledger)
    attempt.door = door(replace(attempt.resources, ledger=ledger), attempt.upstream)
    call = attempt.call("any")
    await ledger.made.wait()
    assert await attempt.holds() == {"dispatched": 1}
    call.cancel()
    ledger.told.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await attempt.holds() == {"cancelled": 1}
    assert not attempt.upstream.begun

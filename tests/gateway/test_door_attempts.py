"""Calls side by side at the door that end differently: what has left is settled, the rest costs nothing."""

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
    """One attempt at a submission, which makes calls side by side; those of the reader `slow` are held."""

    resources: Resources
    file_id: str
    fence: Fence | None
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

    async def has(self, holds: dict[str, int]) -> None:
        """Wait until so many holds are in these states, and none in others."""
        async with asyncio.timeout(60):
            while await self.holds() != holds:
                await asyncio.sleep(0.01)

    async def holds(self) -> dict[str, int]:
        """How many holds are in each state."""
        rows = await self.resources.postgres.rows("SELECT state FROM ledger_holds")
        return Counter(row["state"] for row in rows)


@pytest.fixture
async def attempt(resources: Resources) -> Attempt:
    """An attempt whose upstream refuses the reader `refused`."""
    batch = await open_batch(resources, {"one.json": a_submission()}, exam=ONE_QUESTION)
    (file,) = await plant.files_of(resources, batch)
    await resources.postgres.run("UPDATE files SET state = 'queued' WHERE id = %s", [file.id])
    threads = PostgresThreads(resources.postgres)
    epoch = await threads.begin(AssessmentStart(file.id, 1, "thread", "workflow", "run"))
    assert epoch is not None
    script = Script(rules=(Rule("*/refused/1", fail="model_unavailable"),))
    upstream = plant.WatchedModel(script, holds=lambda request: request.step.reader == HELD)
    payer = Payer("local", batch.id)
    return Attempt(resources, file.id, Fence("thread", epoch), payer, upstream, door(resources, upstream))


async def test_a_failure_waits_for_the_replies_that_are_on_their_way(attempt: Attempt) -> None:
    slow = attempt.call(HELD)
    await attempt.upstream.is_holding(1)
    refused = attempt.call("refused")
    await attempt.has({"dispatched": 1, "cancelled": 1})
    attempt.upstream.released.set()
    # as a graph does: the first failure cancels whatever is not done
    await asyncio.wait([slow, refused], return_when=asyncio.FIRST_EXCEPTION)
    slow.cancel()
    assert slow.result().text
    with pytest.raises(ModelUnavailable):
        await refused
    assert await attempt.holds() == {"committed": 1, "cancelled": 1}


async def test_after_a_failure_nothing_new_starts_in_its_attempt(attempt: Attempt) -> None:
    slow = attempt.call(HELD)
    await attempt.upstream.is_holding(1)
    refused = attempt.call("refused")
    await attempt.has({"dispatched": 1, "cancelled": 1})
    another = attempt.call("another")
    await asyncio.sleep(0.1)
    assert not another.done()
    attempt.upstream.released.set()
    outcomes = await asyncio.gather(refused, another, return_exceptions=True)
    assert [type(each) for each in outcomes] == [ModelUnavailable] * 2
    assert (await slow).text
    assert attempt.upstream.begun.total() == 2
    # one that has waited for its turn all the while
    with pytest.raises(ModelUnavailable):
        await attempt.call("another")
    assert attempt.upstream.begun.total() == 2


async def test_other_attempts_are_not_held_up(attempt: Attempt) -> None:
    slow = attempt.call(HELD)
    await attempt.upstream.is_holding(1)
    with pytest.raises(ModelUnavailable):
        await asyncio.wait_for(replace(attempt, fence=None).call("refused"), 60)
    assert not slow.done()
    attempt.upstream.released.set()
    assert (await slow).text


@dataclass
class SlowBegin:
    """The ledger, whose holds are told late."""

    ledger: PostgresLedger
    may_tell: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> object:
        return getattr(self.ledger, name)

    async def begin(
        self, call: LedgerCall, *, dispatch: bool = False, fence: Fence | None = None
    ) -> Hold | Replayed | Underway:
        """As the ledger's, once it may be told."""
        began = await self.ledger.begin(call, dispatch=dispatch, fence=fence)
        await self.may_tell.wait()
        return began


async def test_a_call_that_is_cancelled_before_it_left_costs_nothing(attempt: Attempt) -> None:
    ledger = SlowBegin(attempt.resources.ledger)
    attempt.door = door(replace(attempt.resources, ledger=ledger), attempt.upstream)
    call = attempt.call("any")
    await attempt.has({"dispatched": 1})
    call.cancel()
    ledger.may_tell.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await attempt.holds() == {"cancelled": 1}
    assert not attempt.upstream.begun

"""The activity that diagnoses a batch: equal cases asked about once, epochs, refusals, and what it tells."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from temporalio.testing import ActivityEnvironment

from activities.diagnose import DiagnoseActivities, DiagnoseInput, DiagnoseResult
from agents.diagnosis.session import DiagnosisSession
from domain.batch import AgentState
from domain.completion import CompletionReply, CompletionRequest, OnChunk
from domain.diagnosis import BatchSummary, Diagnosis, DiagnosisStart, GatheredLogs
from domain.errors import BudgetExhausted, EpochSuperseded, LockTimeout
from domain.gateway import Caller, OnLimits
from domain.locks import WAIT_SECONDS, Lease
from domain.states import BatchState
from tests.agents.diagnosing import SECRET, FixedClock, Logs, ScriptedReplies, claim, conclusion, gathered

LINE = "download of chunk 3 failed: timeout"


@dataclass
class Store:
    """Batches, threads and diagnoses in memory: the ports `Summaries`, `DiagnosisThreads` and `Diagnoses`."""

    batches: dict[str, tuple[BatchSummary, Logs]] = field(default_factory=dict)
    states: dict[str, BatchState] = field(default_factory=dict)
    proposed: dict[str, Diagnosis] = field(default_factory=dict)
    restarts: list[str] = field(default_factory=list)
    superseded: bool = False

    async def read(self, batch_id: str, generation: int) -> BatchSummary:
        return self.batches[batch_id][0]

    async def logs(self, batch_id: str, generation: int) -> GatheredLogs:
        state = self.states.get(batch_id, BatchState.DIAGNOSING)
        return GatheredLogs(state, self.batches[batch_id][1].files(), SECRET)

    async def begin(self, start: DiagnosisStart) -> int | None:
        return None if self.superseded else 1

    async def of_signature(self, tenant_id: str, signature: str, model: str) -> tuple[str, Diagnosis] | None:
        for batch_id, diagnosis in self.proposed.items():
            if self.batches[batch_id][0].signature == signature and not diagnosis.reused_from:
                return batch_id, diagnosis
        return None

    async def propose(
        self, batch_id: str, generation: int, thread_id: str, epoch: int, diagnosis: Diagnosis
    ) -> None:
        self.proposed[batch_id] = diagnosis

    async def note_restart(self, batch_id: str, reason: str) -> None:
        self.restarts.append(reason)


@dataclass
class Texts:
    """What watchers hear, by batch."""

    said: defaultdict[str, str] = field(default_factory=lambda: defaultdict(str))

    @asynccontextmanager
    async def publishing(self, batch_id: str) -> AsyncIterator[Callable[[str], None]]:
        def say(text: str) -> None:
            self.said[batch_id] += text

        yield say


@dataclass
class ProcessLocks:
    """Locks within this process, the port `Locks`."""

    held_now: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    @asynccontextmanager
    async def held(
        self, kind: str, subject_id: str, *, wait_seconds: float = WAIT_SECONDS
    ) -> AsyncIterator[Lease]:
        lock = self.held_now[f"{kind}:{subject_id}"]
        try:
            await asyncio.wait_for(lock.acquire(), min(wait_seconds, 0.2))
        except TimeoutError:
            raise LockTimeout("taken") from None
        try:
            yield Lease(subject_id, 30.0)
        finally:
            lock.release()


class StatesShown:
    """Live states, the port `StatePublisher`."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, AgentState]] = []

    async def publish(self, workflow_id: str, submission_id: str, state: AgentState) -> None:
        self.shown.append((submission_id, state))


class Broke:
    """A gateway whose tenant has no money left."""

    async def complete(
        self,
        request: CompletionRequest,
        *,
        caller: Caller | None = None,
        on_chunk: OnChunk | None = None,
        on_limits: OnLimits | None = None,
    ) -> CompletionReply:
        raise BudgetExhausted("No money is left.", scope="batch", missing_nanodollars=5)


@dataclass
class Desk:
    """The activity over stores in memory, and the batches that it is given."""

    store: Store = field(default_factory=Store)
    texts: Texts = field(default_factory=Texts)
    locks: ProcessLocks = field(default_factory=ProcessLocks)
    states: StatesShown = field(default_factory=StatesShown)
    models: ScriptedReplies = field(
        default_factory=lambda: ScriptedReplies(
            {"conclude/1": conclusion(claim("download", ("F1", 1, LINE)))}
        )
    )

    def add(self, batch_id: str, *lines: str, signature: str = "5" * 64) -> None:
        summary, logs = gathered({"V1": lines}, batch_id=batch_id, signature=signature)
        self.store.batches[batch_id] = summary, logs

    async def diagnose(self, batch_id: str, models: Broke | None = None) -> DiagnoseResult:
        agent = DiagnosisSession(
            models=models or self.models,
            lines=self.store.batches[batch_id][1],
            open_saver=lambda epoch: InMemorySaver(),
            clock=FixedClock(),
        )
        activities = DiagnoseActivities(
            threads=self.store,
            summaries=self.store,
            diagnoses=self.store,
            agent=agent,
            texts=self.texts,
            locks=self.locks,
            states=self.states,
        )
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, workflow_run_id=f"run-{batch_id}")
        argument = DiagnoseInput("tenant-1", batch_id, 1, "openai:gpt", "first")
        return await environment.run(activities.diagnose_batch, argument)


async def test_equal_cases_at_once_are_asked_about_once_and_each_has_its_own_lines() -> None:
    desk = Desk()
    for number in range(4):
        desk.add(f"b{number}", LINE)
    results = await asyncio.gather(*(desk.diagnose(f"b{number}") for number in range(4)))
    assert len({each.step.file_id for each in desk.models.requests}) == 1
    first = next(number for number, each in enumerate(results) if not each.reused_from)
    assert [each.reused_from for each in results].count(f"b{first}") == 3
    assert {each.verdict for each in results} == {"root_cause"}
    assert sorted(each.spent_nanodollars for each in results) == [0, 0, 0, 14]
    assert {each.stage for _, each in desk.states.shown} >= {"done"}
    for number in range(4):
        diagnosis = desk.store.proposed[f"b{number}"]
        assert diagnosis.findings[0].evidence[0].text == LINE
        assert "cause" in desk.texts.said[f"b{number}"] or "found it" in desk.texts.said[f"b{number}"]


async def test_another_case_and_one_without_its_lines_are_asked_about() -> None:
    desk = Desk()
    desk.add("b1", LINE)
    desk.add("b2", LINE, signature="6" * 64)
    # the same signature, and none of the anomalies that the finding rests on
    desk.add("b3", LINE)
    summary, logs = desk.store.batches["b3"]
    other = tuple(replace(each, code="T-77") for each in summary.anomalies)
    desk.store.batches["b3"] = replace(summary, anomalies=other), logs
    results = [await desk.diagnose(each) for each in ("b1", "b2", "b3")]
    assert [each.reused_from for each in results] == ["", "", ""]
    assert len({each.step.file_id for each in desk.models.requests}) == 3


async def test_an_attempt_that_is_not_the_newest_and_a_batch_that_has_ended_ask_nobody() -> None:
    desk = Desk(store=Store(superseded=True))
    desk.add("b1", LINE)
    with pytest.raises(EpochSuperseded):
        await desk.diagnose("b1")
    desk.store.states["b1"] = BatchState.CANCELLED
    assert (await desk.diagnose("b1")).ended == "cancelled"
    assert (desk.models.requests, desk.store.proposed) == ([], {})


async def test_without_money_nothing_is_proposed_and_the_lock_is_free_for_the_next() -> None:
    desk = Desk()
    desk.add("b1", LINE)
    with pytest.raises(BudgetExhausted):
        await desk.diagnose("b1", Broke())
    assert desk.store.proposed == {}
    assert (await desk.diagnose("b1")).verdict == "root_cause"


async def test_an_attempt_after_its_own_proposal_does_not_repeat_itself() -> None:
    desk = Desk()
    desk.add("b1", LINE)
    await desk.diagnose("b1")
    assert (await desk.diagnose("b1")).reused_from == ""
    assert desk.models.upstream_calls == 2, "the second attempt was answered from the journal"


async def test_a_case_that_is_being_diagnosed_for_too_long_is_tried_again_later() -> None:
    desk = Desk()
    desk.add("b1", LINE)
    async with desk.locks.held("diagnosis", f"tenant-1/openai:gpt/{'5' * 64}"):
        with pytest.raises(LockTimeout) as refused:
            await desk.diagnose("b1")
    assert refused.value.retryable

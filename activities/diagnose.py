"""Diagnose one gathered batch of logs: the agent's whole run is this one activity (B7.2)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from temporalio import activity

from activities.reporting import StateReporter, beside
from domain.batch import AgentState
from domain.completion import Payer
from domain.diagnosis import (
    BatchSummary,
    Diagnoses,
    Diagnosis,
    DiagnosisAgent,
    DiagnosisOutcome,
    DiagnosisRun,
    DiagnosisStart,
    DiagnosisTexts,
    DiagnosisThreads,
    GatheredLogs,
    Summaries,
)
from domain.errors import EpochSuperseded
from domain.locks import Locks
from domain.ports import StatePublisher
from domain.states import BATCH_MACHINE

#: how long an equal case's diagnosis is waited for; then the attempt ends, and the next one waits on
EQUAL_CASE_SECONDS = 300.0


@dataclass
class DiagnoseInput:
    """Which batch, in which generation, by which model; ids only."""

    tenant_id: str
    batch_id: str
    generation: int
    model: str
    first_execution_run_id: str
    trace_id: str = ""
    #: the workflow hears of the agent's state at most once in this time, by its signal `agent_state`
    state_interval_seconds: float = 30.0


@dataclass
class DiagnoseResult:
    """Where the agent ended; `ended` is set instead if the batch had reached a final state before."""

    state: AgentState = field(default_factory=AgentState)
    ended: str | None = None
    #: a value of `domain.diagnosis.Verdict`
    verdict: str = ""
    #: the earlier batch whose diagnosis was reused; empty for none
    reused_from: str = ""
    spent_nanodollars: int = 0


@dataclass(frozen=True)
class DiagnoseActivities:
    """The diagnosis agent's activity and what it needs."""

    threads: DiagnosisThreads
    summaries: Summaries
    diagnoses: Diagnoses
    agent: DiagnosisAgent
    texts: DiagnosisTexts
    locks: Locks
    states: StatePublisher

    @activity.defn
    async def diagnose_batch(self, input: DiagnoseInput) -> DiagnoseResult:
        """Diagnose the batch, resuming an earlier attempt's work, and propose the diagnosis.

        Raises `EpochSuperseded`, `LockTimeout`, and what the agent and its calls raise.
        """
        reporter = StateReporter(self.states, input.batch_id, input.state_interval_seconds)
        # from the first wait to the last: whatever is slow, this worker is alive
        async with beside(reporter.beat):
            return await self._diagnose(input, reporter)

    async def _diagnose(self, input: DiagnoseInput, reporter: StateReporter) -> DiagnoseResult:
        gathered = await self.summaries.logs(input.batch_id, input.generation)
        if gathered.state in BATCH_MACHINE.final:
            return DiagnoseResult(ended=gathered.state)
        start = _start(input)
        epoch = await self.threads.begin(start)
        if epoch is None:
            raise EpochSuperseded(
                f"Batch {input.batch_id} has ended in generation {input.generation}, or has a newer attempt."
            )
        async with beside(reporter.tell), self.texts.publishing(input.batch_id) as say:
            summary = await self.summaries.read(input.batch_id, input.generation)
            run = _run(input, start.thread_id, epoch, summary, gathered)
            outcome = await self._once(run, reporter, say)
        await reporter.show(outcome.state)
        diagnosis = outcome.diagnosis
        return DiagnoseResult(
            outcome.state,
            verdict=diagnosis.verdict,
            reused_from=diagnosis.reused_from,
            spent_nanodollars=diagnosis.cost_nanodollars,
        )

    async def _once(
        self, run: DiagnosisRun, reporter: StateReporter, say: Callable[[str], None]
    ) -> DiagnosisOutcome:
        """Diagnose and propose; of equal cases one at a time, so that the others find what it says (B7.3)."""
        if not (run.summary.signature and run.summary.anomalies):
            return await self._proposed(run, await self._asked(run, reporter, say))
        case = f"{run.payer.tenant_id}/{run.model}/{run.summary.signature}"
        async with self.locks.held("diagnosis", case, wait_seconds=EQUAL_CASE_SECONDS):
            diagnosis = await self._repeated(run)
            if diagnosis is None:
                return await self._proposed(run, await self._asked(run, reporter, say))
            say(diagnosis.summary)
            state = AgentState(thread_id=run.thread_id, node="reuse", stage="done", percentage=100.0)
            return await self._proposed(run, DiagnosisOutcome(diagnosis, state))

    async def _repeated(self, run: DiagnosisRun) -> Diagnosis | None:
        """The newest diagnosis of an equal case, if it can be said of this batch, too."""
        known = await self.diagnoses.of_signature(run.payer.tenant_id, run.summary.signature, run.model)
        if known is None or known[0] == run.batch_id:
            return None
        diagnosis = await self.agent.reuse(run, *known)
        outcome = "reused" if diagnosis is not None else "evidence_missing"
        log = structlog.get_logger("assay.agents")
        log.info("equal_case_found", earlier_batch_id=known[0], outcome=outcome)
        return diagnosis

    async def _asked(
        self, run: DiagnosisRun, reporter: StateReporter, say: Callable[[str], None]
    ) -> DiagnosisOutcome:
        """What the agent says, from its last durable step on."""
        restarts: list[str] = []
        outcome = await self.agent.diagnose(
            run,
            on_state=reporter.note,
            on_restart=restarts.append,
            on_delta=say,
            draining=activity.is_worker_shutdown,
        )
        for reason in restarts:
            structlog.get_logger("assay.agents").warning("agent_restarted", reason=reason)
            await self.diagnoses.note_restart(run.batch_id, reason)
        return outcome

    async def _proposed(self, run: DiagnosisRun, outcome: DiagnosisOutcome) -> DiagnosisOutcome:
        await self.diagnoses.propose(
            run.batch_id, run.generation, run.thread_id, run.epoch, outcome.diagnosis
        )
        return outcome


def _start(input_: DiagnoseInput) -> DiagnosisStart:
    info = activity.info()
    return DiagnosisStart(
        batch_id=input_.batch_id,
        generation=input_.generation,
        thread_id=info.workflow_run_id or "",
        workflow_id=info.workflow_id or "",
        first_execution_run_id=input_.first_execution_run_id,
        scheduled_at=info.current_attempt_scheduled_time,
    )


def _run(
    input_: DiagnoseInput, thread_id: str, epoch: int, summary: BatchSummary, gathered: GatheredLogs
) -> DiagnosisRun:
    return DiagnosisRun(
        thread_id=thread_id,
        epoch=epoch,
        batch_id=input_.batch_id,
        generation=input_.generation,
        model=input_.model,
        summary=summary,
        logs=gathered.logs,
        payer=Payer(tenant_id=input_.tenant_id, batch_id=input_.batch_id),
        secret=gathered.tenant_secret,
        trace_id=input_.trace_id,
    )

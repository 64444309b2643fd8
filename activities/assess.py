"""Assess one submission: the agent's whole run is this one activity (station 4)."""

from dataclasses import dataclass, field

import structlog
from temporalio import activity

from activities.reporting import StateReporter, beside
from domain.batch import AgentState
from domain.completion import Payer
from domain.errors import EpochSuperseded
from domain.ports import (
    AgentRun,
    AssessmentStart,
    Exams,
    GradingAgent,
    Objects,
    StatePublisher,
    SubmissionReader,
    Submissions,
    Threads,
)
from domain.states import FILE_MACHINE


@dataclass
class AssessInput:
    """Which submission, in which generation, by which model; ids only."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    model: str
    first_execution_run_id: str
    trace_id: str = ""
    #: the workflow hears of the agent's state at most once in this time (G2.2)
    state_interval_seconds: float = 30.0


@dataclass
class AssessResult:
    """Where the agent ended; `ended` is set instead if the file had reached a final state before."""

    state: AgentState = field(default_factory=AgentState)
    ended: str | None = None
    spent_nanodollars: int = 0


@dataclass(frozen=True)
class AssessActivities:
    """The agent's activity and what it needs."""

    threads: Threads
    submissions: Submissions
    exams: Exams
    objects: Objects
    intake: SubmissionReader
    agent: GradingAgent
    states: StatePublisher

    @activity.defn
    async def assess_submission(self, input: AssessInput) -> AssessResult:
        """Grade the submission, resuming an earlier attempt's work, and propose the assessment."""
        reporter = StateReporter(self.states, input.file_id, input.state_interval_seconds)
        # from the first wait to the last: whatever is slow, this worker is alive
        async with beside(reporter.beat):
            return await self._assess(input, reporter)

    async def _assess(self, input: AssessInput, reporter: StateReporter) -> AssessResult:
        submission = await self.submissions.find(input.file_id)
        if submission.state in FILE_MACHINE.final:
            return AssessResult(ended=submission.state)
        info = activity.info()
        thread_id = info.workflow_run_id or ""
        epoch = await self.threads.begin(
            AssessmentStart(
                file_id=input.file_id,
                generation=input.generation,
                thread_id=thread_id,
                workflow_id=info.workflow_id or "",
                first_execution_run_id=input.first_execution_run_id,
                scheduled_at=info.current_attempt_scheduled_time,
            )
        )
        if epoch is None:
            raise EpochSuperseded(
                f"File {input.file_id} has ended in generation {input.generation}, or has a newer attempt."
            )
        async with beside(reporter.tell):
            exam = await self.exams.read(submission.exam_id, submission.rubric_version)
            content = await self.objects.read(submission.object_key)
            answers = await self.intake.read(submission.name, content, exam.questions)
            restarts: list[str] = []
            outcome = await self.agent.assess(
                AgentRun(
                    thread_id=thread_id,
                    epoch=epoch,
                    file_id=input.file_id,
                    generation=input.generation,
                    model=input.model,
                    exam=exam,
                    answers=answers,
                    payer=Payer(tenant_id=input.tenant_id, batch_id=input.batch_id),
                    secret=submission.tenant_secret,
                    trace_id=input.trace_id,
                ),
                on_state=reporter.note,
                on_restart=restarts.append,
                draining=activity.is_worker_shutdown,
            )
            for reason in restarts:
                structlog.get_logger("assay.agents").warning("agent_restarted", reason=reason)
                await self.submissions.note_restart(input.file_id, reason)
            await self.submissions.propose(
                input.file_id, input.generation, thread_id, epoch, outcome.assessment
            )
        await reporter.show(outcome.state)
        return AssessResult(outcome.state, spent_nanodollars=outcome.assessment.cost_nanodollars)

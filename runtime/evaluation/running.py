"""Grading the chosen answers through the same agent as in production, without any server."""

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from domain.assessment import QuestionResult
from domain.completion import CompletionReply, CompletionRequest, Payer
from domain.errors import AssayError, Defect, UnknownModel
from domain.exam import Exam
from domain.ports import AgentRun, GradingAgent, Models
from runtime.evaluation.questions import Task

#: as often as a batch's activity would try, for errors that trying again may help
MAX_ATTEMPTS = 3
_DEFAULT_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Graded:
    """An answer that was graded."""

    task: Task
    result: QuestionResult


@dataclass(frozen=True)
class Failure:
    """An answer that could not be graded, with the error's code and message."""

    task: Task
    code: str
    message: str


@dataclass
class Run:
    """What has been graded so far, and the time it took; `model_seconds` are summed over all calls."""

    graded: list[Graded] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    model_seconds: float = 0.0
    calls: int = 0
    interrupted: bool = False


class _Clock:
    def now(self) -> datetime:
        """The present moment, in UTC."""
        return datetime.now(UTC)


@dataclass
class _TimedModels:
    """Another door's replies, and how long they took."""

    behind: Models
    run: Run

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The reply of the model behind."""
        begun = time.perf_counter()
        try:
            return await self.behind.complete(request)
        finally:
            self.run.model_seconds += time.perf_counter() - begun
            self.run.calls += 1


async def grade_answers(
    tasks: Sequence[Task],
    models: Models,
    *,
    model: str,
    concurrency: int,
    on_progress: Callable[[Run], None],
) -> Run:
    """Grade every answer, `concurrency` at once; one that fails is counted, and a cancellation ends the run.

    Raises `UnknownModel`, which would be the end of every answer.
    """
    run = Run()
    agent = _agent(_TimedModels(models, run))
    waiting = iter(tasks)
    begun = time.perf_counter()
    workers = [
        asyncio.create_task(_work(waiting, agent, model, run, on_progress)) for _ in range(concurrency)
    ]
    try:
        await asyncio.gather(*workers)
    except asyncio.CancelledError:
        # what has been graded and paid for is worth showing
        run.interrupted = True
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    run.seconds = time.perf_counter() - begun
    # in the order of the set: figures and lists are then the same whoever finished first
    place = {id(task): index for index, task in enumerate(tasks)}
    run.graded.sort(key=lambda each: place[id(each.task)])
    run.failures.sort(key=lambda each: place[id(each.task)])
    return run


def _agent(models: Models) -> GradingAgent:
    # only plain data may be in a checkpoint, as in a worker; LangGraph reads this at its import
    os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"
    from langgraph.checkpoint.memory import InMemorySaver

    from agents.session import GradingSession

    # a saver a run: it is gone with its run
    return GradingSession(models=models, open_saver=lambda _: InMemorySaver(), clock=_Clock())


async def _work(
    waiting: Iterator[Task], agent: GradingAgent, model: str, run: Run, on_progress: Callable[[Run], None]
) -> None:
    for task in waiting:
        try:
            run.graded.append(Graded(task, await _grade(task, agent, model)))
        except UnknownModel:
            raise
        except AssayError as error:
            run.failures.append(Failure(task, error.code, error.message))
        except Exception as error:  # noqa: BLE001  # one answer must not take the others' results with it
            run.failures.append(Failure(task, Defect.code, f"{type(error).__name__}: {error}"))
        on_progress(run)


async def _grade(task: Task, agent: GradingAgent, model: str) -> QuestionResult:
    """The answer's result as a submission to an exam of this one question."""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        name = f"evaluation-{task.answer.line}-{attempt}"
        run = AgentRun(
            thread_id=name,
            epoch=1,
            file_id=name,
            generation=1,
            model=model,
            exam=Exam(task.label, (task.question,)),
            answers={task.question.id: task.answer.answer},
            payer=Payer(),
            # marks off student text in prompts: nobody knows it, and no reply is kept under it
            secret=secrets.token_bytes(32),
        )
        try:
            outcome = await agent.assess(
                run, on_state=lambda _: None, on_restart=lambda _: None, draining=lambda: False
            )
        except AssayError as error:
            if not error.retryable or attempt == MAX_ATTEMPTS:
                raise
            await asyncio.sleep(error.retry_after_seconds or _DEFAULT_WAIT_SECONDS)
        else:
            return outcome.assessment.questions[0]
    raise Defect("An answer was tried without an outcome.")

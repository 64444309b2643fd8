"""An exam with every type of question, and graded runs of it on the scripted model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agents.session import GradingSession
from domain.batch import AgentState
from domain.completion import Payer
from domain.exam import Criterion, Exam, Question, QuestionType
from domain.ports import AgentOutcome, AgentRun
from gateway.scripted import Rule, Script, ScriptedModel

SECRET = b"the tenant's own secret, 32 bytes"
WHOLE = (Criterion("correct", 1.0, "The answer is correct."),)
IDEAS = (Criterion("c1", 2.0, "Names the cause."), Criterion("c2", 1.0, "Names the effect."))

EXAM = Exam(
    id="exam-1",
    rubric_version=3,
    title="Everything",
    questions=(
        Question("q1", QuestionType.MULTIPLE_CHOICE, "Pick:\nA) one\nB) two", 1.0, WHOLE, answer="B"),
        Question("q2", QuestionType.EXACT, "Name it.", 1.0, WHOLE, answer="DNS"),
        Question("q3", QuestionType.NUMERIC, "How long?", 1.0, WHOLE, answer="180", unit="ms"),
        Question("q4", QuestionType.SHORT_ANSWER, "Why?", 3.0, IDEAS, reference="Because."),
        Question("q5", QuestionType.ESSAY, "Discuss.", 2.5, IDEAS, reference="It depends."),
        Question("q6", QuestionType.CODE, "Write it.", 3.0, IDEAS, reference="print(1)"),
    ),
)
ANSWERS = {
    "q1": "b)",
    "q2": "dns",
    "q3": "180 ms",
    "q4": "Because it rains. The street gets wet.",
    "q5": "It depends on  the Weather.",
    "q6": "print(1)\nprint(2)",
}


class FixedClock:
    """A clock that stands still."""

    def now(self) -> datetime:
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Bench:
    """A thread's saver, a scripted model and what a run told."""

    model: ScriptedModel = field(default_factory=ScriptedModel)
    # strict: only what LANGGRAPH_STRICT_MSGPACK=true lets back in
    saver: InMemorySaver = field(
        default_factory=lambda: InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    )
    exam: Exam = EXAM
    answers: Mapping[str, str] = field(default_factory=lambda: dict(ANSWERS))
    states: list[AgentState] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    max_parallel: int = 8

    def script(self, *rules: Rule, **settings: Any) -> "Bench":
        """A new model with these rules; the thread stays."""
        self.model = ScriptedModel(Script(rules=rules, **settings))
        return self

    @property
    def run(self) -> AgentRun:
        return AgentRun(
            thread_id="thread-1",
            epoch=1,
            file_id="file-1",
            generation=2,
            model="scripted",
            exam=self.exam,
            answers=self.answers,
            payer=Payer("tenant-1", "batch-1"),
            secret=SECRET,
        )

    @property
    def config(self) -> dict[str, Any]:
        return {"configurable": {"thread_id": "thread-1", "checkpoint_ns": ""}}

    async def assess(
        self,
        *,
        draining: Callable[[], bool] = lambda: False,
        on_state: Callable[[AgentState], None] | None = None,
        model: str = "scripted",
    ) -> AgentOutcome:
        session = GradingSession(
            models=self.model,
            open_saver=lambda epoch: self.saver,
            clock=FixedClock(),
            max_parallel=self.max_parallel,
        )
        return await session.assess(
            replace(self.run, model=model),
            on_state=on_state or self.states.append,
            on_restart=self.restarts.append,
            draining=draining,
        )

    def calls(self, question_id: str) -> list[str]:
        """The keys of the calls begun for a question, each as often as it was begun."""
        return sorted(key for key in self.model.begun.elements() if f"/{question_id}/" in key)


@pytest.fixture
def bench() -> Bench:
    return Bench()

"""What a grading thread remembers, what its nodes are given, and what a valid state looks like."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypedDict

from agents.boundary import BatchSeen, Boundary, Heard, merge_events
from domain.assessment import Assessment, QuestionResult, question_result_from_document, sum_points
from domain.completion import DEFAULT_MAX_TOKENS, Fence, Payer
from domain.errors import CorruptCheckpoint
from domain.exam import Exam, Question, QuestionType
from domain.identity import LogicalStep
from domain.ports import AgentRun, Models

CLOSED_SPECIALIST = "closed_question"
#: the nodes that ask a model, one for each type of open question
OPEN_SPECIALISTS = (QuestionType.SHORT_ANSWER.value, QuestionType.ESSAY.value, QuestionType.CODE.value)


class Entry(TypedDict):
    """One question's place in the state: its result as plain data and how its evidence stands."""

    result: dict[str, Any]
    #: model calls made for this question so far; the next call's number is one more
    calls: int
    repaired: bool


class Total(TypedDict):
    """What the whole submission earned; present once the graph has finished."""

    score: float
    max_score: float


def merge_results(known: dict[str, Entry], new: dict[str, Entry]) -> dict[str, Entry]:
    """The entries by question id; a newer one replaces its question's older one."""
    return {**known, **new}


class GradingState(TypedDict, total=False):
    """Ids, the plan and results; answers and the exam stay outside (they would be stored every step).

    `external_events` and `batch` are what the graph has heard from outside at the beginning of a step.
    """

    exam_id: str
    rubric_version: int
    model: str
    #: specialist by question id
    plan: dict[str, str]
    results: Annotated[dict[str, Entry], merge_results]
    #: by generation and event id
    external_events: Annotated[dict[str, Heard], merge_events]
    batch: BatchSeen
    total: Total


class Task(TypedDict):
    """One question for one specialist; `previous` is there when its evidence has to be repaired."""

    question_id: str
    previous: Entry | None


@dataclass(frozen=True)
class Context:
    """What the nodes of one run may use, none of it stored with the thread."""

    exam: Exam
    answers: Mapping[str, str]
    models: Models
    model: str
    file_id: str
    generation: int
    #: bounds the model calls that run at once
    slots: asyncio.Semaphore
    payer: Payer
    #: the tenant's: it makes the marks that fence student text off
    secret: bytes = field(repr=False)
    #: what a reply may have at least
    max_tokens: int = DEFAULT_MAX_TOKENS
    #: the attempt on whose behalf calls are made
    fence: Fence | None = None
    trace_id: str = ""
    #: where the run hears from outside
    boundary: Boundary = field(default_factory=Boundary)

    def answer(self, question_id: str) -> str:
        """The student's text, empty where there is none."""
        return self.answers.get(question_id, "")

    def step(self, question_id: str) -> LogicalStep:
        """What the model calls of this question are for."""
        return LogicalStep(self.file_id, self.generation, question_id, "all", "first")


def initial_state(run: AgentRun) -> GradingState:
    """The input of a thread that starts afresh."""
    return {"exam_id": run.exam.id, "rubric_version": run.exam.rubric_version, "model": run.model}


def specialist_for(question: Question) -> str:
    """The node that grades questions of this type."""
    return CLOSED_SPECIALIST if question.type.closed else question.type.value


def plan_for(exam: Exam) -> dict[str, str]:
    """The specialist of every question, in the exam's order."""
    return {question.id: specialist_for(question) for question in exam.questions}


def entry_for(result: QuestionResult, *, calls: int = 0, repaired: bool = False) -> Entry:
    """The result as the state holds it."""
    document = asdict(result)
    # msgpack gives lists back for tuples: the state reads the same before and after a checkpoint
    document["criteria"] = list(document["criteria"])
    document["review_reasons"] = list(document["review_reasons"])
    return {"result": document, "calls": calls, "repaired": repaired}


def result_of(entry: Entry) -> QuestionResult:
    """The result that `entry_for` was given."""
    return question_result_from_document(entry["result"])


def assessment_of(state: GradingState, exam: Exam) -> Assessment:
    """The assessment that the state's results add up to."""
    return Assessment(
        exam_id=exam.id,
        rubric_version=exam.rubric_version,
        model=state["model"],
        questions=tuple(result_of(state["results"][question.id]) for question in exam.questions),
    )


def check_state(values: Mapping[str, Any], run: AgentRun) -> None:
    """Raise `CorruptCheckpoint` unless the stored values are a state of this run's graph."""
    expected = initial_state(run)
    for name in ("exam_id", "rubric_version", "model"):
        if values.get(name) != expected[name]:
            raise CorruptCheckpoint(f"{name}: {values.get(name)!r} instead of {expected[name]!r}.")
    if values.get("plan") != plan_for(run.exam):
        raise CorruptCheckpoint("plan: missing, or not the plan of this exam.")
    check_results(values.get("results"), run.exam)
    check_heard(values)
    if "total" in values:
        _check_total(values, run)


def check_results(results: object, exam: Exam) -> None:
    """Raise `CorruptCheckpoint` unless these are entries of the exam's questions, in bounds."""
    if not isinstance(results, Mapping):
        raise CorruptCheckpoint("results: no mapping.")
    known = {question.id: question for question in exam.questions}
    for question_id, entry in results.items():
        if question_id not in known:
            raise CorruptCheckpoint(f"results.{question_id}: the exam has no such question.")
        _check_entry(entry, known[question_id])


def check_heard(values: Mapping[str, Any]) -> None:
    """Raise `CorruptCheckpoint` unless what was heard from outside has its form."""
    events, batch = values.get("external_events", {}), values.get("batch", {})
    if not isinstance(events, Mapping) or not all(isinstance(each, Mapping) for each in events.values()):
        raise CorruptCheckpoint("external_events: no mapping of events.")
    if not isinstance(batch, Mapping):
        raise CorruptCheckpoint("batch: no mapping.")


def _check_entry(entry: Any, question: Question) -> None:
    where = f"results.{question.id}"
    try:
        result = result_of(entry)
        sound = (
            isinstance(entry["calls"], int)
            and isinstance(entry["repaired"], bool)
            and result.question_id == question.id
            and _same_rubric(result, question)
            and result.score == sum_points(question, result.criteria)
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCheckpoint(f"{where}: malformed ({type(error).__name__}: {error}).") from error
    if not sound:
        raise CorruptCheckpoint(f"{where}: does not fit the question's rubric.")


def _same_rubric(result: QuestionResult, question: Question) -> bool:
    """Whether the result's criteria are the question's, each with points within its bounds."""
    return len(result.criteria) == len(question.criteria) and all(
        graded.criterion_id == criterion.id
        and graded.max_points == criterion.points
        and 0 <= graded.points <= criterion.points
        for graded, criterion in zip(result.criteria, question.criteria, strict=True)
    )


def _check_total(values: Mapping[str, Any], run: AgentRun) -> None:
    missing = set(values["plan"]) - set(values.get("results", {}))
    if missing:
        raise CorruptCheckpoint(f"total: present, but {', '.join(sorted(missing))} has no result.")
    results: Iterable[Entry] = values["results"].values()
    score = round(sum(result_of(entry).score for entry in results), 2)
    if not isinstance(values["total"], Mapping) or values["total"].get("score") != score:
        raise CorruptCheckpoint(f"total: is not the {score:g} points that the results add up to.")

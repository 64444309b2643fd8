"""The nodes of the grading graph: the same output for the same state, answers and replies."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, Protocol

from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from agents.grading.closed import grade_closed
from agents.grading.replies import read_reply
from agents.grading.state import (
    CLOSED_SPECIALIST,
    Context,
    Entry,
    GradingState,
    Task,
    assessment_of,
    entry_for,
    plan_for,
    result_of,
)
from domain.assessment import (
    CriterionResult,
    QuestionResult,
    check_assessment,
    flag_missing_quotes,
    missing_quotes,
    restore_quote,
    review_reasons,
    sum_points,
)
from domain.completion import CompletionReply, CompletionRequest
from domain.errors import ModelReplyInvalid
from domain.exam import Question

#: an invalid reply is asked for once more, within one visit to a specialist
ATTEMPTS_PER_VISIT = 2

Update = dict[str, Any]


class Specialist(Protocol):
    """A node that grades one question."""

    async def __call__(self, state: Task, runtime: Runtime[Context]) -> Update:
        """The question's entry, as an update of the results."""
        ...


async def supervisor(state: GradingState, runtime: Runtime[Context]) -> Command[str]:
    """Choose a specialist for every question and set all of them to work."""
    plan = plan_for(runtime.context.exam)
    return Command(
        update={"plan": plan, "results": {}},
        goto=[Send(node, Task(question_id=each, previous=None)) for each, node in plan.items()],
    )


async def closed_question(state: Task, runtime: Runtime[Context]) -> Update:
    """Grade an exact, multiple-choice or numeric question by rules."""
    question = runtime.context.exam.question(state["question_id"])
    answer = runtime.context.answer(question.id)
    criteria = (grade_closed(question, answer),) if answer.strip() else unanswered(question)
    result = _result(question, criteria, CLOSED_SPECIALIST)
    return {"results": {question.id: entry_for(result)}}


def open_question(specialist: str) -> Specialist:
    """The node that grades one type of open question by asking a model."""

    async def grade(state: Task, runtime: Runtime[Context]) -> Update:
        question = runtime.context.exam.question(state["question_id"])
        if not runtime.context.answer(question.id).strip():
            entry = entry_for(_result(question, unanswered(question), specialist))
        elif state["previous"] is None:
            entry = await _grade_first(question, runtime.context, specialist)
        else:
            entry = await _repair(question, runtime.context, state["previous"])
        return {"results": {question.id: entry}}

    return grade


async def check_evidence(
    state: GradingState, runtime: Runtime[Context]
) -> Command[Literal["sum_points"] | str]:
    """Hold every quote against its answer: restore it, send it back once, or flag it."""
    changed: dict[str, Entry] = {}
    repairs: list[Send] = []
    for question_id, entry in state["results"].items():
        checked, needs_repair = check_entry(entry, runtime.context.answer(question_id))
        if checked != entry:
            changed[question_id] = checked
        if needs_repair:
            repairs.append(Send(state["plan"][question_id], Task(question_id=question_id, previous=checked)))
    return Command(update={"results": changed}, goto=repairs or "sum_points")


async def sum_totals(state: GradingState, runtime: Runtime[Context]) -> Update:
    """Add the points up in code and check the assessment against the rubric's bounds."""
    assessment = assessment_of(state, runtime.context.exam)
    check_assessment(assessment, runtime.context.exam, runtime.context.answers)
    return {"total": {"score": assessment.score, "max_score": assessment.max_score}}


def check_entry(entry: Entry, answer: str) -> tuple[Entry, bool]:
    """The entry with every quote that is there restored, and whether the others go back for repair."""
    result = result_of(entry)
    if not missing_quotes(answer, result.criteria):
        return entry, False
    restored = replace(result, criteria=tuple(_restore(each, answer) for each in result.criteria))
    needs_repair = bool(missing_quotes(answer, restored.criteria)) and not entry["repaired"]
    checked = restored if needs_repair else flag_missing_quotes(restored, answer)
    return entry_for(checked, calls=entry["calls"], repaired=entry["repaired"]), needs_repair


def _restore(criterion: CriterionResult, answer: str) -> CriterionResult:
    """The criterion with its quote as it stands in the answer, where only spaces or case differ."""
    if not missing_quotes(answer, [criterion]):
        return criterion
    return replace(criterion, quote=restore_quote(answer, criterion.quote) or criterion.quote)


def unanswered(question: Question) -> tuple[CriterionResult, ...]:
    """No points for no answer; nothing to be uncertain about."""
    return tuple(
        CriterionResult(criterion.id, 0.0, criterion.points, "No answer given.")
        for criterion in question.criteria
    )


async def _grade_first(question: Question, context: Context, specialist: str) -> Entry:
    criteria, replies = await _ask(question, context, calls=0, missing={})
    result = _result(question, criteria, specialist, replies)
    return entry_for(result, calls=len(replies))


async def _repair(question: Question, context: Context, previous: Entry) -> Entry:
    """Ask again with the quotes that are missing; only the criteria they belong to change."""
    before = result_of(previous)
    missing = missing_quotes(context.answer(question.id), before.criteria)
    again, replies = await _ask(question, context, calls=previous["calls"], missing=missing)
    criteria = tuple(
        new if old.criterion_id in missing else old for old, new in zip(before.criteria, again, strict=True)
    )
    after = _result(question, criteria, before.specialist, replies)
    result = replace(
        after,
        advisory=before.advisory or after.advisory,
        tokens_in=before.tokens_in + after.tokens_in,
        tokens_out=before.tokens_out + after.tokens_out,
    )
    return entry_for(result, calls=previous["calls"] + len(replies), repaired=True)


async def _ask(
    question: Question, context: Context, *, calls: int, missing: dict[str, str]
) -> tuple[tuple[CriterionResult, ...], list[CompletionReply]]:
    """The model's criteria and the replies they took; an invalid reply is asked for once more.

    Numbers continue after `calls`, which is in the state: a node that runs again after a crash
    asks under the same keys and is answered from the journal.
    """
    replies: list[CompletionReply] = []
    while True:
        request = CompletionRequest(
            step=context.step(question.id),
            call_number=calls + len(replies) + 1,
            model=context.model,
            question=question,
            answer=context.answer(question.id),
            missing_quotes=missing,
        )
        async with context.slots:
            replies.append(await context.models.complete(request))
        try:
            return read_reply(replies[-1].text, question), replies
        except ModelReplyInvalid as error:
            if len(replies) == ATTEMPTS_PER_VISIT:
                message = f"{question.id}: {error.message} (call {request.call_number})"
                raise ModelReplyInvalid(message, field=f"{question.id}.{error.field}") from error


def _result(
    question: Question,
    criteria: tuple[CriterionResult, ...],
    specialist: str,
    replies: Iterable[CompletionReply] = (),
) -> QuestionResult:
    replies = list(replies)
    return QuestionResult(
        question_id=question.id,
        score=sum_points(question, criteria),
        max_score=question.points,
        criteria=criteria,
        specialist=specialist,
        advisory=any(reply.advisory for reply in replies),
        review_reasons=review_reasons(criteria),
        tokens_in=sum(reply.usage.tokens_in for reply in replies),
        tokens_out=sum(reply.usage.tokens_out for reply in replies),
    )

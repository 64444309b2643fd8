"""The nodes of the grading graph: the same output for the same state, answers and replies."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from agents.grading.closed import grade_closed
from agents.grading.rendering import Fault, quotes_fault, render_request
from agents.grading.replies import fault_of, read_completion
from agents.grading.state import (
    CLOSED_SPECIALIST,
    OPEN_SPECIALISTS,
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
from domain.completion import CompletionReply, FinishReason
from domain.errors import ModelReplyInvalid
from domain.exam import Question
from domain.injection import SUSPECTED_INJECTION, suspected_injection

#: an invalid reply is asked for once more, within one visit to a specialist
ATTEMPTS_PER_VISIT = 2
#: characters of an answer that are searched for injections without leaving the event loop
MAX_READ_AT_ONCE = 20_000

Update = dict[str, Any]


class Specialist(Protocol):
    """A node that grades one question."""

    async def __call__(self, state: Task, runtime: Runtime[Context]) -> Update:
        """The question's entry, as an update of the results."""
        ...


async def supervisor(state: GradingState, runtime: Runtime[Context]) -> Command[str]:
    """Choose a specialist for every question and set all of them to work, unless a pause forbids it."""
    heard, pause = await runtime.context.boundary.hear(state)
    plan = plan_for(runtime.context.exam)
    update = {"plan": plan, "results": {}, **heard}
    if pause is not None and not set(plan.values()).isdisjoint(OPEN_SPECIALISTS):
        return runtime.context.boundary.stop(pause, update, "supervisor")
    sent = [Send(node, Task(question_id=each, previous=None)) for each, node in plan.items()]
    return Command(update=update, goto=sent)


async def closed_question(state: Task, runtime: Runtime[Context]) -> Update:
    """Grade an exact, multiple-choice or numeric question by rules."""
    question = runtime.context.exam.question(state["question_id"])
    answer = runtime.context.answer(question.id)
    criteria = (grade_closed(question, answer),) if answer.strip() else unanswered(question)
    result = _result(question, criteria, CLOSED_SPECIALIST, suspected=await _is_suspected(answer))
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
            entry = await _repair(question, runtime.context, specialist, state["previous"])
        return {"results": {question.id: entry}}

    return grade


async def check_evidence(
    state: GradingState, runtime: Runtime[Context]
) -> Command[Literal["sum_points"] | str]:
    """Hold every quote against its answer: restore it, send it back once, or flag it."""
    heard, pause = await runtime.context.boundary.hear(state)
    changed: dict[str, Entry] = {}
    repairs: list[Send] = []
    for question_id, entry in state["results"].items():
        checked, needs_repair = check_entry(entry, runtime.context.answer(question_id))
        if checked != entry:
            changed[question_id] = checked
        if needs_repair:
            repairs.append(Send(state["plan"][question_id], Task(question_id=question_id, previous=checked)))
    if pause is not None and repairs:
        return runtime.context.boundary.stop(pause, heard, "check_evidence")
    return Command(update={"results": changed, **heard}, goto=repairs or "sum_points")


async def sum_totals(state: GradingState, runtime: Runtime[Context]) -> Update:
    """Add the points up in code and check the assessment against the rubric's bounds."""
    heard, _ = await runtime.context.boundary.hear(state)
    assessment = assessment_of(state, runtime.context.exam)
    check_assessment(assessment, runtime.context.exam, runtime.context.answers)
    return {"total": {"score": assessment.score, "max_score": assessment.max_score}, **heard}


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


def withheld(question: Question) -> tuple[CriterionResult, ...]:
    """No points and a person's decision: the provider would not let its model answer."""
    return tuple(
        CriterionResult(
            criterion.id,
            0.0,
            criterion.points,
            "The model's provider withheld its reply; a person marks this answer.",
            confidence=0.0,
            cannot_assess=True,
        )
        for criterion in question.criteria
    )


async def _grade_first(question: Question, context: Context, specialist: str) -> Entry:
    asked = await _ask(question, context, specialist)
    suspected = asked.instructed or await _is_suspected(context.answer(question.id))
    result = _result(question, asked.criteria, specialist, asked.replies, suspected=suspected)
    return entry_for(result, calls=len(asked.replies))


async def _repair(question: Question, context: Context, specialist: str, previous: Entry) -> Entry:
    """Ask again for the quotes that are missing; only the criteria they belong to change."""
    before, answer = result_of(previous), context.answer(question.id)
    missing = tuple(missing_quotes(answer, before.criteria))
    fault = quotes_fault(previous, missing)
    asked = await _ask(question, context, specialist, calls=previous["calls"], faults=(fault,))
    criteria = tuple(
        new if old.criterion_id in missing else old
        for old, new in zip(before.criteria, asked.criteria, strict=True)
    )
    suspected = asked.instructed or SUSPECTED_INJECTION in before.review_reasons
    after = _result(question, criteria, specialist, asked.replies, suspected=suspected)
    result = replace(
        after,
        advisory=before.advisory or after.advisory,
        tokens_in=before.tokens_in + after.tokens_in,
        tokens_out=before.tokens_out + after.tokens_out,
        cost_nanodollars=before.cost_nanodollars + after.cost_nanodollars,
    )
    return entry_for(result, calls=previous["calls"] + len(asked.replies), repaired=True)


@dataclass(frozen=True)
class _Asked:
    """What a visit to a model brought; `instructed` when the model met an instruction in the answer."""

    criteria: tuple[CriterionResult, ...]
    replies: tuple[CompletionReply, ...]
    instructed: bool = False


async def _ask(
    question: Question,
    context: Context,
    specialist: str,
    *,
    calls: int = 0,
    faults: tuple[Fault, ...] = (),
) -> _Asked:
    """The model's criteria and the replies they took; a reply of no use is asked for once more.

    Numbers continue after `calls`, which is in the state: a node that runs again after a crash
    asks under the same keys and is answered from the journal.
    """
    replies: tuple[CompletionReply, ...] = ()
    while True:
        request = render_request(question, context, specialist, calls + len(replies) + 1, faults)
        async with context.slots:
            reply = await context.models.complete(request)
        replies = (*replies, reply)
        try:
            marking = read_completion(reply, question)
        except ModelReplyInvalid as error:
            if len(replies) < ATTEMPTS_PER_VISIT:
                faults = (*faults, fault_of(reply, error))
            elif all(each.finish_reason is FinishReason.FILTERED for each in replies):
                return _Asked(withheld(question), replies)
            else:
                message = f"{question.id}: {error.message} (call {request.call_number})"
                raise ModelReplyInvalid(message, field=f"{question.id}.{error.field}") from error
        else:
            return _Asked(marking.criteria, replies, marking.instruction_in_answer)


async def _is_suspected(answer: str) -> bool:
    # 0.2 ms for a usual answer, a second for a megabyte: heartbeats go on beside it
    if len(answer) > MAX_READ_AT_ONCE:
        return await asyncio.to_thread(suspected_injection, answer) is not None
    return suspected_injection(answer) is not None


def _result(
    question: Question,
    criteria: tuple[CriterionResult, ...],
    specialist: str,
    replies: Sequence[CompletionReply] = (),
    *,
    suspected: bool = False,
) -> QuestionResult:
    return QuestionResult(
        question_id=question.id,
        score=sum_points(question, criteria),
        max_score=question.points,
        criteria=criteria,
        specialist=specialist,
        advisory=any(reply.advisory for reply in replies),
        review_reasons=(*review_reasons(criteria), *([SUSPECTED_INJECTION] if suspected else [])),
        tokens_in=sum(reply.usage.tokens_in for reply in replies),
        tokens_out=sum(reply.usage.tokens_out for reply in replies),
        cost_nanodollars=sum(reply.cost_nanodollars for reply in replies),
    )

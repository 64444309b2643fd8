"""Property 35 on arbitrary replies of a model."""

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, reject, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from agents.session import GradingSession
from domain.assessment import Assessment, check_assessment, missing_quotes, sum_points
from domain.completion import Payer
from domain.errors import ModelReplyInvalid
from domain.exam import Criterion, Exam, Question, QuestionType
from domain.ports import AgentRun
from gateway.scripted import Rule, Script, ScriptedModel

OPEN = st.sampled_from([QuestionType.SHORT_ANSWER, QuestionType.ESSAY, QuestionType.CODE])
POINTS = st.sampled_from([0.5, 1.0, 1.5, 2.0])
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@st.composite
def questions(draw: st.DrawFn, question_id: str) -> Question:
    criteria = tuple(
        Criterion(f"c{index}", draw(POINTS), "An idea.") for index in range(draw(st.integers(1, 3)))
    )
    cap = draw(st.sampled_from([0.5, 2.0, 100.0]))
    return Question(question_id, draw(OPEN), "Discuss.", cap, criteria, reference="It depends.")


@st.composite
def quotes(draw: st.DrawFn, answer: str) -> str:
    """A stretch of the answer as it is, with other spaces or case, or any other text."""
    start = draw(st.integers(0, len(answer)))
    stretch = answer[start : draw(st.integers(start, len(answer)))]
    change = draw(st.sampled_from([str, str.upper, str.swapcase, lambda text: " \n ".join(text.split())]))
    return draw(st.one_of(st.just(change(stretch)), TEXT))


@st.composite
def replies(draw: st.DrawFn, question: Question, answer: str) -> str:
    """A reply that is mostly well formed, with points that are mostly within bounds."""
    entries: list[dict[str, Any]] = [
        {
            "criterion_id": criterion.id,
            "points": draw(
                st.sampled_from([0, criterion.points / 2, criterion.points, criterion.points / 3])
            ),
            "reason": draw(TEXT),
            "quote": draw(quotes(answer)),
            "confidence": draw(st.floats(0, 1)),
            "cannot_assess": draw(st.booleans()),
        }
        for criterion in question.criteria
    ]
    if draw(st.integers(0, 9)) == 0:
        entries[0]["points"] = draw(st.floats(allow_nan=False))
    return draw(st.one_of(st.just(json.dumps({"criteria": entries})), st.sampled_from(["full", "half"])))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Exam, dict[str, str], tuple[Rule, ...]]:
    exam_questions = tuple(draw(questions(f"q{index}")) for index in range(draw(st.integers(1, 3))))
    answers = {each.id: draw(TEXT) for each in exam_questions}
    rules = tuple(
        Rule(match=f"*/{each.id}/*/{call}", reply=draw(replies(each, answers[each.id])))
        for each in exam_questions
        for call in (1, 2, 3, 4)
    )
    return Exam("Any", exam_questions, id="exam-1"), answers, rules


async def assess(exam: Exam, answers: dict[str, str], rules: tuple[Rule, ...], clock: Any) -> Assessment:
    saver = InMemorySaver()
    session = GradingSession(
        models=ScriptedModel(Script(rules=rules)), open_saver=lambda epoch: saver, clock=clock
    )
    outcome = await session.assess(
        AgentRun(
            thread_id="thread-1",
            epoch=1,
            file_id="file-1",
            generation=1,
            model="scripted",
            exam=exam,
            answers=answers,
            payer=Payer(),
            secret=b"any",
        ),
        on_state=lambda state: None,
        on_restart=lambda reason: None,
        draining=lambda: False,
    )
    return outcome.assessment


class StandingClock:
    """A clock that stands still."""

    def now(self) -> datetime:
        return datetime(2026, 1, 2, tzinfo=UTC)


@settings(max_examples=100, deadline=None)
@given(cases())
async def test_accepted_quotes_stand_in_the_answer_and_totals_are_sums(case):
    """
    **功能: assay, 属性 35: 证据真实性**
    **验证: 需求 G8.2**

    Every accepted quote is a substring of the answer; points are within bounds; totals are sums.
    """
    exam, answers, rules = case
    try:
        assessment = await assess(exam, answers, rules, StandingClock())
    except ModelReplyInvalid:
        # nothing was accepted; such a case is not one of the hundred
        reject()
    check_assessment(assessment, exam, answers)
    for question, result in zip(exam.questions, assessment.questions, strict=True):
        assert not missing_quotes(answers[question.id], result.criteria)
        assert 0 <= result.score <= question.points
        assert result.score == sum_points(question, result.criteria)
    assert assessment.score == round(sum(each.score for each in assessment.questions), 2)

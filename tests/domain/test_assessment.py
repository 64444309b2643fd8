"""The rules of assessments: bounds, sums, quotes."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.assessment import (
    Assessment,
    CriterionResult,
    QuestionResult,
    assessment_from_document,
    assessment_to_document,
    check_assessment,
    flag_missing_quotes,
    missing_quotes,
    restore_quote,
    review_reasons,
    sum_points,
)
from domain.errors import AssessmentInvalid
from domain.exam import Criterion, Exam, Question, QuestionType

QUESTION = Question(
    "q1",
    QuestionType.ESSAY,
    "Why?",
    2.5,
    (Criterion("c1", 2.0, "Cause."), Criterion("c2", 1.0, "Effect.")),
    reference="Because.",
)
EXAM = Exam("T", (QUESTION,), id="e")
ANSWER = "Because it  rains.\nThe street is wet."
ANSWERS = {"q1": ANSWER}
GOOD = QuestionResult(
    "q1",
    2.5,
    2.5,
    (CriterionResult("c1", 2.0, 2.0, "Yes.", "it  rains"), CriterionResult("c2", 1.0, 1.0, "Yes.")),
    "essay",
)
POINTS = st.floats(0, 1000, allow_subnormal=False)
TEXT = st.text(max_size=10)
CRITERIA = st.builds(CriterionResult, TEXT, POINTS, POINTS, TEXT, TEXT, st.floats(0, 1), st.booleans())
RESULTS = st.builds(
    QuestionResult,
    TEXT,
    POINTS,
    POINTS,
    st.lists(CRITERIA, max_size=3).map(tuple),
    TEXT,
    st.booleans(),
    st.lists(TEXT, max_size=2).map(tuple),
    st.integers(0),
    st.integers(0),
)
ASSESSMENTS = st.builds(Assessment, TEXT, st.integers(1), TEXT, st.lists(RESULTS, max_size=3).map(tuple))


def assessed(*results: QuestionResult) -> Assessment:
    return Assessment("e", 1, "scripted", results)


def with_criterion(**changes: object) -> QuestionResult:
    first, second = GOOD.criteria
    return replace(GOOD, criteria=(replace(first, **changes), second))  # type: ignore[arg-type]


def test_a_good_assessment_passes() -> None:
    check_assessment(assessed(GOOD), EXAM, ANSWERS)


@pytest.mark.parametrize(
    "results",
    [
        (),
        (GOOD, GOOD),
        (replace(GOOD, question_id="q2"),),
        (replace(GOOD, score=2.4),),
        (replace(GOOD, score=3.0),),
        (replace(GOOD, score=float("nan")),),
        (with_criterion(points=-0.1),),
        (with_criterion(points=2.1),),
        (with_criterion(points=float("nan")),),
        (with_criterion(quote="it rains"),),
        # a result may not raise the rubric's own bounds, nor leave it
        (with_criterion(points=2.4, max_points=2.4),),
        (with_criterion(criterion_id="c9"),),
        (replace(GOOD, max_score=3.0),),
        (replace(GOOD, criteria=GOOD.criteria[:1], score=2.0),),
        (replace(GOOD, criteria=(GOOD.criteria[0], GOOD.criteria[0])),),
    ],
)
def test_what_breaks_the_rubric_is_invalid(results: tuple[QuestionResult, ...]) -> None:
    with pytest.raises(AssessmentInvalid):
        check_assessment(assessed(*results), EXAM, ANSWERS)


@given(
    cap=st.floats(0.001, 1000),
    points=st.lists(st.floats(0, 1000), max_size=5),
)
def test_a_sum_is_never_over_the_cap(cap: float, points: list[float]) -> None:
    question = replace(QUESTION, points=cap)
    criteria = [CriterionResult(f"c{n}", each, 1000, "") for n, each in enumerate(points)]
    assert 0 <= sum_points(question, criteria) <= cap
    assert sum_points(question, criteria) == pytest.approx(min(cap, sum(points)), abs=0.006)


@given(assessment=ASSESSMENTS)
def test_an_assessment_is_read_back_as_it_was_written(assessment: Assessment) -> None:
    text = json.dumps(assessment_to_document(assessment))
    assert assessment_from_document(json.loads(text)) == assessment


@given(answer=st.text(max_size=40), data=st.data())
def test_a_restored_quote_stands_in_the_answer(answer: str, data: st.DataObject) -> None:
    quote = data.draw(st.text(max_size=5) | st.just(" ".join(answer.upper().split())))
    restored = restore_quote(answer, quote)
    if restored is not None:
        assert restored in answer
        assert restored


def test_a_quote_is_restored_from_other_spaces_and_case() -> None:
    assert restore_quote(ANSWER, "because IT rains. the street") == "Because it  rains.\nThe street"
    assert restore_quote(ANSWER, "it snows") is None
    assert restore_quote(ANSWER, " ") is None
    assert restore_quote("a.c", "a.c") == "a.c"
    assert restore_quote("abc", "a.c") is None


def test_a_missing_quote_is_taken_out_and_flagged() -> None:
    result = with_criterion(quote="it snows")
    assert missing_quotes(ANSWER, result.criteria) == {"c1": "it snows"}
    flagged = flag_missing_quotes(result, ANSWER)
    assert flagged.criteria[0].quote == ""
    assert flagged.review_reasons == ("quote_not_in_answer:c1",)
    assert flag_missing_quotes(GOOD, ANSWER) is GOOD


def test_a_human_looks_at_what_is_uncertain() -> None:
    uncertain = CriterionResult("c1", 1, 1, "", confidence=0.49)
    unable = CriterionResult("c2", 0, 1, "", confidence=0.1, cannot_assess=True)
    sure = CriterionResult("c3", 1, 1, "", confidence=0.5)
    assert review_reasons([uncertain, unable, sure]) == ("low_confidence:c1", "cannot_assess:c2")
    assert replace(GOOD, criteria=(uncertain, sure)).confidence == 0.49
    assert replace(GOOD, criteria=()).confidence == 1.0


def test_totals_are_sums() -> None:
    assessment = assessed(
        replace(GOOD, score=0.1), replace(GOOD, score=0.2, review_reasons=("x",), advisory=True)
    )
    assert (assessment.score, assessment.max_score) == (0.3, 5.0)
    assert assessment.needs_review
    assert assessment.advisory

"""Assessments: points per criterion with checked evidence, added up in code."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from domain.errors import AssessmentInvalid
from domain.exam import Exam, Question

#: below this confidence a human looks at the submission (G8.4)
LOW_CONFIDENCE = 0.5


@dataclass(frozen=True)
class CriterionResult:
    """What one criterion earned and why; `quote` stands verbatim in the answer, or is empty.

    `confidence` is between 0 and 1. `cannot_assess` is a legal outcome: 0 points, for a human to decide.
    """

    criterion_id: str
    points: float
    max_points: float
    reason: str
    quote: str = ""
    confidence: float = 1.0
    cannot_assess: bool = False


@dataclass(frozen=True)
class QuestionResult:
    """What one question earned; `review_reasons` say why a human should look."""

    question_id: str
    score: float
    max_score: float
    criteria: tuple[CriterionResult, ...]
    specialist: str
    advisory: bool = False
    review_reasons: tuple[str, ...] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    cost_nanodollars: int = 0

    @property
    def confidence(self) -> float:
        """The confidence of the least certain criterion."""
        return min((criterion.confidence for criterion in self.criteria), default=1.0)


@dataclass(frozen=True)
class Assessment:
    """The outcome of grading one submission against one rubric version."""

    exam_id: str
    rubric_version: int
    model: str
    questions: tuple[QuestionResult, ...]

    @property
    def score(self) -> float:
        """The sum over the questions, each within its cap."""
        return round(sum(question.score for question in self.questions), 2)

    @property
    def max_score(self) -> float:
        """What a perfect submission earns."""
        return round(sum(question.max_score for question in self.questions), 2)

    @property
    def cost_nanodollars(self) -> int:
        """What its model calls cost, those that had to be repeated included."""
        return sum(question.cost_nanodollars for question in self.questions)

    @property
    def needs_review(self) -> bool:
        """Whether any question asks for a human."""
        return any(question.review_reasons for question in self.questions)

    @property
    def advisory(self) -> bool:
        """Whether any mark is only a model's proposal."""
        return any(question.advisory for question in self.questions)


def sum_points(question: Question, criteria: Iterable[CriterionResult]) -> float:
    """The criteria's points added up, at most the question's cap."""
    # the cap comes last: rounding must not lift a sum over it
    return min(question.points, round(sum(criterion.points for criterion in criteria), 2))


def missing_quotes(answer: str, criteria: Iterable[CriterionResult]) -> dict[str, str]:
    """The quotes that are no substring of the answer, by criterion id."""
    return {each.criterion_id: each.quote for each in criteria if each.quote and each.quote not in answer}


def restore_quote(answer: str, quote: str) -> str | None:
    """The stretch of the answer that the quote renders with other spaces or letter case; `None` if none."""
    words = quote.split()
    if not words:
        return None
    match = re.search(r"\s+".join(re.escape(word) for word in words), answer, re.IGNORECASE)
    return match.group(0) if match else None


def flag_missing_quotes(result: QuestionResult, answer: str) -> QuestionResult:
    """The result without the quotes that are not in the answer, and with the reason for a review."""
    missing = missing_quotes(answer, result.criteria)
    if not missing:
        return result
    criteria = tuple(
        replace(each, quote="") if each.criterion_id in missing else each for each in result.criteria
    )
    reasons = (*result.review_reasons, *(f"quote_not_in_answer:{each}" for each in sorted(missing)))
    return replace(result, criteria=criteria, review_reasons=reasons)


def review_reasons(criteria: Iterable[CriterionResult]) -> tuple[str, ...]:
    """Why a human should look at these criteria: one reason a criterion at most."""
    return tuple(
        f"cannot_assess:{each.criterion_id}" if each.cannot_assess else f"low_confidence:{each.criterion_id}"
        for each in criteria
        if each.cannot_assess or each.confidence < LOW_CONFIDENCE
    )


def check_assessment(assessment: Assessment, exam: Exam, answers: Mapping[str, str]) -> None:
    """Raise `AssessmentInvalid` unless bounds, sums and quotes hold (property 35's rules)."""
    graded = [question.question_id for question in assessment.questions]
    if graded != [question.id for question in exam.questions]:
        raise AssessmentInvalid(f"Graded questions {graded} are not the exam's.")
    for result in assessment.questions:
        question = exam.question(result.question_id)
        answer = answers.get(result.question_id, "")
        bounds = [(criterion.id, criterion.points) for criterion in question.criteria]
        if [(each.criterion_id, each.max_points) for each in result.criteria] != bounds:
            raise AssessmentInvalid(f"{result.question_id}: the criteria are not the rubric's.")
        if result.max_score != question.points:
            raise AssessmentInvalid(f"{result.question_id}: {result.max_score} is not the question's cap.")
        for criterion in result.criteria:
            if not 0 <= criterion.points <= criterion.max_points:
                where = f"{result.question_id}/{criterion.criterion_id}"
                raise AssessmentInvalid(f"{where}: {criterion.points} points are out of bounds.")
        if missing_quotes(answer, result.criteria):
            raise AssessmentInvalid(f"{result.question_id}: a quote is not in the answer.")
        if result.score != sum_points(question, result.criteria):
            raise AssessmentInvalid(f"{result.question_id}: {result.score} is not the sum of its criteria.")


def assessment_to_document(assessment: Assessment) -> dict[str, Any]:
    """The assessment as plain JSON data."""
    return asdict(assessment)


def question_result_from_document(document: Mapping[str, Any]) -> QuestionResult:
    """The question result that `asdict` wrote."""
    return QuestionResult(
        **{
            **document,
            "criteria": tuple(CriterionResult(**each) for each in document["criteria"]),
            "review_reasons": tuple(document["review_reasons"]),
        }
    )


def assessment_from_document(document: Mapping[str, Any]) -> Assessment:
    """The assessment that `assessment_to_document` wrote."""
    return Assessment(
        exam_id=document["exam_id"],
        rubric_version=document["rubric_version"],
        model=document["model"],
        questions=tuple(question_result_from_document(each) for each in document["questions"]),
    )

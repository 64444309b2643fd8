"""How far the marks go with the reference marks: stated with its intervals, never claimed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from domain.agreement import Agreement, SurerHalf, compare_surer_half, measure_agreement
from domain.exam import Question
from runtime.demo.classes import MARKED_BY, SchoolClass, student_of

#: the reference marks are in half points
HALF_POINT = 0.5
#: answers to questions of different maxima are compared as shares; a quarter is half a point of two
_SHARE_STEP = 0.25


@dataclass(frozen=True)
class MarkedAnswer:
    """One answer with both marks; `confidence` is that of the least certain criterion."""

    question: Question
    reference: float
    mark: float
    confidence: float


@dataclass(frozen=True)
class Comparison:
    """A class's agreement: by question id over the answers given, over totals, and by confidence."""

    questions: Mapping[str, Agreement]
    totals: Agreement | None
    surer_half: SurerHalf | None

    def document(self) -> dict[str, Any]:
        """As plain data, with who gave the reference marks."""
        return {"marked_by": MARKED_BY, **asdict(self)}


def compare(
    school_class: SchoolClass, results: Iterable[Mapping[str, Any]], answers: Mapping[str, Mapping[str, str]]
) -> Comparison:
    """The agreement on graded submissions; `answers` by submission, as they were read.

    Questions that were left blank count in the totals alone: nobody can disagree about them.
    """
    graded = [each for each in results if each["results"] and each["name"] in answers]
    marked = [each for result in graded for each in _marked(school_class, result, answers[result["name"]])]
    by_question = {question: _of(question, marked) for question in school_class.exam.questions}
    return Comparison(
        questions={each.id: _agreement(each, found) for each, found in by_question.items() if found},
        totals=_totals(school_class, graded),
        surer_half=_surer_half([each for each in marked if not each.question.type.closed]),
    )


def _totals(school_class: SchoolClass, graded: Sequence[Mapping[str, Any]]) -> Agreement | None:
    pairs = [
        (sum(school_class.marks[student_of(each["name"])].values()), float(each["score"])) for each in graded
    ]
    maximum = school_class.exam.max_points
    return measure_agreement(pairs, maximum=maximum, step=HALF_POINT) if pairs else None


def _of(question: Question, marked: Iterable[MarkedAnswer]) -> list[MarkedAnswer]:
    return [each for each in marked if each.question is question]


def _marked(
    school_class: SchoolClass, result: Mapping[str, Any], answers: Mapping[str, str]
) -> Iterator[MarkedAnswer]:
    reference = school_class.marks[student_of(result["name"])]
    for each in result["results"]:
        if answers.get(each["question_id"]):
            yield MarkedAnswer(
                school_class.exam.question(each["question_id"]),
                reference[each["question_id"]],
                float(each["score"]),
                min(criterion["confidence"] for criterion in each["criteria"]),
            )


def _agreement(question: Question, marked: Iterable[MarkedAnswer]) -> Agreement:
    pairs = [(each.reference, each.mark) for each in marked]
    # a closed question is right or wrong
    step = question.points if question.type.closed else HALF_POINT
    return measure_agreement(pairs, maximum=question.points, step=step)


def _surer_half(marked: Sequence[MarkedAnswer]) -> SurerHalf | None:
    return compare_surer_half(
        [(each.reference / each.question.points, each.mark / each.question.points) for each in marked],
        [each.confidence for each in marked],
        maximum=1.0,
        step=_SHARE_STEP,
        groups=[each.question.id for each in marked],
    )

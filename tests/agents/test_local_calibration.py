"""Graded examples move the embedded model's marks towards the teacher's, and nobody else's text out."""

import json

import pytest

from agents.grading.replies import read_reply
from agents.local.marking import mark_answer
from agents.local.model import answer_request
from domain.completion import CompletionRequest
from domain.exam import Criterion, GradedExample, Question, QuestionType
from domain.identity import LogicalStep

RIGHT = (
    "Warm air rises because it is less dense than the cold air around it.",
    "The heated air expands, gets lighter and goes up.",
    "Hot air weighs less for its volume, so it floats up.",
    "Its density drops when it is heated and so it climbs.",
)
WRONG = (
    "The balloon is pulled up by the sun.",
    "Because the fire pushes the balloon upwards with its flames.",
    "The wind carries it.",
    "Helium is lighter than air.",
)


def question(*examples: GradedExample, points: float = 4.0) -> Question:
    return Question(
        "q1",
        QuestionType.SHORT_ANSWER,
        "Why does a hot-air balloon rise?",
        points,
        (
            Criterion("c1", 2.0, "Says that heated air expands and is less dense."),
            Criterion("c2", 2.0, "Says that the lighter air is lifted by the heavier air around it."),
        ),
        reference="Air that is heated expands and becomes less dense. The denser air around it lifts it up.",
        examples=examples,
    )


def graded(answers: tuple[str, ...], points: float) -> tuple[GradedExample, ...]:
    return tuple(GradedExample(answer, points) for answer in answers)


def estimate(asked: Question, answer: str) -> float:
    return sum(mark.estimate for mark in mark_answer(asked, answer))


def confidence(asked: Question, answer: str) -> float:
    return min(mark.confidence for mark in mark_answer(asked, answer))


@pytest.mark.parametrize("answer", RIGHT[2:])
def test_a_right_answer_in_other_words_rises_with_right_answers_like_it(answer):
    others = (each for each in RIGHT if each != answer)
    assert estimate(question(*graded(tuple(others), 4.0)), answer) > estimate(question(), answer)


def test_a_wrong_answer_in_the_right_words_falls_with_wrong_answers_like_it():
    answer = "The heated air is lifted by the burner."
    like_it = ("The burner lifts the heated air.", "The heated air is lifted by the fire of the burner.")
    assert estimate(question(*graded(like_it, 0.0)), answer) < estimate(question(), answer)


def test_a_teacher_who_wants_something_else_is_followed():
    reversed_marks = question(*graded(RIGHT, 0.0), *graded(WRONG, 4.0))
    assert estimate(reversed_marks, "The sun pulls the balloon up.") > estimate(
        reversed_marks, "Heated air is less dense and so it rises."
    )


def test_points_by_criterion_calibrate_each_criterion_by_itself():
    answer = "The heated air expands and has a lower density."
    first_only = [GradedExample(each, 2.0, (("c1", 2.0), ("c2", 0.0))) for each in (*RIGHT, answer)]
    first, second = mark_answer(question(*first_only), answer)
    assert first.share == 1.0
    assert second.share == 0.0


def test_a_sum_alone_is_spread_over_the_criteria_within_the_cap():
    full = question(*(GradedExample(each, 3.0) for each in RIGHT), points=3.0)
    assert all(mark.share == 1.0 for mark in mark_answer(full, RIGHT[0]))


def test_examples_like_the_answer_make_the_model_surer():
    calibrated = question(*graded(RIGHT, 4.0), *graded(WRONG, 0.0))
    assert confidence(calibrated, RIGHT[0]) > confidence(question(), RIGHT[0])


def test_no_reply_holds_a_word_of_another_students_answer():
    secret = "Montgolfier xylophone quicksilver lifts the heated air."
    asked = question(*graded((secret, *RIGHT), 4.0), *graded(WRONG, 0.0))
    step = LogicalStep("f", 1, "q1", "all", "first")
    text = answer_request(CompletionRequest(step, 1, "local", asked, WRONG[1])).text
    assert not {"montgolfier", "xylophone", "quicksilver"} & set(text.lower().replace(",", " ").split())
    assert "9 answers that a teacher has marked" in json.loads(text)["criteria"][0]["reason"]
    assert all(result.quote in WRONG[1] for result in read_reply(text, asked))


def test_code_is_calibrated_too():
    code = Question(
        "q1",
        QuestionType.CODE,
        "Write a function area(radius).",
        1.0,
        (Criterion("c1", 1.0, "Returns pi times the radius squared."),),
        reference="def area(radius):\n    return math.pi * radius ** 2",
    )
    answer = "def area(r):\n    return 3.14 * r * r"
    example = GradedExample("def area(x):\n    return 3.14 * x * x", 1.0)
    helped = Question(**{**vars(code), "examples": (example,) * 3})
    assert estimate(helped, answer) > estimate(code, answer)

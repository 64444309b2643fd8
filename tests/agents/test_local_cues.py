"""What turns a statement around is seen: negation, opposites, numbers and their units."""

import pytest

from agents.local.cues import contradictions, denied_words, quantities, share_stated, sided_words
from agents.local.marking import mark_answer
from agents.local.words import tokens
from domain.assessment import LOW_CONFIDENCE
from domain.exam import Criterion, Question, QuestionType


def read_quantities(text: str) -> frozenset[tuple[float, str]]:
    return quantities(text, tokens(text))


@pytest.mark.parametrize(
    ("expected", "given", "share"),
    [
        ("It takes 180 ms.", "about 180 ms", 1.0),
        ("It takes 180 ms.", "0.18 s", 1.0),
        ("It takes 180 ms.", "180", 1.0),
        ("It takes 180 ms.", "180 kg", 0.0),
        ("It takes 180 ms.", "160 ms", 0.0),
        ("There are three messages.", "3 of them", 1.0),
        ("1,500 m", "1.5 km", 1.0),
        ("长度是 2 米", "200 厘米", 1.0),
        ("5 V and 2 A", "5 V", 0.5),
    ],
)
def test_quantities_are_the_same_in_another_unit(expected, given, share):
    assert share_stated(read_quantities(expected), read_quantities(given)) == share


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("The salt does not dissolve.", "dissolve"),
        ("It doesn't rise.", "rise"),
        ("It can’t rise.", "rise"),
        ("蓝光不会散射", "散射"),
        ("没有散射", "散射"),
    ],
)
def test_a_negation_denies_what_follows_it(text, word):
    assert word in denied_words(text, tokens(text))


@pytest.mark.parametrize("text", ["The salt dissolves.", "波长不同", "非常强的散射", "无论如何"])
def test_words_that_only_look_like_negations_deny_nothing(text):
    assert not denied_words(text, tokens(text))


def sides(text: str) -> frozenset[str]:
    return sided_words(text, tokens(text))


def test_an_opposite_contradicts_unless_the_expected_word_is_there_too():
    assert contradictions(sides("The pitch gets higher."), sides("The pitch gets lower.")) == 1
    assert contradictions(sides("The pitch gets higher."), sides("It is higher, not lower.")) == 0
    assert contradictions(sides("散射更强"), sides("散射更弱")) == 1


def question_of(prompt: str, reference: str) -> Question:
    criterion = Criterion("c1", 1.0, "The answer is correct.")
    return Question("q1", QuestionType.SHORT_ANSWER, prompt, 1.0, (criterion,), reference=reference)


SKY = question_of("为什么天空是蓝色的？", "波长较短的蓝光被空气分子散射得更强。")
PITCH = question_of("What happens to the pitch of a string?", "The tighter the string, the higher its pitch.")


@pytest.mark.parametrize(
    ("question", "right", "turned"),
    [
        (SKY, "蓝光的波长短，被空气分子散射得更强。", "蓝光的波长短，被空气分子散射得更弱。"),
        (SKY, "蓝光的波长短，被空气分子散射得更强。", "蓝光的波长短，不被空气分子散射。"),
        (PITCH, "If it is tighter the pitch is higher.", "If it is tighter the pitch is lower."),
        (PITCH, "A tighter string has a higher pitch.", "A tighter string does not have a higher pitch."),
    ],
)
def test_the_right_words_turned_around_are_worth_less_and_go_to_a_human(question, right, turned):
    (right_mark,), (turned_mark,) = (mark_answer(question, each) for each in (right, turned))
    assert turned_mark.share < right_mark.share
    assert not right_mark.turned
    assert turned_mark.turned
    assert turned_mark.confidence < LOW_CONFIDENCE


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (SKY, "空气分子散射蓝光比散射红光更强。", "因为大海是蓝色的，天空反射了它的颜色。"),
        (SKY, "短波长的光散射更强，所以是蓝光。", "我不知道。"),
        (PITCH, "A tighter string has a higher pitch.", "The string makes music when it is plucked."),
    ],
)
def test_a_right_answer_earns_more_than_a_wrong_one(question, right, wrong):
    (right_mark,), (wrong_mark,) = (mark_answer(question, each) for each in (right, wrong))
    assert right_mark.share > wrong_mark.share

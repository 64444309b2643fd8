"""Closed questions are decided by rules, and their quotes are what the student wrote."""

import pytest

from agents.grading.closed import grade_closed
from domain.exam import Criterion, Question, QuestionType

CRITERIA = (Criterion("correct", 2.0, "The answer is correct."),)
PROMPT = "Which layer?\nA) Application\nB) Transport\nC) Internet\nD) Link"


def question(type_: str, answer: str, **fields):
    return Question(
        "q1", QuestionType(type_), fields.pop("prompt", PROMPT), 2.0, CRITERIA, answer=answer, **fields
    )


def check(the_question: Question, answer: str, correct: bool):
    result = grade_closed(the_question, answer)
    assert result.points == (2.0 if correct else 0.0), result
    assert result.quote in answer
    assert result.quote
    return result


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("C", True), ("c", True), ("c)", True), ("(C)", True), ("C.", True), ("C) Internet", True),
        ("(c) Internet", True), ("Answer: C", True), ("The correct answer is C", True), ("Internet", True),
        ("I think it is C because of routing", True), ("答案：C", True), ("C、", True), ("Option c", True),
        ("The correct answer to this question is, in my opinion, answer C, the Internet layer.", True),
        ("B", False), ("B) Transport", False), ("A or C", False), ("Transport", False), ("no idea", False),
        ("C, D", False), ("A) Internet", False), ("CD", False),
    ],
)  # fmt: skip
def test_a_choice_is_read_however_it_is_written(answer, correct):
    check(question("multiple_choice", "C"), answer, correct)


@pytest.mark.parametrize("answer", ["A, C", "AC", "C and A", "(A) and (C)", "A/C", "A、C", "A & C"])
def test_several_letters_are_one_choice(answer):
    check(question("multiple_choice", "A, C"), answer, True)
    check(question("multiple_choice", "A"), answer, False)


def test_a_letter_that_contradicts_its_text_is_doubtful():
    assert check(question("multiple_choice", "C"), "C) Transport", True).confidence < 0.5


def test_an_unreadable_choice_goes_to_a_human():
    assert check(question("multiple_choice", "C"), "hard to say", False).confidence < 0.5


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("DNS", True), (" dns. ", True), ("Domain-Name  System!", True), ("DNS (Domain Name System)", True),
        ("DNS server", True), ("D N S", False), ("DHCP", False), ("not DNS", False), ("DNS or DHCP", False),
        ("Something with DNS but I would rather say that it could be anything else too", False),
    ],
)  # fmt: skip
def test_an_exact_answer_ignores_case_spaces_and_punctuation(answer, correct):
    check(question("exact", "DNS", accept=("domain name system",)), answer, correct)


def test_punctuation_counts_where_there_is_nothing_else():
    check(question("exact", "->"), "->", True)
    check(question("exact", "->"), "::", False)


def test_chinese_exact_answers_match():
    check(question("exact", "域名系统"), "域名系统。", True)


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("180 ms", True), ("180ms", True), ("180", True), ("180.0 ms", True), ("180,4 ms", True),
        ("0.18 s", True),
        ("180 milliseconds", True), ("180 Milliseconds", True), ("180毫秒", True), ("180 000 µs", True),
        ("t = 160 ms + 20 ms = 180 ms", True), ("180 ms (160 ms to send, 20 ms to travel)", True),
        ("16 000 000 bit / 100 000 000 bit/s = 0.16 s. Plus propagation 20 ms. So 180 ms in total.", True),
        ("After careful calculation I came to a result of 180 ms.", True),
        ("180 seconds", False), ("180 kg", False), ("181 ms", False), ("0.16 s", False), ("-180", False),
        ("about three", False), ("16 Mbit / 100 Mbit/s = 160 ms, there and back is 40 ms, so 200 ms.", False),
    ],
)  # fmt: skip
def test_a_number_is_compared_in_the_questions_unit(answer, correct):
    the_question = question("numeric", "180", unit="ms", tolerance=0.5)
    if answer == "about three":
        assert grade_closed(the_question, answer).points == 0
    else:
        check(the_question, answer, correct)


def test_a_missing_unit_is_accepted_with_less_confidence():
    result = check(question("numeric", "180", unit="ms"), "180", True)
    assert result.confidence < 1
    assert "ms is missing" in result.reason


def test_a_wrong_unit_is_named():
    assert "kg is wrong" in check(question("numeric", "180", unit="ms"), "180 kg", False).reason


def test_a_right_number_that_is_not_the_result_goes_to_a_human():
    result = check(question("numeric", "180", unit="ms"), "180 ms, no, = 200 ms", False)
    assert result.confidence < 0.5


def test_units_that_are_never_converted_still_match():
    check(question("numeric", "3", unit="packets"), "3 packets", True)


@pytest.mark.parametrize(
    ("answer", "correct"), [("1,500", True), ("1500", True), ("1 500", True), ("1,5", False)]
)
def test_thousands_may_stand_apart(answer, correct):
    check(question("numeric", "1500"), answer, correct)


def test_a_long_answer_is_quoted_in_short():
    result = grade_closed(question("exact", "DNS"), "word " * 1_000)
    assert len(result.quote) <= 300
    assert result.quote.endswith("word")


OPTIONS = (("A", "Application"), ("B", "Transport"), ("C", "Internet"), ("D", "Link"))


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("C", True),
        ("Internet", True),
        ("internet.", True),
        ("C) Internet", True),
        ("Link", False),
        ("B", False),
    ],
)
def test_options_of_their_own_are_read_as_those_in_the_prompt(answer, correct):
    check(question("multiple_choice", "C", prompt="Which layer?", options=OPTIONS), answer, correct)


def test_a_letter_that_contradicts_its_option_is_doubtful():
    the_question = question("multiple_choice", "C", prompt="Which layer?", options=OPTIONS)
    assert check(the_question, "C) Transport", True).confidence < 0.5


def test_options_stand_beside_those_in_the_prompt():
    the_question = question("multiple_choice", "E", options=(("E", "None of them"),))
    check(the_question, "none of them", True)
    check(the_question, "Internet", False)


@pytest.mark.parametrize(("answer", "correct"), [("C", True), ("A, B", True), ("B", False), ("A", False)])
def test_another_choice_may_be_accepted(answer, correct):
    check(question("multiple_choice", "C", accept=("A, B",)), answer, correct)


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("应该是阿基米德原理", True), ("阿基米德原理。", True), ("答：阿基米德原理", True),
        ("不是阿基米德原理", False), ("阿基米德原理或帕斯卡定律", False), ("阿基米德", False),
        ("我觉得老师讲的这一个定律好像就叫阿基米德原理", False),
    ],
)  # fmt: skip
def test_a_chinese_answer_needs_no_spaces_around_it(answer: str, correct: bool) -> None:
    check(question("exact", "阿基米德原理"), answer, correct)


@pytest.mark.parametrize(
    ("answer", "unit", "correct"),
    [
        ("2 牛", "N", True),
        ("2牛顿", "N", True),
        ("0.002 千牛", "N", True),
        ("2 帕", "N", False),
        ("2 千克", "g", False),
    ],
)
def test_a_chinese_unit_is_a_unit(answer: str, unit: str, correct: bool) -> None:
    check(question("numeric", "2", unit=unit), answer, correct)

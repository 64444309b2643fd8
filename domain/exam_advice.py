"""Advice on an exam that can be graded as it is, and would be graded better otherwise."""

import re
from collections.abc import Iterator

from domain.exam import Exam, Question, QuestionType, choice_letters, parse_number
from domain.fields import Mistake, path_of

ENOUGH_EXAMPLES = 10


def advise(exam: Exam) -> tuple[Mistake, ...]:
    """What is worth a second look, in the order of the questions; nothing of it stands in the way."""
    return tuple(
        Mistake(path_of(path_of("questions", index), name), reason, remedy)
        for index, question in enumerate(exam.questions)
        for name, reason, remedy in _of_question(question)
    )


def _of_question(question: Question) -> Iterator[tuple[str, str, str]]:
    yield from _of_criteria(question)
    if question.type is QuestionType.MULTIPLE_CHOICE:
        yield from _of_choice(question)
    elif question.type is QuestionType.NUMERIC:
        yield from _of_numeric(question)
    elif not question.type.closed:
        yield from _of_examples(question)


def _of_criteria(question: Question) -> Iterator[tuple[str, str, str]]:
    total = sum(criterion.points for criterion in question.criteria)
    if round(total, 6) > round(question.points, 6):
        reason = f"add up to {total:g} points, and the question counts {question.points:g} at most"
        yield "criteria", reason, "Good where several ways lead to full points; otherwise make them equal."


def _of_choice(question: Question) -> Iterator[tuple[str, str, str]]:
    choices = question.choices()
    if not choices:
        reason = "the text of the options is not known: who writes it instead of the letter is not understood"
        yield "prompt", reason, "Write each option on a line of its own, such as `A) …`, or under `options`."
        return
    for name, text in (("answer", question.answer), *(("accept", each) for each in question.accept)):
        if strange := sorted(choice_letters(text) - choices.keys()):
            reason = f"{', '.join(strange)} is not among the options of the prompt, {', '.join(choices)}"
            yield name, reason, "Look whether the letter is right."


def _of_numeric(question: Question) -> Iterator[tuple[str, str, str]]:
    if not question.unit:
        yield "unit", "none is stated, so any unit is right", "State it, if the result has one."
    # a fraction that was rounded is seldom met to the last digit
    if not question.tolerance and re.search(r"\d[.,]\d", question.answer) and parse_number(question.answer):
        yield "tolerance", "none is stated, so only this very number is right", "State it, such as 2%."


def _of_examples(question: Question) -> Iterator[tuple[str, str, str]]:
    if not question.examples:
        reason = "none are given, so the model learns your measure from the criteria alone"
        yield "examples", reason, f"Mark some answers, best {ENOUGH_EXAMPLES}: nothing else brings it closer."
    marked: dict[str, float] = {}
    for index, example in enumerate(question.examples):
        before = marked.setdefault(example.answer, example.points)
        if before != example.points:
            reason = f"the same answer has {before:g} points above, and {example.points:g} here"
            yield path_of("examples", index), reason, "Decide for one of them."

"""Estimates of a batch rest on how large prompts are: no rendered one is larger than they say."""

import asyncio
from importlib.resources import files

import pytest

from agents.grading.rendering import render_request
from agents.grading.state import Context
from domain.completion import Payer
from domain.estimates import most_tokens_out, prompt_bytes
from domain.exam import Exam, Question
from domain.exam_document import read_document
from gateway.scripted import ScriptedModel
from gateway.tokens import input_bytes
from tests.builders import an_exam


def exams() -> list[Exam]:
    demo = [files("runtime.demo") / name / "exam.yaml" for name in ("english", "chinese")]
    return [an_exam(), *(read_document(each.read_bytes(), "yaml").exam() for each in demo)]


OPEN = [(exam, each) for exam in exams() for each in exam.questions if not each.type.closed]


@pytest.mark.parametrize(("exam", "question"), OPEN, ids=[f"{e.title}: {q.id}" for e, q in OPEN])
def test_no_prompt_and_no_reply_is_larger_than_the_estimate_says(exam: Exam, question: Question) -> None:
    context = Context(
        exam=exam,
        answers={question.id: "x"},
        models=ScriptedModel(),
        model="scripted",
        file_id="f",
        generation=1,
        slots=asyncio.Semaphore(1),
        payer=Payer("t", "b"),
        secret=b"0" * 32,
    )
    request = render_request(question, context, question.type.value, 1)
    assert input_bytes(request) <= prompt_bytes(question) + len("x")
    assert request.max_tokens <= most_tokens_out(question)

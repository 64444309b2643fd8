"""The embedded model on any text: a readable reply, verbatim quotes, the same in every process, offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.grading.replies import read_reply
from agents.local.model import answer_request
from agents.local.parameters import DOUBT_NAMES, PATH, fitted_on, prompt_hash, shipped
from benchmarks.local_grader.data import SOURCES, read_source
from benchmarks.local_grader.measuring import figures, unseen
from domain.completion import CompletionRequest
from domain.exam import Criterion, GradedExample, Question, QuestionType
from domain.identity import LogicalStep

WORD_TEXT = "SYN|不|散射|3 ms|…|👩‍🔬|\u0301|isn't|İ|ΑΣ|def f(x):|return 1|1e999|\n| |<b>"
WORDS = st.sampled_from(WORD_TEXT.split("|"))
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
    st.lists(WORDS, max_size=25).map(" ".join),
)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    points = st.sampled_from([0.5, 1.0, 3.0, 1 / 3])
    criteria = tuple(
        Criterion(f"c{index}", draw(points), draw(TEXT)) for index in range(draw(st.integers(1, 3)))
    )
    examples = draw(st.lists(st.builds(GradedExample, TEXT, st.floats(0, 5)), max_size=3))
    return Question(
        "q1",
        draw(st.sampled_from([QuestionType.SHORT_ANSWER, QuestionType.ESSAY, QuestionType.CODE])),
        draw(TEXT),
        draw(points),
        criteria,
        reference=draw(TEXT),
        examples=tuple(examples),
    )


def reply(question: Question, answer: str) -> str:
    step = LogicalStep("f", 1, "q1", "all", "first")
    got = answer_request(CompletionRequest(step, 1, "local", question, answer))
    assert got.advisory
    return got.text


@settings(max_examples=150, deadline=None)
@given(questions(), TEXT)
def test_every_text_gets_a_reply_that_reads_and_quotes_verbatim(question, answer):
    text = reply(question, answer)
    assert text == reply(question, answer)
    for result in read_reply(text, question):
        assert 0.05 <= result.confidence <= 0.95
        assert result.quote in answer
        assert not result.quote or result.points > 0


def test_the_reply_is_the_same_in_another_process_that_is_offline_and_keeps_its_logging():
    question = Question(
        "q1",
        QuestionType.SHORT_ANSWER,
        "Why does ice float?",
        2.0,
        (Criterion("c1", 1.0, "Says that ice is less dense."), Criterion("c2", 1.0, "说明水结冰时膨胀")),
        reference="Water expands when it freezes, so that ice is less dense than water. 水结冰时体积膨胀。",
        examples=(GradedExample("It is lighter than water.", 1.0), GradedExample("It is cold.", 0.0)),
    )
    answer = "Frozen water takes more room and is lighter. 水结冰时膨胀。"
    program = f"""
import logging, socket, sys
def refuse(*arguments, **named):
    raise AssertionError("the embedded model went online")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
root = logging.getLogger()
before = (list(root.handlers), root.level)
from agents.local.model import answer_request
from domain.completion import CompletionRequest
from domain.exam import Criterion, GradedExample, Question, QuestionType
from domain.identity import LogicalStep
step = LogicalStep("f", 1, "q1", "all", "first")
text = answer_request(CompletionRequest(step, 1, "local", {question!r}, {answer!r})).text
assert (list(root.handlers), root.level) == before
sys.stdout.buffer.write(text.encode())
""".replace("<QuestionType.SHORT_ANSWER: 'short_answer'>", "QuestionType.SHORT_ANSWER")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == reply(question, answer)


def test_the_shipped_parameters_say_what_made_them_and_keep_no_text():
    document = json.loads(PATH.read_text(encoding="utf-8"))
    assert {source["name"] for source in document["data"]} == {"scientsbank", "saf_en"}
    assert all(source["licence"] and source["questions"] and source["answers"] for source in document["data"])
    assert all(len(each) == 12 and int(each, 16) >= 0 for each in document["fitted_prompts"])
    assert len(document["fitted_prompts"]) == sum(source["questions"] for source in document["data"])
    for found in document["cross_validated"].values():
        assert found["10_examples"] > found["0_examples"]
    assert len(shipped().doubt.weights) == len(DOUBT_NAMES)


def test_a_prompt_that_was_fitted_on_is_known_whatever_its_spaces_and_case():
    prompt = "Never asked before?"
    assert prompt_hash(prompt) == prompt_hash(" " + prompt.upper().replace(" ", "\n "))
    criterion = Criterion("c1", 1.0, "The answer is correct.")
    assert not fitted_on(Question("q1", QuestionType.SHORT_ANSWER, prompt, 1.0, (criterion,)))


@pytest.mark.skipif("ASSAY_GRADING_DATA" not in os.environ, reason="ASSAY_GRADING_DATA names no folder")
def test_half_of_the_public_questions_are_unseen_and_examples_help_on_them():
    folder = Path(os.environ["ASSAY_GRADING_DATA"])
    for source in SOURCES:
        questions = read_source(source, folder)
        left = unseen(questions)
        assert len(left) == len(questions) // 2
        # a part is enough to see it, and takes seconds
        part = left[:: max(1, len(left) // 16)]
        alone, helped = (figures(part, examples) for examples in (0, 10))
        assert helped["pearson"] > alone["pearson"]
        assert alone["surer_half"]["mean_error"] < alone["other_half"]["mean_error"]

"""Model replies are read strictly."""

import json
from typing import Any

import pytest

from agents.grading.replies import read_marking, read_reply
from domain.errors import ModelReplyInvalid
from domain.exam import Criterion, Question, QuestionType

QUESTION = Question(
    "q1", QuestionType.ESSAY, "Discuss.", 3.0, (Criterion("c1", 2.0, "One."), Criterion("c2", 1.0, "Two."))
)


def entry(criterion_id: str = "c1", **changes: Any) -> dict[str, Any]:
    return {
        "criterion_id": criterion_id,
        "points": 1,
        "reason": "Good.",
        "quote": "text",
        "confidence": 0.5,
        **changes,
    }


def test_criteria_come_back_in_the_rubrics_order():
    results = read_reply(json.dumps({"criteria": [entry("c2"), entry("c1", points=1.5)]}), QUESTION)
    assert [(each.criterion_id, each.points, each.max_points) for each in results] == [
        ("c1", 1.5, 2.0),
        ("c2", 1.0, 1.0),
    ]


def test_what_cannot_be_assessed_earns_nothing():
    results = read_reply(
        json.dumps({"criteria": [entry("c1", points=2, cannot_assess=True), entry("c2")]}), QUESTION
    )
    assert (results[0].points, results[0].cannot_assess) == (0.0, True)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "reply"),
        ("no JSON", "reply"),
        ("[" * 100_000, "reply"),
        ('{"criteria": NaN}', "reply"),
        ("[]", "criteria"),
        ("{}", "criteria"),
        ('{"criteria": {}}', "criteria"),
        ('{"criteria": [1]}', "criteria[0]"),
        (json.dumps({"criteria": [entry("c1")]}), "criteria"),
        (json.dumps({"criteria": [entry("c1"), entry("c1")]}), "criteria[1].criterion_id"),
        (json.dumps({"criteria": [entry("c9")]}), "criteria[0].criterion_id"),
        (json.dumps({"criteria": [entry(criterion_id=["c1"])]}), "criteria[0].criterion_id"),
        (json.dumps({"criteria": [entry(points=2.01)]}), "criteria[0].points"),
        (json.dumps({"criteria": [entry(points=-0.5)]}), "criteria[0].points"),
        (json.dumps({"criteria": [entry(points=True)]}), "criteria[0].points"),
        (json.dumps({"criteria": [entry(points="1")]}), "criteria[0].points"),
        ('{"criteria": [{"criterion_id": "c1", "points": 1e999}]}', "criteria[0].points"),
        (json.dumps({"criteria": [entry(confidence=1.1)]}), "criteria[0].confidence"),
        (json.dumps({"criteria": [entry(confidence=None)]}), "criteria[0].confidence"),
        (json.dumps({"criteria": [entry(reason=None)]}), "criteria[0].reason"),
        (json.dumps({"criteria": [entry(quote=3)]}), "criteria[0].quote"),
        (json.dumps({"criteria": [entry(quote="x" * 2_001)]}), "criteria[0].quote"),
        (json.dumps({"criteria": [entry(quote="\ud800")]}), "criteria[0].quote"),
        (json.dumps({"criteria": [entry(reason="a\0b")]}), "criteria[0].reason"),
        (json.dumps({"criteria": [entry(cannot_assess="no")]}), "criteria[0].cannot_assess"),
    ],
)
def test_anything_else_is_refused_with_the_fields_name(text, field):
    with pytest.raises(ModelReplyInvalid) as caught:
        read_reply(text, QUESTION)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field}: ")


GOOD = json.dumps({"criteria": [entry("c1"), entry("c2")]})


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{GOOD}\n```",
        f"Here is my marking:\n\n{GOOD}\n\nI hope this helps.",
        f'<think>{{"criteria": []}} or {GOOD}?</think>\n{GOOD}',
        f"A set {{like this}} first. {GOOD}",
    ],
)
def test_text_around_the_one_object_is_left_aside(text):
    assert [each.criterion_id for each in read_reply(text, QUESTION)] == ["c1", "c2"]


@pytest.mark.parametrize(
    "text",
    [f"{GOOD}\n{GOOD}", f'The student wrote {{"criteria": []}}. {GOOD}', f"{'{ ' * 30}{GOOD}", GOOD[:-1]],
)
def test_of_several_objects_or_half_of_one_none_is_taken(text):
    with pytest.raises(ModelReplyInvalid) as caught:
        read_reply(text, QUESTION)
    assert caught.value.field == "reply"


def test_the_models_word_on_instructions_is_read():
    told = json.dumps({"instruction_in_answer": True, **json.loads(GOOD)})
    assert read_marking(told, QUESTION).instruction_in_answer
    assert not read_marking(GOOD, QUESTION).instruction_in_answer
    with pytest.raises(ModelReplyInvalid, match=r"instruction_in_answer: expected true or false"):
        read_marking(told.replace("true", '"yes"'), QUESTION)


def test_a_message_shows_numbers_and_no_text_of_the_reply():
    with pytest.raises(ModelReplyInvalid, match=r"points: expected a number, got text\."):
        read_reply(json.dumps({"criteria": [entry(points="Ann Smith")]}), QUESTION)

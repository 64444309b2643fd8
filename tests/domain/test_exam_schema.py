"""The schema and the reader: what the schema refuses, the reader refuses; good exams pass both."""

from copy import deepcopy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from domain.exam import FIELDS, QuestionType, check_exam, read_exam
from domain.exam_schema import exam_schema
from runtime.exam_commands import STARTERS

VALIDATOR = Draft202012Validator(exam_schema())

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30
).filter(str.strip)
TEXTS = TEXT | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9)
IDS = st.text("abcxyzABC0189_.-", min_size=1, max_size=50)
POINTS = st.sampled_from([0.25, 0.5, 1, 2, 3.0, 7.5])


@st.composite
def open_questions(draw: st.DrawFn) -> dict[str, Any]:
    marks = draw(st.lists(POINTS, min_size=1, max_size=4))
    criteria = [
        {"id": f"c{number}", "points": points, "description": draw(TEXTS)}
        for number, points in enumerate(marks)
    ]
    cap = draw(st.floats(min(marks), sum(marks), exclude_min=False))
    question = {"points": cap, "reference": draw(TEXTS), "criteria": criteria}
    if draw(st.booleans()):
        by_criterion = {each["id"]: draw(st.floats(0, each["points"])) for each in criteria}
        points = st.floats(0, cap) | st.just(by_criterion)
        question["examples"] = draw(
            st.lists(st.fixed_dictionaries({"answer": TEXTS, "points": points}), max_size=3)
        )
    return question


def closed_questions(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"points": POINTS, **fields})


NUMBERS = st.integers(1, 10**6).map(str) | st.floats(0.5, 1e6) | st.sampled_from(["1,5", "1 000", "-3"])
QUESTIONS: dict[QuestionType, st.SearchStrategy[dict[str, Any]]] = {
    QuestionType.EXACT: closed_questions(answer=TEXTS, accept=st.lists(TEXTS, max_size=3)),
    QuestionType.MULTIPLE_CHOICE: closed_questions(
        answer=st.sampled_from(["A", "b", "A, B", "AB", " A/B "]),
        accept=st.lists(st.sampled_from(["A", "B"]), max_size=2),
        options=st.fixed_dictionaries({"A": TEXTS, "B": TEXTS}, optional={"C": TEXTS}),
    ),
    QuestionType.NUMERIC: closed_questions(
        answer=NUMBERS,
        tolerance=st.sampled_from([0, 0.5, 2**53, "2%", " 2.5 % ", "100%"]),
        unit=st.sampled_from(["", "ms", "km/h", "°C", "毫秒"]),
    ),
    **dict.fromkeys((QuestionType.SHORT_ANSWER, QuestionType.ESSAY, QuestionType.CODE), open_questions()),
}


@st.composite
def good_exams(draw: st.DrawFn) -> dict[str, Any]:
    """A good exam of any questions."""
    types = draw(st.lists(st.sampled_from(list(QuestionType)), min_size=1, max_size=3))
    questions = [
        {
            **draw(QUESTIONS[type_]),
            "id": f"{draw(IDS)[:40]}{number}",
            "type": type_.value,
            "prompt": draw(TEXTS),
            **draw(st.fixed_dictionaries({}, optional={"guidelines": TEXTS | st.just("")})),
        }
        for number, type_ in enumerate(types)
    ]
    return {
        "title": draw(TEXTS),
        "questions": questions,
        "language": draw(st.sampled_from(["en", "zh-Hans"])),
    }


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["", " ", "\0", "essay", " essay", "A", "a ", "2%", "x" * 51, "x" * 20_001])
    | st.sampled_from([10**400, 2**53 + 1]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["A", "c0", "1", "id"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
NAMES = sorted(
    {name for names in FIELDS.values() for name in names} | {"description", "title", "language", "questions"}
)


def _mappings(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(found for each in value.values() for found in _mappings(each))]
    return [found for each in value for found in _mappings(each)] if isinstance(value, list) else []


@st.composite
def altered_exams(draw: st.DrawFn) -> Any:
    """A good exam in which a few fields were removed, added or replaced."""
    document = deepcopy(draw(good_exams()))
    for _ in range(draw(st.integers(1, 3))):
        places = _mappings(document)
        place = draw(st.sampled_from(places))
        name = draw(st.sampled_from([*place, *NAMES]))
        if draw(st.integers(0, 3)) == 0:
            place.pop(name, None)
        else:
            place[name] = draw(ANYTHING)
    return document


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(exam_schema())


@settings(max_examples=150)
@given(document=good_exams())
def test_a_good_exam_passes_both(document: dict[str, Any]) -> None:
    assert check_exam(document) == ()
    assert [each.message for each in VALIDATOR.iter_errors(document)] == []
    assert len(read_exam(document).questions) == len(document["questions"])


@settings(max_examples=400)
@given(document=altered_exams() | ANYTHING)
def test_what_the_schema_refuses_the_reader_refuses(document: Any) -> None:
    if not VALIDATOR.is_valid(document):
        assert check_exam(document)


@pytest.mark.parametrize("path", sorted(STARTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_starters_pass_the_schema(path: Any) -> None:
    assert [
        each.message for each in VALIDATOR.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))
    ] == []


@pytest.mark.parametrize(
    "alter",
    [
        lambda question: question.pop("reference"),
        lambda question: question.update(answer="x"),
        lambda question: question.update(type="oral"),
        lambda question: question.update(points=0),
        lambda question: question.update(criteria=[]),
        lambda question: question.update(prompt="  "),
        lambda question: question.update(examples=[{"answer": "x"}]),
        lambda question: question.update(examples=[{"answer": "x", "points": {}}]),
        lambda question: question["criteria"][0].update(id="a b"),
    ],
)
def test_the_schema_refuses_what_it_can_say(alter: Any) -> None:
    """That the two agree would be easy with a schema that refuses nothing."""
    criteria = [{"id": "c1", "points": 1, "description": "."}]
    question = {
        "id": "q",
        "type": "essay",
        "prompt": "?",
        "points": 1,
        "reference": ".",
        "criteria": criteria,
    }
    assert VALIDATOR.is_valid({"title": "T", "questions": [question]})
    alter(question)
    assert not VALIDATOR.is_valid({"title": "T", "questions": [question]})


def test_every_field_that_the_reader_knows_is_described_in_the_schema() -> None:
    schema = exam_schema()
    for type_, names in FIELDS.items():
        properties = schema["$defs"][type_.value]["properties"]
        assert set(properties) == set(names)
        assert all("description" in each or "const" in each for each in properties.values())

"""Reading exams: any document is an exam or an `InvalidExam` that names the field."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import InvalidExam
from domain.exam import MAX_QUESTIONS, Exam, QuestionType, parse_number, read_exam
from tests.builders import EXAM

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 1e308, float("inf"), 0.005])
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "a\0b", "q1", "exact", "numeric", "essay", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "type", "points", "criteria", "accept", "questions"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
FIELDS = ["id", "type", "prompt", "points", "answer", "accept", "tolerance", "unit", "reference", "criteria"]


@st.composite
def altered_exams(draw: st.DrawFn) -> Any:
    """A good exam with a few fields replaced by anything."""
    document = deepcopy(EXAM)
    document["questions"].append(
        {"id": "q3", "type": "numeric", "prompt": "?", "points": 1, "answer": "7", "tolerance": 0.1}
    )
    places = [document, *document["questions"], document["questions"][1]["criteria"][0]]
    for _ in range(draw(st.integers(1, 2))):
        index = draw(st.integers(0, len(places) - 1))
        names = ["title", "language", "questions"] if index == 0 else [*FIELDS, "description"]
        places[index][draw(st.sampled_from(names))] = draw(JSON)
    return document


def check(document: object) -> None:
    try:
        exam = read_exam(document)
    except InvalidExam as invalid:
        _check_message(invalid)
    else:
        _check_storable(exam)


def _check_message(invalid: InvalidExam) -> None:
    assert invalid.field
    assert str(invalid).startswith(f"{invalid.field}: ")
    # the message can be sent and stored, whatever the document held
    str(invalid).encode()


def _check_storable(exam: Exam) -> None:
    # an exam can be stored as text and as JSON: no NaN, no infinity, no half characters, no NUL
    text = json.dumps(asdict(exam), ensure_ascii=False, allow_nan=False)
    text.encode()
    assert "\\u0000" not in text
    assert all(len(question.rubric_hash()) == 64 for question in exam.questions)
    assert all(question.points > 0 for question in exam.questions)
    assert len({question.id for question in exam.questions}) == len(exam.questions)


@settings(max_examples=200)
@given(document=JSON)
def test_any_document_is_an_exam_or_an_invalid_one(document: object) -> None:
    check(document)


@settings(max_examples=400)
@given(document=altered_exams())
def test_an_altered_exam_is_an_exam_or_an_invalid_one(document: object) -> None:
    check(document)


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        *places, last = path.split("/")
        place: Any = document
        for each in places:
            place = place[int(each) if each.isdigit() else each]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("title", ..., "title"),
        ("title", "", "title"),
        ("title", True, "title"),
        ("title", ["a"], "title"),
        ("title", "x" * 501, "title"),
        ("title", "a\0b", "title"),
        ("title", "\ud800", "title"),
        ("author", "me", "author"),
        ("questions", ..., "questions"),
        ("questions", [], "questions"),
        ("questions", "q1", "questions"),
        ("questions", [1], "questions[0]"),
        ("questions", [EXAM["questions"][0]] * 2, "questions[1].id"),
        ("questions", [EXAM["questions"][0]] * (MAX_QUESTIONS + 1), "questions"),
        ("questions/0/id", "a/b", "questions[0].id"),
        ("questions/0/type", "oral", "questions[0].type"),
        ("questions/0/points", 0, "questions[0].points"),
        ("questions/0/points", -1, "questions[0].points"),
        ("questions/0/points", 1001, "questions[0].points"),
        ("questions/0/points", "1", "questions[0].points"),
        ("questions/0/points", True, "questions[0].points"),
        ("questions/0/points", float("nan"), "questions[0].points"),
        ("questions/0/points", float("inf"), "questions[0].points"),
        ("questions/0/answer", ..., "questions[0].answer"),
        ("questions/0/answer", False, "questions[0].answer"),
        ("questions/0/reference", "x", "questions[0].reference"),
        ("questions/0/tolerance", 1, "questions[0].tolerance"),
        ("questions/0/accept", "B", "questions[0].accept"),
        ("questions/0/accept", [["B"]], "questions[0].accept[0]"),
        ("questions/0/accept", ["ok", None], "questions[0].accept[1]"),
        ("questions/0/accept", [True], "questions[0].accept[0]"),
        ("questions/1/reference", ..., "questions[1].reference"),
        ("questions/1/answer", "x", "questions[1].answer"),
        ("questions/1/criteria", [], "questions[1].criteria"),
        ("questions/1/criteria/0/points", None, "questions[1].criteria[0].points"),
        ("questions/1/criteria/1/id", "c1", "questions[1].criteria[1].id"),
        ("questions/1/criteria/0/weight", 2, "questions[1].criteria[0].weight"),
    ],
)  # fmt: skip
def test_each_message_names_its_field(path: str, value: object, field: str) -> None:
    document = deepcopy(EXAM)
    change(path, value)(document)
    with pytest.raises(InvalidExam) as raised:
        read_exam(document)
    assert raised.value.field == field
    assert str(raised.value).startswith(f"{field}: ")


@pytest.mark.parametrize("tolerance", [10**400, float("inf"), -1, "0.1"])
def test_a_tolerance_is_a_finite_number(tolerance: object) -> None:
    question = {"id": "q", "type": "numeric", "prompt": "?", "points": 1, "answer": "7"}
    with pytest.raises(InvalidExam) as raised:
        read_exam({"title": "T", "questions": [{**question, "tolerance": tolerance}]})
    assert raised.value.field == "questions[0].tolerance"


def test_a_document_that_is_no_mapping_is_said_to_be_none() -> None:
    with pytest.raises(InvalidExam, match="exam: expected a mapping of fields"):
        read_exam([])


def test_a_good_exam_is_read_with_its_defaults() -> None:
    exam = read_exam(EXAM)
    assert (exam.title, exam.language, exam.max_points) == ("Photosynthesis", "en", 4)
    choice, short = exam.questions
    assert [criterion.id for criterion in choice.criteria] == ["correct"]
    assert choice.type is QuestionType.MULTIPLE_CHOICE
    assert [criterion.points for criterion in short.criteria] == [2, 1]
    assert exam.question("q2") is short
    with pytest.raises(KeyError):
        exam.question("q3")


def test_a_chinese_exam_is_read_as_it_is() -> None:
    document = deepcopy(EXAM) | {"title": "期末考试", "language": "zh"}
    document["questions"][1]["prompt"] = "植物为什么需要光？"
    exam = read_exam(document)
    assert (exam.title, exam.questions[1].prompt) == ("期末考试", "植物为什么需要光？")


def test_the_hash_of_a_rubric_changes_with_everything_that_decides_marks() -> None:
    known = read_exam(EXAM).questions[1].rubric_hash()
    for path, value in [
        ("questions/1/points", 2),
        ("questions/1/reference", "Other."),
        ("questions/1/prompt", "Other?"),
        ("questions/1/criteria/0/points", 1),
        ("questions/1/criteria/0/description", "Other."),
    ]:
        document = deepcopy(EXAM)
        change(path, value)(document)
        assert read_exam(document).questions[1].rubric_hash() != known
    assert read_exam(deepcopy(EXAM) | {"title": "Other"}).questions[1].rubric_hash() == known


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), (" 7 ", 7), ("1,5", 1.5), ("1.5", 1.5), ("1,500", 1500), ("1,234,567.5", 1234567.5),
     ("0,500", 0.5), ("−3", -3), ("1 000", 1000), ("1e3", 1000),
     ("", None), ("x", None), ("nan", None), ("inf", None), ("1e999", None), ("-", None), (",", None)],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str, number: float | None) -> None:
    assert parse_number(text) == number


@given(text=st.text())
def test_any_text_is_a_finite_number_or_none(text: str) -> None:
    number = parse_number(text)
    assert number is None or abs(number) < float("inf")

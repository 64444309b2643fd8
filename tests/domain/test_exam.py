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
from domain.exam import (
    MAX_QUESTIONS,
    Exam,
    GradedExample,
    QuestionType,
    check_exam,
    choice_letters,
    parse_number,
    read_exam,
)
from domain.fields import MAX_MISTAKES
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
NAMES = ["id", "type", "prompt", "points", "answer", "accept", "tolerance", "unit", "reference", "criteria",
         "options", "guidelines", "examples"]  # fmt: skip


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
        names = ["title", "language", "questions"] if index == 0 else [*NAMES, "description"]
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
    first, *others = invalid.mistakes
    assert invalid.field == (first.path or "exam")
    assert str(invalid).startswith(f"{invalid.field}: ")
    assert len(others) < MAX_MISTAKES
    for each in invalid.mistakes:
        assert each.reason
        assert each.remedy.endswith(".")
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
    with pytest.raises(InvalidExam, match="exam: expected fields with values, got a list"):
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
        ("questions/1/criteria/0/points", 3),
        ("questions/1/guidelines", "Be strict."),
        ("questions/1/examples", [{"answer": "Sugar.", "points": 1}]),
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


#: as they were before exams had options, guidelines and examples; stored rows carry them
KNOWN_HASHES = {
    "q1": "1b63634fc41cf7c92c19fa4dea9f401a342e2eb255a9de6d5dd1a1d8ec10a753",
    "q2": "bf374c485a8d753aa32c395631afbe5c7faf9cad554fd922f0c0299f94adb7e9",
    "q3": "ba044f28bad2df3c8e6b92da14ab8f484b65c4f6b9bdb89f6906aa8589721938",
}


def test_the_hash_of_a_rubric_without_the_newer_fields_stays_what_it_was() -> None:
    numeric = a_question("numeric", id="q3", answer="7", tolerance=0.1, unit="ms", accept=["8"])
    exam = read_exam({**EXAM, "questions": [*EXAM["questions"], numeric]})
    assert {question.id: question.rubric_hash() for question in exam.questions} == KNOWN_HASHES


def a_question(type_: str, **fields: Any) -> dict[str, Any]:
    """A question of that type; closed where it has an answer."""
    question = {"id": "q", "type": type_, "prompt": "?", "points": 1, **fields}
    if "answer" in fields:
        return question
    criteria = [
        {"id": "c1", "points": 0.5, "description": "A."},
        {"id": "c2", "points": 0.5, "description": "B."},
    ]
    return {"reference": "It.", "criteria": criteria, **question}


def paths(*questions: dict[str, Any]) -> list[str]:
    """Where the mistakes of an exam of these questions are."""
    return [mistake.path for mistake in check_exam({"title": "T", "questions": list(questions)})]


def read_question(question: dict[str, Any]) -> Any:
    return read_exam({"title": "T", "questions": [question]}).questions[0]


def test_every_mistake_is_told_and_not_only_the_first() -> None:
    found = paths(
        a_question("exact", answer="x", points=-1),
        a_question("eassy"),
        a_question("essay", id="q", reference="", unit="ms"),
    )
    assert found == [
        "questions[0].points",
        "questions[1].type",
        "questions[2].unit",
        "questions[2].reference",
        "questions[1].id",
        "questions[2].id",
    ]


def test_the_mistakes_of_a_hopeless_document_are_bounded() -> None:
    assert len(check_exam({"title": "T", "questions": [{}] * MAX_QUESTIONS})) == MAX_MISTAKES


def test_a_misspelt_field_is_told_with_its_likely_name() -> None:
    (mistake,) = check_exam({**EXAM, "lanugage": "en"})
    assert "Did you mean 'language'?" in mistake.remedy


@pytest.mark.parametrize(("points", "sound"), [(0.3, True), (0.31, False), (0.2, True)])
def test_criteria_have_to_add_up_to_the_questions_points(points: float, sound: bool) -> None:
    criteria = [{"id": each, "points": 0.1, "description": "."} for each in "abc"]
    found = paths(a_question("essay", points=points, criteria=criteria))
    assert found == ([] if sound else ["questions[0].criteria"])


def test_ids_that_differ_in_letter_case_alone_are_the_same() -> None:
    assert paths(a_question("essay", id="q1"), a_question("essay", id="Q1")) == ["questions[1].id"]


def test_graded_examples_are_read_with_their_points() -> None:
    examples = [
        {"answer": " Half. ", "points": 0.5},
        {"answer": "Both.", "points": {"c2": 0.25, "c1": 0.5}},
    ]
    question = read_question(a_question("essay", examples=examples, guidelines="Be kind.\n"))
    assert question.guidelines == "Be kind."
    assert question.examples == (
        GradedExample("Half.", 0.5),
        GradedExample("Both.", 0.75, (("c1", 0.5), ("c2", 0.25))),
    )


def test_an_examples_points_end_at_the_questions_cap() -> None:
    criteria = [{"id": each, "points": 1, "description": "."} for each in ("a", "b")]
    marks = {"answer": "Both.", "points": {"a": 1, "b": 1}}
    question = read_question(a_question("essay", points=1, criteria=criteria, examples=[marks]))
    assert question.examples[0].points == 1


@pytest.mark.parametrize(
    ("points", "path"),
    [
        (1.1, "points"),
        (-0.1, "points"),
        ("1", "points"),
        (None, "points"),
        ({}, "points.c1"),
        ({"c1": 0.5}, "points.c2"),
        ({"c1": 0.6, "c2": 0}, "points.c1"),
        ({"c1": 0.5, "c2": 0, "c3": 0}, "points.c3"),
    ],
)
def test_an_examples_points_are_within_the_rubric(points: object, path: str) -> None:
    found = paths(a_question("essay", examples=[{"answer": "x", "points": points}]))
    assert found[0] == f"questions[0].examples[0].{path}"


def test_examples_against_a_broken_rubric_bring_no_mistakes_of_their_own() -> None:
    criteria = [{"id": "c1", "points": "one", "description": "."}]
    examples = [{"answer": "x", "points": {"c1": 1}}, {"answer": "y", "points": 1}]
    found = paths(a_question("essay", points="one", criteria=criteria, examples=examples))
    assert found == ["questions[0].points", "questions[0].criteria[0].points"]


def test_options_are_read_beside_those_of_the_prompt() -> None:
    question = read_question(
        a_question(
            "multiple_choice", prompt="Which?\nA) One\nB) Two", options={"B": "Zwei", "C": "Drei"}, answer="C"
        )
    )
    assert question.options == (("B", "Zwei"), ("C", "Drei"))
    assert question.choices() == {"A": "One", "B": "Zwei", "C": "Drei"}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"answer": "C"}, ["questions[0].answer"]),
        ({"answer": "A, C"}, ["questions[0].answer"]),
        ({"answer": "A", "accept": ["B", "D"]}, ["questions[0].accept[1]"]),
        ({"answer": "One"}, ["questions[0].answer"]),
        ({"answer": "b"}, []),
        ({"answer": "AB"}, []),
        ({"answer": "A", "options": {"A": "One"}}, ["questions[0].options"]),
        ({"answer": "A", "options": {"A": "One", "1": "Two"}}, ["questions[0].options.1"]),
        ({"answer": "A", "options": {"A": "One", "b": "Two"}}, ["questions[0].options.b"]),
        ({"answer": "A", "options": ["One", "Two"]}, ["questions[0].options"]),
    ],
)
def test_an_answer_is_among_the_options(fields: dict[str, Any], found: list[str]) -> None:
    assert paths(a_question("multiple_choice", **{"options": {"A": "One", "B": "Two"}, **fields})) == found


@pytest.mark.parametrize(
    ("text", "letters"),
    [("C", "C"), ("c", "C"), ("A, C", "AC"), ("AC", "AC"), ("a/c", "AC"), ("Internet", ""),
     ("C) Internet", ""), ("3", ""), ("", "")],
)  # fmt: skip
def test_letters_are_told_from_texts(text: str, letters: str) -> None:
    assert choice_letters(text) == frozenset(letters)


@pytest.mark.parametrize(
    ("answer", "tolerance", "absolute"),
    [
        ("20", "2%", 0.4),
        ("-20", "2 %", 0.4),
        ("1,5", "10%", 0.15),
        ("20", 0.5, 0.5),
        ("20", 0, 0.0),
        ("20", -0.0, 0.0),
    ],
)
def test_a_tolerance_may_be_a_share_of_the_answer(answer: str, tolerance: object, absolute: float) -> None:
    question = read_question(a_question("numeric", answer=answer, tolerance=tolerance))
    assert question.tolerance == pytest.approx(absolute)
    assert str(question.tolerance)[0] != "-"


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"answer": "0", "tolerance": "2%"}, ["questions[0].tolerance"]),
        ({"answer": "1", "tolerance": "101%"}, ["questions[0].tolerance"]),
        ({"answer": "1", "tolerance": "-1%"}, ["questions[0].tolerance"]),
        ({"answer": "1" + "0" * 300, "tolerance": "50%"}, ["questions[0].tolerance"]),
        ({"answer": "x", "tolerance": "2%"}, ["questions[0].answer"]),
        ({"answer": "1", "accept": ["x"]}, ["questions[0].accept[0]"]),
        ({"answer": "1", "unit": "m/s2"}, ["questions[0].unit"]),
        ({"answer": "1", "unit": "kg m"}, ["questions[0].unit"]),
        ({"answer": "1", "unit": "km/h"}, []),
        ({"answer": "1", "unit": "°C"}, []),
        ({"answer": "1", "unit": "毫秒"}, []),
    ],
)
def test_a_numeric_question_can_be_marked_by_its_rule(fields: dict[str, Any], found: list[str]) -> None:
    assert paths(a_question("numeric", **fields)) == found

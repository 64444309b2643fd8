"""Tables of submissions: students, columns and rows, or an error that names them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import InvalidInput, UnreadableSubmission
from domain.submission import answers_in_json
from domain.submission_table import Row, StudentRow, Table

PROMPTS = {"q1": "What is DNS?", "q2": "Why?"}


def answers(text: str, **stated: str) -> dict[str, dict[str, str]]:
    table = Table.read(text.encode())
    columns = table.answer_columns(PROMPTS, stated)
    students = table.students(table.student_column())
    return {student: table.answers(row, columns) for row, student in students}


@pytest.mark.parametrize(
    "text",
    ["student,q1,q2\nLi,DNS,443\n", "q2;STUDENT;Q1\r\n443;Li;DNS\r\n", "学号\t第1题\t第二题\nLi\tDNS\t443",
     "\ufeffName,Question 1,Question 2\nLi,DNS,443",
     "Email address,Response 1,Response 2,Question 1\nLi,DNS,443,x",
     "Timestamp,name,What  is DNS?,why?\nnow,Li,DNS,443", '"student","q1","q2"\n\n"Li"," DNS ","443"\n,,\n'],
)  # fmt: skip
def test_delimiters_titles_and_languages_are_told(text: str) -> None:
    assert answers(text) == {"Li": {"q1": "DNS", "q2": "443"}}


def test_cells_are_data() -> None:
    text = 'student,q1,q2\nLi,"=1+1, ""a""\nb",@x\nWu,,\n'
    assert answers(text) == {"Li": {"q1": '=1+1, "a"\nb', "q2": "@x"}, "Wu": {"q1": "", "q2": ""}}


def test_a_stated_column_goes_before_a_title() -> None:
    assert answers("student,q1,Better\nLi,a,b", q1="better") == {"Li": {"q1": "b"}}


def test_rows_are_numbered_as_spreadsheets_do() -> None:
    assert [row.number for row in Table.read(b"a,b\n1,2\n,\n3,4").rows] == [2, 4]


MOODLE = "Last name,ID number,Email address,Response 1\n"


def test_a_student_column_that_is_empty_in_every_row_is_passed_over() -> None:
    rows = "Li,,li@example.org,DNS\nWu, ,wu@example.org,443\n"
    assert set(answers(MOODLE + rows)) == {"li@example.org", "wu@example.org"}
    # one that is filled in part is the student's: rows without it are told, not guessed
    part = "Li,,li@example.org,DNS\nXu,7,xu@example.org,x\n"
    assert set(answers(MOODLE + part)) == {"", "7"}


def test_where_all_of_them_are_empty_the_surest_is_named() -> None:
    table = Table.read((MOODLE + "Li,,,DNS\n").encode())
    assert table.titles[table.student_column()] == "ID number"


@pytest.mark.parametrize("footer", ["Overall average,,,0.83", " overall average,,,", "总平均分,,,1"])
def test_a_footer_of_averages_is_no_student(footer: str) -> None:
    assert answers(MOODLE + f"Li,,li@example.org,DNS\n{footer}\n") == {"li@example.org": {"q1": "DNS"}}
    # a student may be called anything
    assert "7" in answers(MOODLE + "Overall average,7,,DNS\n")


def test_a_footer_in_the_students_own_column_is_no_student() -> None:
    assert set(answers("Full name,Response 1\nLi,DNS\nOverall average,1\n")) == {"Li"}
    assert set(answers("Full name,Email,Response 1\nLi,,DNS\nOverall average,,1\n")) == {"Li"}


@pytest.mark.parametrize(
    ("text", "stated", "said"),
    [
        ("student,a\nLi,x", {}, "map: no column is titled .* 'student', 'a'"),
        (
            "student,q1\nLi,x",
            {"q2": "b"},
            "map: the table has no column 'b'; its columns are 'student', 'q1'",
        ),
        ("student,q1,b,b\nLi,x,y,z", {"q2": "b"}, "2 columns 'b'"),
        ("student,q1\nLi,x", {"q9": "q1"}, "no question 'q9'; its questions are q1, q2"),
        ("a,q1\nLi,x", {}, "student: no column is known .* 'a', 'q1'"),
        ("student,q1\nLi,x\nWu,y\nLi,z", {}, "Rows 2 and 4 are of the same student"),
        ("student,q1\nLi,x,y", {}, "3 cells for 2 columns"),
    ],
)
def test_what_is_wrong_is_named(text: str, stated: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        answers(text, **stated)


@pytest.mark.parametrize(
    "content", [b"", b",,\n,,", b'a,b\n"x', b'a,b\n"x"y,z', b"a,b\n" + b"x" * 200_000, b"\0\1"]
)
def test_what_is_no_table_is_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableSubmission):
        Table.read(content)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), max_size=20)


@settings(max_examples=200)
@given(cells=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), size=st.integers(1, 3))
def test_parts_hold_what_the_table_held(cells: list[tuple[str, str]], size: int) -> None:
    rows = tuple(Row(number, ("x" + first, second)) for number, (first, second) in enumerate(cells, start=2))
    table = Table(("student", "q1"), rows)
    read = [row.cells for part in table.parts(size) for row in Table.read(part.write()).rows]
    assert read == [row.cells for row in rows]


@settings(max_examples=100)
@given(answer=CELLS.map(str.strip).filter(bool))
def test_a_row_is_a_submission_that_reads_the_same(answer: str) -> None:
    row = StudentRow(2, "Li", {"q1": answer, "q2": ""})
    assert row.name == "Li.json"
    assert answers_in_json(row.content.decode(), PROMPTS) == {"q1": answer}

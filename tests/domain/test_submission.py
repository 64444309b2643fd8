"""Reading submissions: answers by question id, or `UnreadableSubmission`."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.decoding import decode
from domain.errors import UnreadableSubmission
from domain.submission import answers_in_json, answers_in_text

IDS = ("q1", "q2", "Q3.b")
NAMES = st.sampled_from(["a.md", "a.txt", "a.json", "A.JSON", "a", "答卷.md"])
LINES = st.lists(
    st.sampled_from(
        ["## q1", "q1:", "**q2**", "Question Q3.b.", "q1 text", "text", "", " ", "q2: x", "\f", "# "]
    )
    | st.text(max_size=8),
    max_size=8,
).map("\n".join)
VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["q1", "Q1", "q2", "x"]), VALUES, max_size=3)


def read_submission(name: str, content: bytes, question_ids: Sequence[str]) -> dict[str, str]:
    """As plain files are read, by their names."""
    read = answers_in_json if name.lower().endswith(".json") else answers_in_text
    return read(decode(content), dict.fromkeys(question_ids, ""))


def check(name: str, content: bytes) -> None:
    try:
        answers = read_submission(name, content, IDS)
    except UnreadableSubmission as unreadable:
        _check_message(unreadable)
    else:
        _check_storable(answers)


def _check_message(unreadable: UnreadableSubmission) -> None:
    assert unreadable.field in ("file", "answers")
    str(unreadable).encode()


def _check_storable(answers: dict[str, str]) -> None:
    assert set(answers) <= set(IDS)
    for answer in answers.values():
        assert answer == answer.strip() != ""
        # what is read can be stored: whole characters, and none that Postgres refuses
        answer.encode()
        assert "\0" not in answer


@settings(max_examples=300)
@given(name=NAMES, content=st.binary())
def test_arbitrary_bytes_are_answers_or_unreadable(name: str, content: bytes) -> None:
    check(name, content)


@settings(max_examples=300)
@given(name=NAMES, text=LINES)
def test_arbitrary_lines_are_answers_or_unreadable(name: str, text: str) -> None:
    check(name, text.encode("utf-8", "surrogatepass"))


@settings(max_examples=200)
@given(answers=DOCUMENTS | VALUES)
def test_arbitrary_json_is_answers_or_unreadable(answers: object) -> None:
    check("a.json", json.dumps({"answers": answers}).encode())


@pytest.mark.parametrize("depth", [10, 300, 900, 990, 5_000, 200_000])
def test_deeply_nested_json_is_no_crash(depth: int) -> None:
    check("a.json", b'{"answers": {"q1": ' + b"[" * depth + b"]" * depth + b"}}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", b""),
        ("a.md", b" \n\t"),
        ("a.md", b"\xef\xbb\xbf"),
        ("a.md", b"\xff\xfe\x00"),
        ("a.md", b"## q1\nbin\0ary"),
        ("a.md", b"An essay without headings."),
        ("a.md", b"## q9\nAnother exam's."),
        ("a.json", b"{"),
        ("a.json", b"[]"),
        ("a.json", b'{"answers": []}'),
        ("a.json", b'{"answers": {}}'),
        ("a.json", b'{"answers": {"q9": "x"}}'),
        ("a.json", b'{"answers": {"q1": "a\\u0000b"}}'),
        ("a.json", b'{"answers": {"q1": "\\ud800"}}'),
        ("a.json", b'{"answers": {"q1": ["\\ud800"]}}'),
        ("a.json", b'{"answers": {"q1": ' + b"9" * 5000 + b"}}"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason_that_quotes_nothing(name: str, content: bytes) -> None:
    with pytest.raises(UnreadableSubmission) as raised:
        read_submission(f"张三 {name}", content, IDS)
    # the reason is stored in the clear: neither whose file it is nor what it says
    assert "张三" not in str(raised.value)
    assert "essay" not in str(raised.value)
    _check_message(raised.value)


@pytest.mark.parametrize(
    "heading",
    ["q1", "Q1", "## q1", "###q1", "## Q1:", "q1:", "q1.", "q1)", "q1：", "q1、", "**q1**", "**q1:**",
     "**q1**:", "Question q1", "## Question q1", "question Q1:", "  q1  "],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.md", "a.txt"])
def test_a_question_is_opened_by_its_id_on_a_line(heading: str, name: str) -> None:
    content = f"My name\n{heading}\nFirst line.\n\nSecond line.\n## q2\nOther.".encode()
    assert read_submission(name, content, IDS) == {"q1": "First line.\n\nSecond line.", "q2": "Other."}


@pytest.mark.parametrize(
    "line", ["q1: TCP", "q1. TCP", "q1) TCP", "**q1:** TCP", "q1： TCP", "q1：TCP", "q1、TCP"]
)
def test_an_answer_may_stand_on_the_headings_line(line: str) -> None:
    assert read_submission("a.md", f"{line}\nand more".encode(), IDS) == {"q1": "TCP\nand more"}


def test_chinese_answers_are_read_as_they_are() -> None:
    text = "姓名：张三\n## q1\n光合作用需要光。\n\nq2：二氧化碳\n**q3.B：**最后"
    assert read_submission("答卷.md", text.encode(), IDS) == {
        "q1": "光合作用需要光。",
        "q2": "二氧化碳",
        "Q3.b": "最后",
    }


@pytest.mark.parametrize("line", ["q1 is the question I like", "see q1", "q12", "q1.5 volts", "1. q1"])
def test_a_sentence_is_no_heading(line: str) -> None:
    assert read_submission("a.md", f"## q2\n{line}".encode(), IDS) == {"q2": line}


def test_the_first_heading_of_an_id_wins() -> None:
    content = b"## q1\nI wrote:\nq1: no heading\n## q2\nx"
    assert read_submission("a.md", content, IDS) == {"q1": "I wrote:\nq1: no heading", "q2": "x"}


def test_an_unanswered_question_is_left_out() -> None:
    assert read_submission("a.md", b"## q1\n\n## q2\nx", IDS) == {"q2": "x"}
    assert read_submission("a.json", b'{"answers": {"q1": "  ", "q2": null, "q3.B": 7}}', IDS) == {
        "Q3.b": "7"
    }


def test_a_byte_order_mark_and_windows_lines_are_no_obstacle() -> None:
    assert read_submission("a.txt", b"\xef\xbb\xbfq1\r\nOne.\r\nTwo.\r\n", IDS) == {"q1": "One.\nTwo."}


@pytest.mark.parametrize(
    "line", ["a" * 200_000, "#" * 200_000, " " * 200_000 + "!", "question " * 20_000, "**" * 99_999]
)
def test_a_very_long_line_is_read_in_no_time(line: str) -> None:
    assert read_submission("a.md", f"{line}\nq1: x".encode(), IDS) == {"q1": "x"}

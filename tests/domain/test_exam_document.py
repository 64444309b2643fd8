"""Exams as text: what is written is what is read, and every mistake has its line."""

import ast
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import exam, exam_document, fields
from domain.errors import InvalidExam
from domain.exam_document import Format, read_document
from domain.fields import Mistake
from tests.builders import EXAM

ROOT = Path(__file__).parents[2]
BROKEN = runpy.run_path(str(ROOT / "docs" / "broken" / "exams.py"))
BROKEN_EXAMS = list(BROKEN["broken_exams"]())

QUESTION = """\
title: T
questions:
  - id: q1
    type: exact
    prompt: "?"
    points: 1
    answer: {answer}
"""


def answer_in(written: str) -> str:
    return read_document(QUESTION.format(answer=written).encode(), "yaml").exam().questions[0].answer


@pytest.mark.parametrize(
    "written",
    ["yes", "no", "on", "NO", "1e3", "2024-05-01", "2024-13-45", "007", "0o17", "0x1F", "12:30:45", "3.10",
     "1_000", "+5", "1.", ".5", "443", "-3.50", "12345678901234", "y", "<<", "=", "域名系统", "１２"],
)  # fmt: skip
def test_what_is_written_is_what_is_read(written: str) -> None:
    assert answer_in(written) == written


@pytest.mark.parametrize("written", ["true", "False", "null", "~", ".nan", "-.inf", "9007199254740993"])
def test_what_is_no_text_without_quotes_is_text_within_them(written: str) -> None:
    assert answer_in(f'"{written}"') == written
    with pytest.raises(InvalidExam) as raised:
        answer_in(written)
    assert raised.value.mistakes[0].line == 7


def test_a_number_in_json_is_text_as_it_is_written() -> None:
    content = '{"title": 3.10, "questions": [%s]}' % json.dumps(EXAM["questions"][0])  # noqa: UP031  # braces
    assert read_document(content.encode(), "json").exam().title == "3.10"


@pytest.mark.parametrize("format_", ["yaml", "json"])
def test_the_good_exams_of_the_table_are_good(format_: Format) -> None:
    content = BROKEN["GOOD" if format_ == "yaml" else "GOOD_JSON"].encode()
    assert read_document(content, format_).check() == ()


@pytest.mark.parametrize("broken", BROKEN_EXAMS, ids=lambda broken: broken.shown or broken.written[:40])
def test_every_broken_exam_is_refused_near_the_line_that_was_broken(broken: Any) -> None:
    good = BROKEN["GOOD" if broken.format == "yaml" else "GOOD_JSON"]
    mistakes = read_document(broken.content, broken.format).check()
    assert mistakes
    first = mistakes[0]
    assert first.line is not None
    begin = good[: good.index(broken.good)].count("\n") + 1
    # what is missing, or does not add up, is told at the head of its question
    assert begin - 4 <= first.line <= begin + broken.written.count("\n") + 3
    assert first.remedy.endswith(".")
    assert len(str(first)) < 260


def test_every_kind_of_mistake_that_can_be_noted_stands_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    noting: set[tuple[str, int]] = set()
    make = Mistake.__init__

    def record(*arguments: Any, **more: Any) -> None:
        frame = sys._getframe(1)
        while frame is not None and frame.f_back is not None:
            noting.add((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        make(*arguments, **more)

    monkeypatch.setattr(Mistake, "__init__", record)
    for broken in BROKEN_EXAMS:
        read_document(broken.content, broken.format).check()
    # too many values are no sight for a table
    monkeypatch.setattr(exam_document, "MAX_VALUES", 5)
    (mistake,) = read_document(BROKEN["GOOD"].encode(), "yaml").check()
    assert mistake.reason == "more than 5 values"
    silent = [
        f"{Path(module.__file__).name}:{call.lineno}: {ast.unparse(call)[:80]}"
        for module in (exam, exam_document, fields)
        if module.__file__
        for call in _noting_calls(Path(module.__file__))
        if not any(
            (module.__file__, line) in noting for line in range(call.lineno, (call.end_lineno or 0) + 1)
        )
    ]
    assert silent == []


def _noting_calls(path: Path) -> list[ast.Call]:
    names = {"note", "_note", "_note_at", "_note_missing", "Mistake"}
    return [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in names
    ]


def test_every_explanation_of_a_parsers_words_stands_in_the_table() -> None:
    told = {m.reason for each in BROKEN_EXAMS for m in read_document(each.content, each.format).check()}
    reasons = [*exam_document._YAML_REASONS.values(), *exam_document._JSON_REASONS.values()]
    assert [reason for reason, _ in reasons if reason not in told] == []


def test_mistakes_stand_in_the_order_of_their_lines() -> None:
    content = (
        b"title: ''\nquestions:\n  - id: q1\n    type: exact\n    points: 0\n    answer: yes\nauthor: me\n"
    )
    found = [(each.line, each.path) for each in read_document(content, "yaml").check()]
    assert found == [(1, "title"), (3, "questions[0].prompt"), (5, "questions[0].points"), (7, "author")]


def test_the_condition_has_all_mistakes_and_names_the_line_of_the_first() -> None:
    with pytest.raises(
        InvalidExam, match=r"^line 1: title: must not be empty\..*\(2 more mistakes\)$"
    ) as raised:
        read_document(b"title: ''\nlanguage: []\n", "yaml").exam()
    assert [each.path for each in raised.value.mistakes] == ["title", "questions", "language"]
    assert raised.value.field == "title"


def test_a_twin_in_json_is_told_with_both_lines() -> None:
    (mistake,) = read_document(
        BROKEN["GOOD_JSON"].replace('"id"', '"title": 1,\n"id"').encode(), "json"
    ).check()
    assert (mistake.path, mistake.line) == ("questions[0].title", 5)
    (mistake,) = read_document(
        BROKEN["GOOD_JSON"].replace("{\n  ", '{\n  "title": "N",\n  ', 1).encode(), "json"
    ).check()
    assert (mistake.path, mistake.line, "line 2" in mistake.reason) == ("title", 3, True)


def test_lines_are_found_beside_every_character_that_json_can_write() -> None:
    odd = 'emoji \\ud83d\\ude00 \u2028 \x7f \x85 "tab\\t" '.replace('"', '\\"')
    content = BROKEN["GOOD_JSON"].replace("Name it.", odd).replace('"points": 1', '\t"points": -1')
    (mistake,) = read_document(content.encode(), "json").check()
    assert (mistake.path, mistake.line) == ("questions[0].points", 8)


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(50))
    mistakes = read_document(bomb.encode(), "yaml").check()
    assert any("aliases" in each.reason for each in mistakes)


@pytest.mark.parametrize("format_", ["yaml", "json"])
@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"{" * 200_000, b'{"a":' * 50_000, b"- " * 50_000, b"9" * 200_000]
)
def test_depth_and_length_do_not_exhaust_the_process(content: bytes, format_: Format) -> None:
    assert read_document(content, format_).check()


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"---\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_told_to_be_empty(content: bytes) -> None:
    (mistake,) = read_document(content, "yaml").check()
    assert "got nothing" in mistake.reason


@settings(max_examples=200)
@given(content=st.binary() | st.text().map(str.encode), format_=st.sampled_from(["yaml", "json"]))
def test_any_file_is_an_exam_or_has_mistakes(content: bytes, format_: Format) -> None:
    document = read_document(content, format_)
    assert document.check()
    with pytest.raises(InvalidExam):
        document.exam()


@settings(max_examples=200)
@given(
    value=st.recursive(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
        | st.integers(-(10**15), 10**15)
        | st.booleans()
        | st.none(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text("abcdef", min_size=1, max_size=5), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_yaml_and_json_of_the_same_document_are_read_alike(value: object) -> None:
    as_yaml = read_document(yaml.safe_dump({"v": value}, allow_unicode=True).encode(), "yaml")
    as_json = read_document(json.dumps({"v": value}).encode(), "json")
    assert as_yaml.value == as_json.value == {"v": value}
    assert as_yaml.places.keys() == as_json.places.keys()

"""Which lines open an answer, in English, Chinese and other languages; the rest is the student's text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain.errors import UnreadableSubmission
from domain.labels import Labels
from domain.submission import answers_in_json, answers_in_text

PROMPTS = {"q1": "What does the abbreviation DNS mean?", "q2": "Explain TCP.", "q3": "Why is the sky blue?"}
THREE = {"q1": "one", "q2": "two", "q3": "three"}


def read(text: str, prompts: dict[str, str] = PROMPTS) -> dict[str, str]:
    return answers_in_text(text, prompts)


@pytest.mark.parametrize(
    "heading",
    ["q{}", "Question {}", "QUESTION {}:", "Q{}.", "Q {}:", "Q.{}:", "Answer {}:",
     "Answer to question {}:", "A{}:",
     "Ex. {}", "Exercise {} -", "Problem {} (5 points)", "Question No. {}", "Task #{}",
     "## Question {}", "**Question {}**",
     "Aufgabe {}", "Frage {})", "Antwort zu Frage {}:", "Réponse {} :", "Respuesta {}:", "Domanda {}",
     "第{}题", "第 {} 题：", "题目{}：", "问题{}", "答案{}：", "{}.", "{})", "({})", "（{}）", "{}、",
     "{}：", "{}. (3 points)",
     "## {}", "**{}.**", "### {})", "- q{}:", "q{} |", "{} |", "[{}]", "  Question {}"],
)  # fmt: skip
def test_a_heading_opens_its_question(heading: str) -> None:
    words = ("one", "two", "three")
    inline = heading.rstrip().endswith((".", ")", "）", "、", ":", "：", "|", "]", "-"))
    between = " " if inline else "\n"
    text = "\n".join(heading.format(n) + between + word for n, word in enumerate(words, start=1))
    assert read(f"Name: Li Lei\n{text}\n") == THREE


@pytest.mark.parametrize("heading", ["{}、", "（{}）", "第{}题：", "第{}大题\n", "题目{}\n"])
def test_chinese_numerals_count(heading: str) -> None:
    text = "\n".join(heading.format(n) + word for n, word in zip("一二三", THREE.values(), strict=True))
    assert read(text) == THREE


@pytest.mark.parametrize(
    ("numeral", "number"), [("十", 10), ("十一", 11), ("二十", 20), ("二十三", 23), ("１２", 12)]
)
def test_larger_numerals_count_too(numeral: str, number: int) -> None:
    assert Labels([f"q{n}" for n in range(1, 31)]).by_number(numeral) == number - 1


def test_numbers_are_places_where_ids_carry_none() -> None:
    # ipv4 is the third question and no fourth
    assert read("1. a\n2. b\n3. c", {"dns": "", "tcp": "", "ipv4": ""}) == {
        "dns": "a",
        "tcp": "b",
        "ipv4": "c",
    }


def test_numbers_are_the_ids_own_where_they_carry_some() -> None:
    assert read("Question 3(b): x\nQ5: y", {"q3a": "", "q3b": "", "q05": ""}) == {"q3b": "x", "q05": "y"}


def test_named_headings_may_come_in_any_order() -> None:
    assert read("Question 3: three\nQuestion 1: one\nQuestion 2: two") == THREE


def test_a_numbered_list_under_named_headings_is_text() -> None:
    text = "Question 2\n1. SYN\n2. SYN-ACK\n3. ACK\n## 1 An aside\nQuestion 1\nDNS"
    assert read(text) == {"q2": "1. SYN\n2. SYN-ACK\n3. ACK\n## 1 An aside", "q1": "DNS"}


@pytest.mark.parametrize(
    "inner",
    ["  1. a\n  2. b", "1) a\n2) b", "(1) a\n(2) b", "1. a\n2. b\n3. c", "1. a\n2. b", "- 1. a",
     "3. May was hot",
     "1.5 volts", "2.5 volts", "1:30 pm", "2", "a. x\nb. y", "一、甲\n二、乙", "2024. A year",
     "10. Tenth", "```\n2. b\n```"],
)  # fmt: skip
def test_a_list_inside_an_answer_under_bare_numbers_is_text(inner: str) -> None:
    assert read(f"1. one\n{inner}\n2. two\n3. three") == {"q1": f"one\n{inner}", "q2": "two", "q3": "three"}


def test_a_list_in_a_later_answer_is_text() -> None:
    assert read("1. one\n2. two:\n1. a\n2. b\n3. three") == {
        "q1": "one",
        "q2": "two:\n1. a\n2. b",
        "q3": "three",
    }


def test_a_skipped_number_is_an_unanswered_question() -> None:
    assert read("1. one\n3. three") == {"q1": "one", "q3": "three"}


def test_headings_in_fenced_code_are_text() -> None:
    code = "```python\n# Question 2\n## q3\nq1: 5\n```"
    assert read(f"## q1\n{code}\n## q2\nTCP") == {"q1": code, "q2": "TCP"}


@pytest.mark.parametrize(
    "text", ["## q1\n```\nnever closed\n## q2\ntwo", "## q1\n```py\nnever closed\n## q2\n```py\ntwo\n```"]
)
def test_a_fence_that_nobody_closes_swallows_no_heading(text: str) -> None:
    assert set(read(text)) == {"q1", "q2"}


def test_the_whole_text_answers_a_single_question() -> None:
    essay = "First.\n1. One reason\n2. Another\n## 3 Conclusion\nDone."
    assert read(essay, {"essay": "Discuss."}) == {"essay": essay}
    assert read(f"Essay:\n{essay}", {"essay": "Discuss."}) == {"essay": essay}


def test_several_questions_without_a_heading_are_refused_with_the_way_out() -> None:
    with pytest.raises(UnreadableSubmission, match="## q1"):
        read("An essay.\n1.5 volts\nQuestion 1 asks about much.")


@pytest.mark.parametrize(
    ("above", "answer"),
    [
        ("1. What does the abbreviation\nDNS mean?\n", "Domain name system"),
        ("Question 1 (2 points): What does the abbreviation DNS mean?\nAnswer: ", "Domain name system"),
        ("## q1\n**What does the abbreviation DNS mean?** (2 marks)\nA1: ", "Domain name system"),
        ("第一题（2分）\n答：", "域名系统"),
        ("q1: Answer: ", "A: Internet"),
    ],
)
def test_prompt_points_and_label_above_an_answer_are_no_part_of_it(above: str, answer: str) -> None:
    assert read(f"{above}{answer}") == {"q1": answer}


def test_a_short_prompt_may_begin_an_answer() -> None:
    assert read("q2: Explain TCP. is what I cannot") == {"q2": "Explain TCP. is what I cannot"}
    assert read("q2: Explain TCP.\nIt is reliable") == {"q2": "It is reliable"}


def test_the_result_at_the_end_of_an_answer_stays_where_it_is() -> None:
    assert read("第一题\n2+2=4\n答：4") == {"q1": "2+2=4\n答：4"}


def test_a_form_of_empty_headings_does_not_hide_the_answers_below() -> None:
    assert read("q1:\nq2:\nq3:\n\nq1: one\nq2: two\nq3: three") == THREE


def test_ids_that_lists_are_numbered_by_follow_the_rules_of_lists() -> None:
    assert read("A. one\nB. two", {"a": "", "b": ""}) == {"a": "one", "b": "two"}
    assert read("1. one\n1. x\n2. y\n2. two", {"1": "", "2": ""}) == {"1": "one\n1. x\n2. y", "2": "two"}


@pytest.mark.parametrize(
    "document",
    [
        '{"answers": {"q1": "one", "Q2": "two", "Question 3": "three"}}',
        '{"q1": "one", "2": "two", "第三题": "three"}',
        '{"student": "Li", "answers": {"Answer 1": "one", "q2": " two ", "题目3": "three", "q9": "x"}}',
    ],
)
def test_json_keys_are_read_as_headings_are(document: str) -> None:
    assert answers_in_json(document, PROMPTS) == THREE


@pytest.mark.parametrize(
    "document", ['{"answers": {"q1": "a", "Q1": "b"}}', '{"q1": "a", "Question 1": "b"}']
)
def test_json_with_two_answers_to_one_question_is_refused(document: str) -> None:
    with pytest.raises(UnreadableSubmission, match="q1 is answered twice"):
        answers_in_json(document, PROMPTS)


LINES = st.lists(
    st.sampled_from(
        ["Question 1", "Q2:", "1. x", "2) y", "## 3", "(1) z", "一、甲", "第二题", "A1. Answer: b",
         "```", "~~~py", "  1. in",
         "What does the abbreviation DNS mean?", "q1: q2: q3", "**2.** bold", "| 1. | a |", "Answer:",
         "(3 points)", "\f1. a", ""]
    )
    | st.text(max_size=12),
    max_size=12,
).map("\n".join)  # fmt: skip
EXAMS = st.sampled_from(
    [PROMPTS, {"only": ""}, {"a": "", "b": "x"}, {"1": "", "2": ""}, {"q1a": "", "q1b": "", "q2": ""}]
)


@settings(max_examples=500)
@given(text=LINES, prompts=EXAMS)
@example(text="1. " * 60_000, prompts=PROMPTS)
@example(text="1.\n" * 60_000, prompts=PROMPTS)
@example(text="```\n" * 60_000, prompts=PROMPTS)
@example(text="question " * 20_000, prompts=PROMPTS)
def test_every_answer_stands_in_the_text_as_it_is(text: str, prompts: dict[str, str]) -> None:
    try:
        answers = read(text, prompts)
    except UnreadableSubmission:
        return
    for answer in answers.values():
        assert answer == answer.strip() != ""
        assert answer in text


@settings(max_examples=200)
@given(
    words=st.lists(st.text("abcäö题 ,", min_size=1, max_size=20).filter(str.strip), min_size=3, max_size=3),
    style=st.sampled_from(["q{}: ", "Question {}\n", "## {}\n", "{}. ", "({}) ", "第{}题\n"]),
)
def test_what_was_written_below_headings_is_found_there(words: list[str], style: str) -> None:
    text = "\n".join(style.format(n) + word for n, word in enumerate(words, start=1))
    assert read(text, dict.fromkeys(PROMPTS, "")) == dict(zip(PROMPTS, map(str.strip, words), strict=True))

"""`assay evaluate`: reading labelled sets, grading them as in production, and saying what came of it."""

import asyncio
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from domain.completion import CompletionReply, CompletionRequest, Usage
from domain.errors import AssayError, InvalidExam, InvalidInput, ModelUnavailable, UnknownModel
from domain.exam import Question
from runtime.evaluation.command import Options, run_evaluation, write_page
from runtime.evaluation.embedded import parameters_version, was_fitted_on
from runtime.evaluation.evaluate import NothingGraded, evaluate, read_material
from runtime.evaluation.labelled import LabelledSet, Reading, read_labelled_set
from runtime.evaluation.measuring import Evaluation, evaluation_document
from runtime.evaluation.page import evaluation_page
from runtime.evaluation.questions import Choice, Plan
from runtime.evaluation.running import Run
from runtime.evaluation.showing import CLAIM, show_evaluation
from runtime.settings import Settings
from tests.river.installation import run_assay

WHY = {"question_id": "rain", "question": "Why does it rain?", "reference": "Vapour cools and condenses."}
HOW = {"question_id": "wind", "question": "How does wind arise?", "reference": "Air flows to low pressure."}


@dataclass
class FakeModel:
    """A model that gives the share of the points that its table has for the answer."""

    shares: Mapping[str, float]
    confidence: Mapping[str, float] = field(default_factory=dict)
    #: raised for an answer, the first of its errors first, until there are none left
    errors: dict[str, list[Exception]] = field(default_factory=dict)
    asked: list[CompletionRequest] = field(default_factory=list)
    #: answers that never come back
    hanging: frozenset[str] = frozenset()

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The table's marks."""
        self.asked.append(request)
        if request.answer in self.hanging:
            await asyncio.sleep(3600)
        if self.errors.get(request.answer):
            raise self.errors[request.answer].pop(0)
        entries = [
            {
                "criterion_id": criterion.id,
                "points": criterion.points * self.shares[request.answer],
                "reason": "So.",
                "quote": "",
                "confidence": self.confidence.get(request.answer, 0.9),
            }
            for criterion in request.question.criteria
        ]
        return CompletionReply(json.dumps({"criteria": entries}), Usage(10, 5), request.model)


def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **reading: Any) -> LabelledSet:
    return read_labelled_set(path, Reading(**reading))


def nothing_fitted(_: Question) -> bool:
    return False


def planned(
    path: Path,
    *,
    exam: Path | None = None,
    reading: Reading | None = None,
    maximum: float | None = None,
    fitted: Callable[[Question], bool] = nothing_fitted,
    **choice: Any,
) -> Plan:
    return read_material(
        path, exam, reading or Reading(), Choice(**choice), maximum=maximum, fitted=fitted
    ).plan


async def evaluated(
    path: Path,
    model: FakeModel,
    *,
    exam: Path | None = None,
    maximum: float | None = None,
    step: float | None = None,
    concurrency: int = 4,
    on_progress: Callable[[Run], None] = lambda _: None,
    **choice: Any,
) -> Evaluation:
    material = read_material(path, exam, Reading(), Choice(**choice), maximum=maximum, fitted=nothing_fitted)
    return await evaluate(
        material,
        model,
        model="fake",
        parameters_version=None,
        step=step,
        resamples=100,
        concurrency=concurrency,
        on_progress=on_progress,
    )


@pytest.fixture
def weather(tmp_path: Path) -> Path:
    """Ten answers to two questions; marks 0, 1 or 2 of 2."""
    rows = [
        {**question, "answer": f"{question['question_id']} {index}", "score": mark}
        for question in (WHY, HOW)
        for index, mark in enumerate((0, 1, 2, 2, 0))
    ]
    return jsonl(tmp_path / "weather.jsonl", rows)


#: right about rain, always half about wind
SHARES = {f"rain {index}": share for index, share in enumerate((0, 0.5, 1, 1, 0))} | {
    f"wind {index}": 0.5 for index in range(5)
}


# --- reading --------------------------------------------------------------------------------------


def test_jsonl_is_read_by_the_names_that_such_sets_use(tmp_path: Path) -> None:
    row = {
        "question_id": "10.1",
        "question": "Why?",
        "reference_answers": ["Because.", "Therefore."],
        "answer_id": "a7",
        "answer": " So it is. ",
        "score": 0.5,
        "max_points": 2,
        "feedback": "never read",
    }
    labelled = read(jsonl(tmp_path / "set.jsonl", [row]))
    (answer,) = labelled.answers
    assert (answer.line, answer.answer_id, answer.question_id) == (1, "a7", "10.1")
    assert (answer.prompt, answer.reference, answer.answer) == ("Why?", "Because.\nTherefore.", "So it is.")
    assert (answer.mark, answer.max_points, answer.criteria) == (0.5, 2.0, {})
    assert labelled.name == "set.jsonl"
    assert labelled.sha256 == hashlib.sha256((tmp_path / "set.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_with_any_usual_delimiter_and_lines_are_those_of_an_editor(
    tmp_path: Path, delimiter: str
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, delimiter=delimiter)
    writer.writerows([["Question ID", "Prompt", "Response", "Grade"], ["q1", "Why?", "two\nlines", "0,5"]])
    writer.writerow(["q1", "Why?", "one; line, with\tall", "1"])
    path = tmp_path / "set.csv"
    path.write_text("\ufeff" + written.getvalue(), encoding="utf-8")
    answers = read(path).answers
    assert [(each.line, each.answer, each.mark) for each in answers] == [
        (2, "two\nlines", 0.5),
        (4, "one; line, with\tall", 1.0),
    ]
    assert {each.question_id for each in answers} == {"q1"}


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl", [{"Text": "So.", "answer": "not this", "Marks": 1, "score": 0}])
    (answer,) = read(path, columns={"answer": "Text", "score": "Marks"}).answers
    assert (answer.answer, answer.mark) == ("So.", 1.0)


def test_labels_are_worth_what_is_said(tmp_path: Path) -> None:
    rows = [{"answer": "a", "label": "Correct "}, {"answer": "b", "label": "incorrect"}]
    rows += [{"answer": "c", "label": True}]
    labels = {"correct": 1.0, "INCORRECT": 0.0, "true": 0.5}
    assert [each.mark for each in read(jsonl(tmp_path / "s.jsonl", rows), labels=labels).answers] == [
        1,
        0,
        0.5,
    ]


def test_blank_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    texts = ["", "  ", "No submission.", "no SUBMISSION.", "No submission. But an answer."]
    # a blank answer needs no mark
    rows = [{"answer": text, "score": 1 if len(text) > 20 else None} for text in texts]
    labelled = read(jsonl(tmp_path / "s.jsonl", rows), skipped_answers=frozenset({"No submission."}))
    assert ([each.answer for each in labelled.answers], labelled.blank) == ([texts[-1]], 4)


def test_marks_by_criterion_come_from_columns_or_an_object_and_add_up(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("answer,criterion:c1,criterion:c2\nso,1,0.5\n", encoding="utf-8")
    (answer,) = read(path).answers
    assert (answer.criteria, answer.mark) == ({"c1": 1.0, "c2": 0.5}, 1.5)
    (answer,) = read(
        jsonl(tmp_path / "s.jsonl", [{"answer": "so", "criteria": {"c1": 1}, "score": 3}])
    ).answers
    assert (answer.criteria, answer.mark) == ({"c1": 1.0}, 3.0)


def test_a_line_separator_within_an_answer_ends_no_line(tmp_path: Path) -> None:
    assert (
        read(jsonl(tmp_path / "s.jsonl", [{"answer": "a\u2028b", "score": 1}])).answers[0].answer
        == "a\u2028b"
    )


def test_chinese_spreadsheets_are_read_in_their_own_encoding(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    rows = (
        "answer,score",
        "水蒸气遇冷凝结成小水滴，小水滴聚集变大后落下来形成雨。,1",
        "空气从高压区流向低压区。,0",
    )
    path.write_bytes("\n".join(rows).encode("gb18030"))
    assert [each.answer[:3] for each in read(path).answers] == ["水蒸气", "空气从"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.jsonl", "", "s.jsonl: the file is empty"),
        ("s.jsonl", '{"answer": "x"', "s.jsonl, line 1: no valid JSON"),
        ("s.jsonl", '{"answer": "x", "score": 1}\n[1]', "s.jsonl, line 2: expected an object"),
        ("s.jsonl", "[" * 100_000, "line 1: no valid JSON"),
        ("s.jsonl", '{"text": "x", "score": 1}', "no column 'answer'; there are 'text', 'score'. Name"),
        ("s.jsonl", '{"answer": "x", "verdict": 1}', "no column with the human marks"),
        ("s.jsonl", '{"answer": ["x", {}], "score": 1}', "line 1, column 'answer': expected text, got dict"),
        ("s.jsonl", '{"answer": "x", "score": NaN}', "column 'score': float nan is no number"),
        ("s.jsonl", '{"answer": "x", "score": 1e999}', "column 'score': float inf is no number"),
        ("s.jsonl", '{"answer": "x", "score": ' + "9" * 400 + "}", "is no number"),
        ("s.jsonl", '{"answer": "x", "score": -1}', "column 'score': -1 is a mark below 0"),
        ("s.jsonl", '{"answer": "x", "score": null}', "column 'score': no mark"),
        ("s.jsonl", '{"answer": "x", "score": [1]}', "column 'score': list [1] is no number"),
        ("s.jsonl", '{"answer": "x", "score": 1, "max_points": 0}', "column 'max_points': 0 is no maximum"),
        ("s.jsonl", '{"answer": "x", "criteria": [1]}', "column 'criteria': expected an object"),
        ("s.jsonl", '{"answer": "x", "criteria": {"c1": "?"}}', "column 'criteria.c1': '?' is no number"),
        ("s.jsonl", '{"answer": "\\u0000", "score": 1}', "column 'answer': holds a NUL"),
        ("s.jsonl", '{"answer": "' + "x" * 100_001 + '", "score": 1}', "100,001 characters; the limit is"),
        ("s.jsonl", '{"answer": " ", "score": 1}', "all 1 answers are blank"),
        ("s.csv", "answer,score\n", "a header and no answers"),
        ("s.csv", "answer,score\nx,1,2\n", "s.csv, line 2: 3 cells under 2 columns"),
        ("s.csv", 'answer,score\n"x,1\n', "line 2: no valid CSV"),
        ("s.csv", "answer,score,score\nx,1,2\n", "line 1: column 'score' is there twice"),
        ("s.csv", "answer,label\nx,good\ny,bad\n", "say what it is worth: --labels good=…,bad=…"),
        ("s.json", "[]", "ends in neither .jsonl"),
    ],
)
def test_a_broken_set_is_told_with_file_line_column_and_the_way_out(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput) as refused:
        read(path)
    assert said in refused.value.message
    assert name in refused.value.message


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(b"answer,score\n\x00\x01\x02\xff\xfe,1\n")
    with pytest.raises(InvalidInput, match=r"s\.csv: not readable as text\. Save it as UTF-8\."):
        read(tmp_path / "s.csv")


def test_a_mapping_is_checked_against_the_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "s.jsonl", [{"answer": "x", "score": 1}])
    with pytest.raises(InvalidInput, match="no column 'Response'; there are 'answer', 'score'"):
        read(path, columns={"answer": "Response"})
    with pytest.raises(InvalidInput, match="'anwser' is no field; known: question_id"):
        read(path, columns={"anwser": "answer"})


# --- questions ------------------------------------------------------------------------------------


def test_a_question_is_made_of_prompt_reference_and_full_marks(weather: Path) -> None:
    plan = planned(weather)
    question = plan.tasks[0].question
    assert (question.id, question.prompt, question.reference) == ("rain", WHY["question"], WHY["reference"])
    assert (question.points, [each.points for each in question.criteria]) == (2.0, [2.0])
    assert any("Full marks are 2, the highest mark in the set" in note for note in plan.notes)


def test_several_questions_under_one_id_are_told_apart(tmp_path: Path) -> None:
    rows = [
        {"question_id": "2.1", "question": text, "reference": "R", "answer": "a", "score": 1}
        for text in ("Why?", "How?", "Why?")
    ]
    plan = planned(jsonl(tmp_path / "s.jsonl", rows))
    assert [task.label for task in plan.tasks] == ["2.1 (1)", "2.1 (1)", "2.1 (2)"]
    assert any("told apart: 2.1" in note for note in plan.notes)


def test_questions_without_ids_are_numbered(tmp_path: Path) -> None:
    rows = [{"question": text, "answer": "a", "score": 1} for text in ("Why?", "How?", "Why?")]
    plan = planned(jsonl(tmp_path / "s.jsonl", rows))
    assert [task.label for task in plan.tasks] == ["q1", "q1", "q2"]
    assert any("without a reference" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("rows", "maximum", "said"),
    [
        ([{"answer": "a", "score": 1}], None, "line 1: neither question nor reference"),
        ([{**WHY, "answer": "a", "score": 0}], None, "every mark is 0; say what full marks are"),
        (
            [{**WHY, "answer": "a", "score": 3}],
            2,
            "line 1: a mark of 3 is above full marks of 2; see --maximum",
        ),
        ([{**WHY, "answer": "a", "score": 3, "max_points": 2}], None, "a mark of 3 is above full marks of 2"),
        (
            [{**WHY, "answer": "a", "score": 1, "max_points": most} for most in (2, 4)],
            None,
            "line 2: max_points is 4.0, and 2.0 for the same question above",
        ),
        ([{**WHY, "answer": "a", "score": 1}], 5000, "full marks of 5000"),
    ],
)
def test_marks_that_do_not_fit_are_told(
    tmp_path: Path, rows: list[dict[str, Any]], maximum: float | None, said: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(said)):
        planned(jsonl(tmp_path / "s.jsonl", rows), maximum=maximum)


EXAM = """
title: Weather
questions:
  - id: rain
    type: short_answer
    prompt: Why does it rain?
    points: 4
    reference: Vapour cools and condenses.
    criteria:
      - {id: cools, points: 3, description: Names that air cools.}
      - {id: drops, points: 1, description: Names that drops form.}
  - id: sum
    type: numeric
    prompt: What is 1 + 1?
    points: 1
    answer: 2
"""


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    path = tmp_path / "exam.yaml"
    path.write_text(EXAM, encoding="utf-8")
    return path


def test_a_real_exam_brings_its_own_rubric_and_marks_are_scaled_to_it(tmp_path: Path, exam: Path) -> None:
    rows = [{"question_id": "rain", "question": "another text", "answer": "a", "score": 1}]
    (task,) = planned(jsonl(tmp_path / "s.jsonl", rows), exam=exam, maximum=2).tasks
    assert [each.id for each in task.question.criteria] == ["cools", "drops"]
    assert task.question.prompt == "Why does it rain?"
    assert task.answer.mark == 2.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question_id": "snow", "score": 1}, "question 'snow' is not in the exam; the exam has rain, sum"),
        ({"score": 1}, "no question_id; the exam has rain, sum"),
        ({"question_id": "rain", "score": 5}, "a mark of 5 is above full marks of 4"),
        ({"question_id": "rain", "criteria": {"snow": 1}}, "criterion 'snow' is not in the rubric of rain"),
        ({"question_id": "rain", "criteria": {"drops": 2}}, "2 points for drops; it has 1"),
    ],
)
def test_answers_that_do_not_fit_the_exam_are_told(
    tmp_path: Path, exam: Path, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(said)):
        planned(jsonl(tmp_path / "s.jsonl", [{"answer": "a", **row}]), exam=exam)


def test_an_exam_that_cannot_be_read_is_told(tmp_path: Path, weather: Path) -> None:
    (tmp_path / "exam.yaml").write_text("questions: [", encoding="utf-8")
    with pytest.raises(InvalidExam, match=r"exam\.yaml: no valid YAML"):
        planned(weather, exam=tmp_path / "exam.yaml")


# --- what is measured -----------------------------------------------------------------------------


def test_examples_are_drawn_by_seed_and_never_measured(weather: Path) -> None:
    plan = planned(weather, examples=2, seed=1)
    assert len(plan.tasks) == 6
    for task in plan.tasks:
        examples = task.question.examples
        assert len(examples) == 2
        assert task.answer.answer not in {each.answer for each in examples}
        assert all(each.answer.startswith(task.label) for each in examples)
    assert plan == planned(weather, examples=2, seed=1)
    drawn = {planned(weather, examples=2, seed=seed).tasks[0].question.examples for seed in range(5)}
    assert len(drawn) > 1


def test_examples_carry_the_marks_by_criterion_where_all_are_known(tmp_path: Path, exam: Path) -> None:
    marked = {"question_id": "rain", "answer": "a", "criteria": {"drops": 1, "cools": 2}}
    rows = [marked, {**marked, "answer": "b"}]
    (task,) = planned(jsonl(tmp_path / "s.jsonl", rows), exam=exam, examples=1).tasks
    (example,) = task.question.examples
    assert (example.points, example.by_criterion) == (3.0, (("cools", 2.0), ("drops", 1.0)))


def test_an_answer_that_repeats_an_example_is_said(tmp_path: Path) -> None:
    rows = [{**WHY, "answer": text, "score": 1} for text in ("The same.", "the  same.")]
    assert "1 measured answers repeat a graded example word for word." in (
        planned(jsonl(tmp_path / "s.jsonl", rows), examples=1).notes
    )


def test_a_question_with_too_few_answers_for_its_examples_is_left_out_and_said(tmp_path: Path) -> None:
    rows = [{**WHY, "answer": f"a{index}", "score": 1} for index in range(3)]
    rows += [{**HOW, "answer": "b", "score": 1}]
    plan = planned(jsonl(tmp_path / "s.jsonl", rows), examples=2)
    assert {task.label for task in plan.tasks} == {"rain"}
    assert any(note.startswith("wind is left out") for note in plan.notes)
    with pytest.raises(InvalidInput, match="--examples 3 takes them all"):
        planned(tmp_path / "s.jsonl", examples=3)


def test_a_limit_draws_from_all_questions_and_says_so(weather: Path) -> None:
    plan = planned(weather, limit=4, seed=3)
    assert len(plan.tasks) == 4
    assert "4 of 10 answers, drawn by seed 3." in plan.notes
    assert plan == planned(weather, limit=4, seed=3)
    assert [task.answer.line for task in plan.tasks] == sorted(task.answer.line for task in plan.tasks)


def test_questions_are_chosen_by_a_pattern(weather: Path) -> None:
    assert {task.label for task in planned(weather, pattern="w*").tasks} == {"wind"}
    with pytest.raises(InvalidInput, match="--questions x: fits none of rain, wind"):
        planned(weather, pattern="x")


def test_questions_that_the_model_was_fitted_on_are_left_out_and_said(weather: Path) -> None:
    def fitted(question: Question) -> bool:
        return question.id == "rain"

    plan = planned(weather, fitted=fitted)
    assert {task.label for task in plan.tasks} == {"wind"}
    assert any(note.startswith("1 of 2 questions are left out") for note in plan.notes)
    taken_in = planned(weather, fitted=fitted, include_fitted=True)
    assert len(taken_in.tasks) == 10
    assert any("1 of 2 questions were used to fit" in note for note in taken_in.notes)
    with pytest.raises(InvalidInput, match="--include-fitted measures it all the same"):
        planned(weather, fitted=lambda _: True)


def test_only_the_embedded_model_was_fitted_by_us(weather: Path) -> None:
    question = planned(weather).tasks[0].question
    assert not was_fitted_on("openai:some-model", question)
    assert parameters_version("openai:some-model") is None


# --- running --------------------------------------------------------------------------------------


async def test_the_figures_are_those_of_the_two_gradings(weather: Path) -> None:
    evaluation = await evaluated(weather, FakeModel(SHARES))
    rain, wind = evaluation.questions
    assert (rain.label, wind.label) == ("rain", "wind")
    assert rain.agreement.exact.value == 1.0
    assert rain.agreement.qwk is not None
    assert rain.agreement.qwk.value == pytest.approx(1)
    assert wind.agreement.exact.value == 0.2
    assert wind.agreement.pearson is None
    assert (wind.mean_human, wind.mean_machine) == (1.0, 1.0)
    assert (evaluation.overall.maximum, evaluation.overall.step) == (2.0, 1.0)
    assert evaluation.overall.agreement.count == 10
    assert evaluation.overall.agreement.exact.value == 0.6
    assert evaluation.overall.agreement.mean_absolute_error.value == pytest.approx(0.4)
    assert evaluation.levels == ("0", "1", "2")
    assert evaluation.table == ((2, 2, 0), (0, 2, 0), (0, 2, 2))
    assert (evaluation.usage.tokens_in, evaluation.usage.tokens_out) == (100, 50)
    assert evaluation.usage.model_calls == 10
    assert not evaluation.advisory


async def test_the_answers_come_in_the_order_of_the_set_whoever_is_first(weather: Path) -> None:
    one = evaluation_document(await evaluated(weather, FakeModel(SHARES), concurrency=1))
    many = evaluation_document(await evaluated(weather, FakeModel(SHARES), concurrency=7))
    assert [each["line"] for each in many["answers"]] == list(range(1, 11))
    assert {**one, "usage": None} == {**many, "usage": None}


async def test_the_model_gets_the_graded_examples_and_never_the_human_mark(weather: Path) -> None:
    model = FakeModel(SHARES)
    await evaluated(weather, model, examples=2)
    assert len(model.asked) == 6
    assert all(len(request.question.examples) == 2 for request in model.asked)


async def test_closed_questions_are_graded_by_rules(tmp_path: Path, exam: Path) -> None:
    rows = [{"question_id": "sum", "answer": text, "score": mark} for text, mark in (("2", 1), ("3", 0))]
    model = FakeModel({})
    evaluation = await evaluated(jsonl(tmp_path / "s.jsonl", rows), model, exam=exam)
    assert evaluation.overall.agreement.exact.value == 1.0
    assert not model.asked
    assert evaluation.basis.exam == "Weather"


async def test_criteria_are_compared_one_by_one(tmp_path: Path, exam: Path) -> None:
    rows = [
        {"question_id": "rain", "answer": name, "criteria": {"cools": cools, "drops": drops}}
        for name, cools, drops in (("a", 3, 0), ("b", 0, 0), ("c", 3, 0))
    ]
    model = FakeModel({"a": 1.0, "b": 0.0, "c": 1.0})
    evaluation = await evaluated(jsonl(tmp_path / "s.jsonl", rows), model, exam=exam)
    found = {each.label: each for each in evaluation.criteria}
    assert found["rain/cools"].agreement.exact.value == 1.0
    assert found["rain/drops"].agreement.exact.value == pytest.approx(1 / 3)
    assert found["rain/drops"].maximum == 1.0


async def test_questions_of_other_full_marks_are_pooled_as_shares(tmp_path: Path) -> None:
    rows = [{**WHY, "answer": f"r{mark}", "score": mark, "max_points": 10} for mark in (0, 5, 10)]
    rows += [{**HOW, "answer": f"w{mark}", "score": mark, "max_points": 2} for mark in (0, 1, 2)]
    shares = {"r0": 0, "r5": 0.5, "r10": 1.0, "w0": 0.5, "w1": 0.5, "w2": 1.0}
    evaluation = await evaluated(jsonl(tmp_path / "s.jsonl", rows), FakeModel(shares))
    assert [each.maximum for each in evaluation.questions] == [10.0, 2.0]
    assert (evaluation.overall.maximum, evaluation.overall.step) == (1.0, 0.5)
    assert evaluation.overall.agreement.mean_absolute_error.value == pytest.approx(0.5 / 6)


async def test_a_question_is_measured_on_the_steps_of_all_where_full_marks_are_the_same(
    tmp_path: Path,
) -> None:
    rows = [{**WHY, "answer": f"r{mark}", "score": mark} for mark in (0, 0.5, 1)]
    rows += [{**HOW, "answer": f"w{mark}", "score": mark} for mark in (0, 1)]
    shares = {"r0": 0, "r0.5": 0.5, "r1": 1.0, "w0": 0.5, "w1": 0.5}
    evaluation = await evaluated(jsonl(tmp_path / "s.jsonl", rows), FakeModel(shares))
    assert [each.step for each in evaluation.questions] == [0.5, 0.5]
    assert evaluation.questions[1].agreement.exact.value == 0.0
    chosen = await evaluated(tmp_path / "s.jsonl", FakeModel(shares), step=1.0)
    assert [each.step for each in (chosen.overall, *chosen.questions)] == [1.0, 1.0, 1.0]


async def test_the_review_queue_is_measured_by_what_it_would_catch(weather: Path) -> None:
    unsure = {f"wind {index}": 0.2 for index in range(5)}
    evaluation = await evaluated(weather, FakeModel(SHARES, confidence=unsure))
    review = evaluation.review
    assert (review.flagged, review.share, review.reasons) == (5, 0.5, {"low_confidence": 5})
    assert (review.error_flagged, review.error_unflagged) == (pytest.approx(0.8), 0.0)
    assert evaluation.surer_half is not None
    assert evaluation.surer_half.surer.mean_absolute_error.value == 0.0
    assert [(band.count, band.exact) for band in evaluation.reliability] == [(5, 0.2), (5, 1.0)]
    assert {each.question for each in evaluation.furthest(3)} == {"wind"}


async def test_an_answer_that_fails_is_counted_and_the_others_are_measured(weather: Path) -> None:
    errors: dict[str, list[Exception]] = {"rain 2": [AssayError("No.")], "wind 1": [RuntimeError("Oh.")]}
    evaluation = await evaluated(weather, FakeModel(SHARES, errors=errors))
    assert [(each.task.answer.line, each.code) for each in evaluation.failures] == [
        (3, "assay_error"),
        (7, "defect"),
    ]
    assert evaluation.overall.agreement.count == 8
    assert evaluation_document(evaluation)["failures"][1]["message"] == "RuntimeError: Oh."


async def test_what_may_pass_is_tried_again(weather: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelUnavailable, "retry_after_seconds", 0.01)
    errors: dict[str, list[Exception]] = {
        "rain 0": [ModelUnavailable("Busy.")] * 2,
        "rain 1": [ModelUnavailable("Busy.")] * 9,
    }
    evaluation = await evaluated(weather, FakeModel(SHARES, errors=errors))
    assert [(each.task.answer.answer, each.code) for each in evaluation.failures] == [
        ("rain 1", "model_unavailable")
    ]


async def test_where_every_answer_fails_the_first_reason_is_told(weather: Path) -> None:
    errors: dict[str, list[Exception]] = {answer: [AssayError("Broken wire.")] for answer in SHARES}
    with pytest.raises(NothingGraded, match=r"None of 10 answers was graded\. assay_error: Broken wire\."):
        await evaluated(weather, FakeModel(SHARES, errors=errors))


async def test_a_model_that_nobody_knows_ends_the_run_at_once(weather: Path) -> None:
    model = FakeModel(SHARES, errors={answer: [UnknownModel("No such model.")] for answer in SHARES})
    with pytest.raises(UnknownModel, match="No such model"):
        await evaluated(weather, model, concurrency=1)
    assert len(model.asked) == 1


async def test_no_more_answers_than_allowed_are_graded_at_once(weather: Path) -> None:
    model = FakeModel(SHARES, hanging=frozenset(SHARES))
    running = asyncio.create_task(evaluated(weather, model, concurrency=3))
    while len(model.asked) < 3:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert len(model.asked) == 3
    running.cancel()
    with pytest.raises(NothingGraded, match="interrupted"):
        await running


async def test_an_interrupted_run_shows_what_it_has(weather: Path) -> None:
    model = FakeModel(SHARES, hanging=frozenset({"wind 3"}))
    nine = asyncio.Event()
    running = asyncio.create_task(
        evaluated(weather, model, on_progress=lambda run: nine.set() if len(run.graded) == 9 else None)
    )
    await asyncio.wait_for(nine.wait(), 60)
    running.cancel()
    evaluation = await running
    assert evaluation.interrupted
    assert evaluation.overall.agreement.count == 9
    console = Console(file=io.StringIO(), width=100)
    show_evaluation(evaluation, console)
    assert "Interrupted: the first 9 of 10 answers" in console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO


# --- showing --------------------------------------------------------------------------------------


async def test_the_basis_of_the_figures_is_stated(weather: Path) -> None:
    document = evaluation_document(await evaluated(weather, FakeModel(SHARES), seed=5))
    basis = document["basis"]
    assert basis["data"] == "weather.jsonl"
    assert basis["sha256"] == hashlib.sha256(weather.read_bytes()).hexdigest()
    assert (basis["model"], basis["seed"], basis["resamples"]) == ("fake", 5, 100)
    assert document["answers"][1]["human"] == 1.0
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))


async def test_the_terminal_shows_every_part_within_its_width(weather: Path) -> None:
    errors: dict[str, list[Exception]] = {"rain 2": [AssayError("No [b]luck[/b].")]}
    evaluation = await evaluated(weather, FakeModel(SHARES, errors=errors))
    console = Console(file=io.StringIO(), width=100, highlight=False)
    show_evaluation(evaluation, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    for part in ("Pearson r", "QWK", "rain", "wind", "confidence", "furthest apart", "90 tokens in", CLAIM):
        assert part in shown
    assert "1 answers were not graded: 1 assay_error" in shown
    assert "No [b]luck[/b]." in shown
    assert max(map(len, shown.splitlines())) <= 100


async def test_no_text_of_the_set_steers_the_terminal(tmp_path: Path) -> None:
    steering = "\x1b]0;title\x07\x1b[2J\u202e"
    rows = [
        {
            "question_id": f"q{index}{steering}",
            "question": "?",
            "answer": f"{index}{steering}",
            "score": index,
        }
        for index in range(2)
    ]
    model = FakeModel({f"{index}{steering}": 0.5 for index in range(2)})
    evaluation = await evaluated(jsonl(tmp_path / "s.jsonl", rows), model)
    console = Console(file=io.StringIO(), width=100)
    show_evaluation(evaluation, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "q1\ufffd]0;title" in shown


async def test_the_page_is_self_contained_and_escapes_every_text(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script><img src="http://example.org/x">'
    rows = [
        {
            "question_id": f"{nasty}{index % 2}",
            "question": nasty,
            "answer": f"{nasty} {index}",
            "score": index % 3,
        }
        for index in range(6)
    ]
    shares = {f"{nasty} {index}": 0.5 for index in range(6)}
    page = evaluation_page(await evaluated(jsonl(tmp_path / "s.jsonl", rows), FakeModel(shares)))
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert page.count("<svg") >= 3
    assert CLAIM in page
    assert "&lt;script&gt;" in page


async def test_a_page_that_cannot_be_written_is_told(tmp_path: Path, weather: Path) -> None:
    evaluation = await evaluated(weather, FakeModel(SHARES))
    write_page(evaluation, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == evaluation_page(evaluation)
    with pytest.raises(InvalidInput, match="cannot be written"):
        write_page(evaluation, tmp_path / "page.html" / "page.html")


# --- the command ----------------------------------------------------------------------------------


def test_the_command_grades_with_the_embedded_model_and_without_servers(
    tmp_path: Path, weather: Path
) -> None:
    page = tmp_path / "page.html"
    done = run_assay(tmp_path / "data", "evaluate", weather, "--json", "--html", page, "--examples", "1")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["overall"]["agreement"]["count"] == 8
    assert document["advisory"]
    assert document["basis"]["parameters_version"]
    assert "<svg" in page.read_text(encoding="utf-8")
    assert not (tmp_path / "data").exists()


def test_a_wrong_set_is_told_by_exit_code_and_message(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("answer,label\nx,good\n", encoding="utf-8")
    done = run_assay(tmp_path / "data", "evaluate", "s.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "s.csv, line 2, column 'label': 'good' is no number." in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": ["answer"]}, "'answer' is no pair such as answer=Response"),
        ({"labels": ["correct=much"]}, "'much' is no mark for 'correct'"),
        ({"labels": ["correct=1,wrong=-1"]}, "marks begin at 0"),
        ({"maximum": 0.0}, "--maximum: 0 is not above 0"),
        ({"step": float("inf")}, "--step: inf is not above 0"),
        ({"html": Path("nowhere/page.html")}, "there is no folder nowhere"),
        ({"pattern": "x"}, "fits none of rain, wind"),
    ],
)
async def test_wrong_options_are_told_before_anything_is_graded(
    weather: Path, changes: dict[str, Any], said: str
) -> None:
    options = Options(data=weather, **changes)
    with pytest.raises(InvalidInput) as refused:
        await run_evaluation(options, Settings(), Console(file=io.StringIO()))
    assert said in refused.value.message


def test_labels_may_come_in_one_option_or_several() -> None:
    options = Options(data=Path("s.csv"), labels=["correct=1,a=b=0.5", "wrong=0"], columns=["answer=My Text"])
    assert options.reading().labels == {"correct": 1.0, "a=b": 0.5, "wrong": 0.0}
    assert options.reading().columns == {"answer": "My Text"}

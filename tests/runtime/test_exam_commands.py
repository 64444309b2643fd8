"""`assay exam …`: what a teacher sees of an exam before anything runs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from domain.exam import QuestionType
from domain.exam_document import read_document
from domain.exam_schema import exam_schema
from runtime.cli import app
from tests.builders import EXAM
from tests.river.installation import run_assay

BROKEN = """\
title: Networks
questions:
  - id: q1
    type: exact
    prompt: 系统的名称？
    points: -1
    answer: yes
  - id: q1
    type: exact
    prompt: Name [it].
    points: 1
    answer: true
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in ("exam", *arguments)])


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "exam.yaml"
    path.write_text(BROKEN, encoding="utf-8")
    return path


def test_a_broken_exam_is_shown_with_its_lines_and_the_way_out(broken: Path) -> None:
    done = run("check", broken)
    assert done.exit_code == 2
    assert f"{broken}:6: questions[0].points: must be more than 0. Write " in done.stdout
    assert "    6 |     points: -1\n      |     ^^^^^^^^^^\n" in done.stdout
    assert done.stdout.endswith("3 mistakes.\n")


def test_what_looks_like_markup_is_shown_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "[bold]exam.yaml"
    path.write_text(BROKEN.replace("points: -1", "points: '[red]'"), encoding="utf-8")
    done = run("check", path)
    assert "[bold]exam.yaml:6:" in done.stdout
    assert "expected a number, got the text '[red]'" in done.stdout
    assert "points: '[red]'\n" in done.stdout


def test_programs_get_the_mistakes_as_json(broken: Path) -> None:
    done = run("check", broken, "--json")
    outcome = json.loads(done.stdout)
    assert (outcome["valid"], done.exit_code) == (False, 2)
    assert [(each["field"], each["line"]) for each in outcome["mistakes"]] == [
        ("questions[0].points", 6),
        ("questions[1].id", 8),
        ("questions[1].answer", 12),
    ]
    assert outcome["mistakes"][0]["remedy"].startswith("Write ")


def test_warnings_are_told_apart_and_fail_nothing(tmp_path: Path) -> None:
    path = tmp_path / "exam.json"
    path.write_text(json.dumps(EXAM, indent=2))
    done = run("check", path)
    assert done.exit_code == 0
    assert "warning: questions[1].examples: none are given" in done.stdout
    assert "is a valid exam: 2 questions, 4 points. 2 warnings." in done.stdout
    outcome = json.loads(run("check", path, "--json").stdout)
    assert (outcome["valid"], outcome["mistakes"], len(outcome["warnings"])) == (True, [], 2)
    assert all(each["line"] for each in outcome["warnings"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_starter_has_every_type_of_question_and_no_mistake(tmp_path: Path, language: str) -> None:
    path = tmp_path / "new.yaml"
    assert run("new", path, "--language", language).exit_code == 0
    exam = read_document(path.read_bytes(), "yaml").exam()
    assert exam.language == language
    assert {question.type for question in exam.questions} == set(QuestionType)
    assert any(question.examples and question.guidelines for question in exam.questions)
    assert run("check", path).exit_code == 0


def test_a_file_that_is_there_is_replaced_by_force_alone(broken: Path) -> None:
    refused = run("new", broken)
    assert "--force" in str(refused.exception)
    assert broken.read_text(encoding="utf-8") == BROKEN
    assert run("new", broken, "--force").exit_code == 0
    assert run("check", broken).exit_code == 0


def test_a_starter_is_yaml_and_goes_into_a_folder_that_is_there(tmp_path: Path) -> None:
    assert "name it .yaml" in str(run("new", tmp_path / "exam.json").exception)
    assert "no folder" in str(run("new", tmp_path / "missing" / "exam.yaml").exception)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_exam_by_its_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log.yaml"
    with path.open("wb") as file:
        file.truncate(6 * 1024**2)
    assert "larger than" in str(run("check", path).exception)


def test_the_schema_is_printed_as_it_is() -> None:
    assert json.loads(run("schema").stdout) == exam_schema()


def test_every_exam_command_has_an_example_in_its_help() -> None:
    for name in ("check", "new", "schema"):
        assert f"Example: assay exam {name}" in " ".join(run(name, "--help").stdout.split())


def test_the_exit_code_and_the_message_reach_the_shell(broken: Path, tmp_path: Path) -> None:
    checked = run_assay(tmp_path / "data", "exam", "check", broken)
    assert (checked.returncode, checked.stderr) == (2, "")
    refused = run_assay(tmp_path / "data", "exam", "new", broken)
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert not (tmp_path / "data").exists()

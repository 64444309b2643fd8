"""The command line: exit codes, messages, and what is printed for people and for programs."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import typer.main

from domain.states import BATCH_MACHINE, FILE_MACHINE
from runtime.cli import app
from tests.river.classroom import Classroom, write_script
from tests.river.installation import STOP_SECONDS, Up, run_assay

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A data folder that nothing runs in."""
    return tmp_path / "data"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A running installation with a scripted model."""
    folder = tmp_path_factory.mktemp("cli")
    script = write_script(folder / "script.yaml", folder / "calls.jsonl", latency_seconds=0)
    with Up(folder / "data", ASSAY_MODELS__SCRIPT=str(script)) as running:
        yield running


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Classroom:
    """Five students."""
    return Classroom.of(tmp_path_factory.mktemp("class") / "room", 5)


# --- without an installation ----------------------------------------------------------------------


def test_every_command_has_an_example_in_its_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"up", "down", "status", "doctor", "grade", "batches", "watch", "report", "demo"} <= set(commands)
    for name, command in commands.items():
        assert re.search(rf"Example: .*assay {name}", command.help), name


def test_help_is_shown_with_the_exit_codes_and_the_example(nowhere: Path) -> None:
    assert "Exit codes" in run_assay(nowhere, "--help").stdout
    shown = run_assay(nowhere, "grade", "--help")
    assert shown.returncode == 0
    assert "Example: assay grade exam.yaml" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("batches",),
        ("report", "0197c1de-2222-7000-8000-000000000000"),
        ("watch", "0197c1de-2222-7000-8000-000000000000"),
        ("cancel", "0197c1de-2222-7000-8000-000000000000"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_where_nothing_runs_the_answer_is_3_and_names_the_remedy(
    nowhere: Path, arguments: tuple[str, ...]
) -> None:
    done = run_assay(nowhere, *arguments)
    assert done.returncode == 3
    assert "assay up" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not nowhere.exists()


def test_status_as_json_says_that_nothing_runs(nowhere: Path) -> None:
    done = run_assay(nowhere, "status", "--json")
    assert (json.loads(done.stdout), done.returncode) == ({"running": False}, 3)


def test_down_where_nothing_runs_is_no_error(nowhere: Path) -> None:
    done = run_assay(nowhere, "down")
    assert (done.stdout, done.returncode) == ("Nothing runs here.\n", 0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("grade", "missing.yaml", "x.txt"), "missing.yaml"),
        (("report",), "BATCH"),
        (("nothing",), "nothing"),
        (("states", "moon"), "moon"),
        (("grade", "--frob"), "--frob"),
    ],
)
def test_wrong_usage_is_2_and_names_what_is_wrong(
    nowhere: Path, arguments: tuple[str, ...], named: str
) -> None:
    done = run_assay(nowhere, *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_2_and_named_as_the_variable(nowhere: Path) -> None:
    done = run_assay(nowhere, "status", ASSAY_API__PORT="many")
    assert done.returncode == 2
    assert "ASSAY_API__PORT" in done.stderr


def test_two_files_of_one_name_are_refused_before_anything_is_sent(up: Up, classroom: Classroom) -> None:
    twice = [classroom.files[0], classroom.files[0]]
    done = run_assay(up.folder, "grade", classroom.exam, *twice)
    assert done.returncode == 2
    assert "same name" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("machine", [BATCH_MACHINE, FILE_MACHINE], ids=lambda machine: machine.name)
def test_states_as_mermaid_are_the_domains(nowhere: Path, machine: object) -> None:
    shown = run_assay(nowhere, "states", machine.name, "--mermaid")  # type: ignore[attr-defined]
    assert shown.stdout.strip() == machine.mermaid()  # type: ignore[attr-defined]


def test_doctor_as_json_names_each_check_and_a_remedy_for_each_that_fails(nowhere: Path) -> None:
    done = run_assay(nowhere, "doctor", "--json")
    checks = json.loads(done.stdout)
    assert len(checks) >= 9
    assert all(check["ok"] or check["remedy"] for check in checks)
    assert done.returncode == (0 if all(check["ok"] for check in checks) else 1)


# --- against a running installation -----------------------------------------------------------------


def test_status_says_ready_and_where(up: Up) -> None:
    done = run_assay(up.folder, "status", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["running"], document["ready"]) == (0, True, True)
    assert document["health"] == {"status": "ready", "degraded": []}
    assert document["temporal_ui"].startswith("http://127.0.0.1:")
    assert httpx.get(f"{document['api']}/health/ready").status_code == 200


def test_a_batch_is_graded_watched_reported_and_listed(up: Up, classroom: Classroom) -> None:
    graded = run_assay(
        up.folder, "grade", classroom.exam, *classroom.files,
        "--watch", "--json", "--model", "scripted", "--name", "Monday",
    )  # fmt: skip
    assert graded.returncode == 0, graded.stderr
    report = json.loads(graded.stdout)
    batch_id = report["batch"]["batch_id"]
    with up.client() as client:
        classroom.assert_exact(client, batch_id)

    assert json.loads(run_assay(up.folder, "report", batch_id, "--json").stdout)["total_files"] == 5
    csv = run_assay(up.folder, "report", batch_id, "--csv").stdout.lstrip("\ufeff").splitlines()
    assert len(csv) == 6
    assert csv[0].startswith("submission_id,name,state,score")
    page = up.folder.parent / "report.html"
    assert run_assay(up.folder, "report", batch_id, "--out", str(page)).returncode == 0
    assert "Known marks" in page.read_text(encoding="utf-8")
    shown = run_assay(up.folder, "report", batch_id)
    assert "Known marks" in shown.stdout
    assert "student-001.json" in shown.stdout

    listed = json.loads(run_assay(up.folder, "batches", "--json").stdout)
    assert batch_id in [each["batch_id"] for each in listed["items"]]
    assert batch_id in run_assay(up.folder, "batches", "--state", "completed", COLUMNS="80").stdout

    watched = run_assay(up.folder, "watch", batch_id)
    assert (watched.stdout, watched.returncode) == ("completed\n", 0)


def test_a_batch_with_a_broken_file_is_4(up: Up, classroom: Classroom, tmp_path: Path) -> None:
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\x00")
    done = run_assay(
        up.folder, "grade", classroom.exam, *classroom.files, broken, "--watch", "--model", "scripted"
    )
    assert done.returncode == 4, done.stderr
    assert "broken.txt" in done.stdout
    assert "one character" in done.stdout or "Save" in done.stdout


def test_a_batch_is_cancelled_and_watching_it_is_1(up: Up, classroom: Classroom) -> None:
    with up.client() as client:
        exam_id = client.create_exam(classroom.exam)["id"]
        batch_id = client.post("/v1/batches", {"kind": "grading", "exam_id": exam_id})["batch_id"]
    cancelled = run_assay(up.folder, "cancel", batch_id)
    assert cancelled.returncode == 0, cancelled.stderr
    assert f"{batch_id}: cancelled" in cancelled.stdout
    assert run_assay(up.folder, "watch", batch_id).returncode == 1


def test_a_bad_exam_is_2_and_the_message_names_the_field(
    up: Up, classroom: Classroom, tmp_path: Path
) -> None:
    exam = tmp_path / "exam.yaml"
    exam.write_text("title: T\nquestions:\n- {id: q1, type: essay, prompt: P, points: many}\n")
    done = run_assay(up.folder, "grade", exam, *classroom.files)
    assert done.returncode == 2
    for field in ("points", "reference", "criteria"):
        assert f"line 3: questions[0].{field}" in done.stderr


def test_an_unknown_model_or_batch_is_2(up: Up, classroom: Classroom) -> None:
    done = run_assay(up.folder, "grade", classroom.exam, *classroom.files, "--model", "moon")
    assert (done.returncode, "moon" in done.stderr) == (2, True)
    done = run_assay(up.folder, "report", "0197c1de-2222-7000-8000-000000000000")
    assert (done.returncode, "not_found" in done.stderr) == (2, True)


def test_doctor_finds_the_running_servers_well(up: Up) -> None:
    done = run_assay(up.folder, "doctor", "--json")
    checks = {check["name"]: check["ok"] for check in json.loads(done.stdout)}
    assert checks["PostgreSQL answers"]
    assert checks["Valkey answers"]
    assert checks["Temporal answers"]


@pytest.mark.parametrize(
    "runs", [pytest.param(50, marks=pytest.mark.prove), pytest.param(200, marks=pytest.mark.long)]
)
def test_many_runs_of_status_never_crash(up: Up, nowhere: Path, runs: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        running = list(pool.map(lambda _: run_assay(up.folder, "status").returncode, range(runs)))
        without = list(pool.map(lambda _: run_assay(nowhere, "status").returncode, range(runs // 10)))
    assert set(running) == {0}
    assert set(without) == {3}


@pytest.mark.prove
def test_down_ends_what_up_has_started(tmp_path: Path) -> None:
    with Up(tmp_path / "data") as victim:
        done = run_assay(victim.folder, "down")
        assert (done.stdout, done.returncode) == ("Stopped.\n", 0)
        assert victim.process.wait(STOP_SECONDS) == 0
    assert run_assay(tmp_path / "data", "status").returncode == 3

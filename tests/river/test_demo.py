"""The demonstration as a newcomer runs it: one command, one object, nothing left behind."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.river.installation import (
    ASSAY,
    START_SECONDS,
    STOP_SECONDS,
    environment,
    processes_of,
    run_assay,
    until,
)

KEYS = ["files", "completed", "failed", "needs_review", "seconds", "classes"]
#: submissions by class, and how many of them are broken on purpose
CLASSES = {"english": (46, 3), "chinese": (44, 3)}


@pytest.mark.prove
def test_the_demo_prints_one_object_and_leaves_nothing_behind(tmp_path: Path) -> None:
    began = time.monotonic()
    home = tmp_path / "home"
    home.mkdir()
    demo = run_assay(home / "data", "demo", "--json", HOME=str(home), within_seconds=180)
    seconds = time.monotonic() - began
    assert demo.returncode == 0, demo.stderr
    summary = json.loads(demo.stdout)  # one document and nothing beside it, or it would not parse
    assert list(summary) == KEYS
    assert summary["files"] == summary["completed"] + summary["failed"]
    assert 0 < summary["seconds"] < seconds
    assert [each["class"] for each in summary["classes"]] == list(CLASSES)
    for each in summary["classes"]:
        check_class(each, home / "data")
    assert not processes_of(tmp_path)
    assert [path.name for path in home.iterdir()] == ["data"], "something was written outside the folder"
    assert "Broken invariant" not in demo.stderr
    assert "Traceback" not in demo.stderr
    print(f"demo: {seconds:.1f} s in all, {summary['seconds']} s for the batches")  # noqa: T201  for -rP


def check_class(summary: dict[str, Any], data: Path) -> None:
    files, broken = CLASSES[summary["class"]]
    assert summary["state"] == "partial"
    assert (summary["files"], summary["failed"]) == (files, broken)
    assert summary["advisory"]
    assert summary["batch_id"] in summary["temporal_ui"]
    assert summary["report"] == str(data / "reports" / f"{summary['batch_id']}.html")
    assert Path(summary["report"]).stat().st_mode & 0o077 == 0, "others can read the report"
    assert len(summary["suspected_injections"]) == 2
    assert all(each["message"] for each in summary["broken_files"])
    assert len(summary["broken_files"]) == broken
    check_agreement(summary["agreement"], graded=files - broken)


def check_agreement(agreement: dict[str, Any], *, graded: int) -> None:
    """Every figure is stated with its number and its interval, and with whose marks it goes by."""
    assert "no teacher" in agreement["marked_by"]
    assert agreement["totals"]["count"] == graded
    correlation = agreement["totals"]["pearson"]
    # wide on purpose: what the figures are is the report's business, that they are no noise is ours
    assert 0.5 < correlation["low"] <= correlation["value"] <= correlation["high"] <= 1.0
    assert {"surer", "rest"} <= agreement["surer_half"].keys()
    assert all(0 < each["count"] <= graded for each in agreement["questions"].values())


@pytest.mark.prove
def test_ctrl_c_in_the_middle_of_the_demo_ends_it_at_once_and_in_order(tmp_path: Path) -> None:
    with subprocess.Popen(
        [ASSAY, "demo"],
        cwd=tmp_path,
        env=environment(tmp_path / "data"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    ) as demo:
        until(
            lambda: (tmp_path / "data" / "installation.json").exists(),
            "the demonstration grades",
            START_SECONDS,
        )
        time.sleep(1.0)
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=STOP_SECONDS)
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert not processes_of(tmp_path)

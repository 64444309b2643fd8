"""The demonstration as a newcomer runs it: one command, one object, nothing left behind."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.river.installation import ASSAY, environment, processes_of, run_assay, until

KEYS = ["batch_id", "state", "files", "completed", "failed", "needs_review", "seconds", "temporal_ui"]


@pytest.mark.prove
def test_the_demo_prints_one_object_and_leaves_nothing_behind(tmp_path: Path) -> None:
    began = time.monotonic()
    home = tmp_path / "home"
    home.mkdir()
    demo = run_assay(home / "data", "demo", "--json", HOME=str(home), within_seconds=120)
    seconds = time.monotonic() - began
    assert demo.returncode == 0, demo.stderr
    summary = json.loads(demo.stdout)  # one document and nothing beside it, or it would not parse
    assert list(summary) == KEYS
    assert summary["state"] == "partial"
    assert summary["files"] == summary["completed"] + summary["failed"] == 44
    assert summary["failed"] == 2
    assert 0 < summary["seconds"] < seconds
    assert summary["batch_id"] in summary["temporal_ui"]
    assert not processes_of(tmp_path)
    assert [path.name for path in home.iterdir()] == ["data"], "something was written outside the folder"
    assert "Broken invariant" not in demo.stderr
    assert "Traceback" not in demo.stderr
    print(f"demo: {seconds:.1f} s in all, {summary['seconds']} s for the batch")  # noqa: T201  for -rP


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
        until(lambda: (tmp_path / "data" / "installation.json").exists(), "the demonstration grades", 60)
        time.sleep(1.0)
        demo.send_signal(signal.SIGINT)
        began = time.monotonic()
        output, _ = demo.communicate(timeout=30)
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert not processes_of(tmp_path)
    assert time.monotonic() - began < 15

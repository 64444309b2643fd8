"""Workflows that are running when a new version comes go on: their histories replay."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import NondeterminismError

from workflows.batch import BatchWorkflow, WindowWorkflow
from workflows.diagnosis import DiagnosisWorkflow, LogWorkflow
from workflows.grading import GradingWorkflow
from workflows.overrides import OverrideWorkflow

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))
WORKFLOWS = [BatchWorkflow, WindowWorkflow, GradingWorkflow, OverrideWorkflow, LogWorkflow, DiagnosisWorkflow]
MACHINE_PATH = re.compile(r"(?<![\w.])/(tmp|home|root|work|usr|opt|var|Users)/|[A-Z]:\\\\")


@pytest.fixture(scope="module")
def replayer() -> Replayer:
    """The workflows as they are now, in the sandbox they run in."""
    return Replayer(
        workflows=WORKFLOWS,
        workflow_runner=SandboxedWorkflowRunner(
            restrictions=SandboxRestrictions.default.with_passthrough_modules(
                "activities", "domain", "structlog", "workflows"
            )
        ),
    )


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(path: Path, replayer: Replayer) -> None:
    await replayer.replay_workflow(WorkflowHistory.from_json(path.stem, path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_recorded_history_names_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for each in (text, *_payloads(json.loads(text))):
        found = MACHINE_PATH.search(each)
        assert found is None, each[max(0, found.start() - 40) : found.end() + 40]
    assert '"identity"' not in text


def test_every_workflow_has_recorded_histories() -> None:
    started = [
        json.loads(path.read_text(encoding="utf-8"))["events"][0]["workflowExecutionStartedEventAttributes"]
        for path in HISTORIES
    ]
    assert {each["workflowType"]["name"] for each in started} == {each.__name__ for each in WORKFLOWS}


async def test_a_history_of_other_steps_does_not_replay(replayer: Replayer) -> None:
    path = next(each for each in HISTORIES if each.stem == "grading-completed")
    text = path.read_text(encoding="utf-8")
    assert '"record_results"' in text
    other = text.replace('"record_results"', '"record_something"')
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(WorkflowHistory.from_json(path.stem, other))


def _payloads(value: Any) -> Iterator[str]:
    """Every payload in the document, decoded."""
    if isinstance(value, dict):
        if set(value) == {"metadata", "data"}:
            yield base64.b64decode(value["data"]).decode(errors="replace")
        for each in value.values():
            yield from _payloads(each)
    elif isinstance(value, list):
        for each in value:
            yield from _payloads(each)

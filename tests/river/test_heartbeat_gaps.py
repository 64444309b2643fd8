"""A model call of many heartbeat timeouts: the server hears of it at least twice in each (G2.3).

The short form is property 2, with slow stores and readers besides.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from domain.states import BatchState
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.river.test_money_kills import ROOT
from tests.river.test_money_kills import _variables as variables_of
from tests.workflows import plant
from tests.workflows.heartbeats import longest_gap_seconds, watched_at_the_server

CALL_SECONDS = 60.0
TIMEOUT_SECONDS = 10.0


def started(variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A worker for agents, of nobody else's event loop."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.river.mortal_worker"],
        cwd=ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.long
async def test_a_call_of_a_minute_is_accompanied_by_heartbeats_at_the_server(
    resources: Resources, tmp_path: Path
) -> None:
    resources = plant.with_worker_settings(resources, heartbeat_timeout_seconds=TIMEOUT_SECONDS)
    batch = await open_batch(resources, {"a.json": a_submission(plant.answers_to(1))}, exam=plant.exam_of(1))
    (file,) = await plant.files_of(resources, batch)
    child = plant.child_of(resources, file)
    script = tmp_path / "script.yaml"
    script.write_text(yaml.safe_dump({"latency_seconds": CALL_SECONDS}))
    patient = {"ASSAY_MODELS__TIMEOUT_SECONDS": str(2 * CALL_SECONDS)}
    worker = started(variables_of(resources, script) | patient)
    try:
        async with plant.running(plant.orchestration(resources)), watched_at_the_server(child) as heard:
            await plant.start(resources, batch)
            (ended,) = await plant.all_ended(resources, batch, within_seconds=120)
    finally:
        worker.kill()
        worker.wait()
    assert ended.state is BatchState.COMPLETED
    ((attempt, times),) = heard.items()
    assert attempt == (child.id, 1)
    assert times[-1] - times[0] > CALL_SECONDS - TIMEOUT_SECONDS / 2
    longest = longest_gap_seconds(times)
    print(  # noqa: T201  figures, shown by -rP
        f"{len(times)} moments heard of in a call of {CALL_SECONDS:g} s; "
        f"longest gap {longest:.2f} s of {TIMEOUT_SECONDS / 2:g} s allowed"
    )
    assert longest <= TIMEOUT_SECONDS / 2

"""A parsing worker in another language serves a batch (B3.3): docs/parsing-workers.md, proven."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.resources import Resources
from runtime.settings import Settings
from runtime.worker import cognition_worker, orchestration_worker, serving
from tests.builders import ended
from tests.conftest import KEY, opened, served

WORKER = Path(__file__).with_name("parsing_worker")
LOG = "".join(f"2026-03-01T10:00:{n:02}Z INFO block {n} written to slot A\n" for n in range(50))
FAULTY = LOG + "".join(f"2026-03-01T10:01:0{n}Z ERROR slot B failed to verify, code {n}\n" for n in range(4))


@pytest.fixture(scope="module")
def built_worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker, compiled; its packages come from npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("worker") / "parsing_worker"
    shutil.copytree(WORKER, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    for command in (["npm", "install", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400, check=False)
        if made.returncode and command[1] == "install":
            pytest.skip(f"npm cannot fetch the packages: {made.stderr[-300:]}")
        assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture
async def foreign_parser(built_worker: Path, app_settings: Settings) -> AsyncIterator[None]:
    """The worker, serving this test's queue."""
    temporal = app_settings.temporal
    environment = {
        **os.environ,
        "ASSAY_TEMPORAL__ADDRESS": str(temporal.address),
        "ASSAY_TEMPORAL__NAMESPACE": temporal.namespace,
        "ASSAY_TEMPORAL__PARSING_QUEUE": temporal.parsing_queue,
        "ASSAY_OBJECTS__URL": app_settings.objects_url,
    }
    process = await asyncio.create_subprocess_exec(
        "node", "dist/worker.js", cwd=built_worker, env=environment
    )
    yield
    process.terminate()
    await asyncio.wait_for(process.wait(), 30)


async def diagnosed(api: httpx.AsyncClient, resources: Resources, logs: dict[str, str]) -> dict[str, Any]:
    """The report of a batch of these logs, once it has ended."""
    opened_ = await api.post("/v1/batches", json={"kind": "diagnosis"})
    batch_id: str = opened_.json()["batch_id"]
    for name, content in logs.items():
        stored = await api.put(f"/v1/batches/{batch_id}/files/{name}", content=content.encode())
        stored.raise_for_status()
    (await api.post(f"/v1/batches/{batch_id}/complete")).raise_for_status()
    await ended(resources, batch_id)
    report: dict[str, Any] = (await api.get(f"/v1/batches/{batch_id}/report")).json()
    return report


@pytest.mark.long
async def test_logs_are_parsed_by_a_worker_in_typescript(
    app_settings: Settings, foreign_parser: None
) -> None:
    async with opened(app_settings) as resources, served(app_settings) as url:
        await serve_and_check(resources, url)


async def serve_and_check(resources: Resources, url: str) -> None:
    """The other queues are served here; nobody but the foreign worker parses."""
    workers = [orchestration_worker(resources), cognition_worker(resources)]
    client = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    async with serving(resources, workers, relay=True), client as api:
        report = await diagnosed(api, resources, {"a.log": LOG, "b.log": FAULTY})

    assert report["batch"]["status"] == "completed", report["failures"]
    assert report["counts"]["completed"] == report["total_files"] == 2
    assert (report["summary"]["lines"], report["summary"]["parsed_lines"]) == (104, 104)
    counts = {each["text"]: each["count"] for each in report["templates"]}
    assert counts == {"block <*> written to slot A": 100, "slot B failed to verify, code <*>": 4}
    rows = await resources.postgres.rows("SELECT parser FROM logs")
    assert {row["parser"] for row in rows} == {"typescript-example/1"}

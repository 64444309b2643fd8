"""A whole installation in a folder of its own, as `assay up` makes it, with batches to time."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from temporalio.client import Client

from benchmarks.figures import cpu_seconds
from benchmarks.material import exam_document, model_script, submission
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState
from runtime.client import ApiClient
from runtime.embedded import Addresses, running_stack
from runtime.local import local_installation
from runtime.processes import read_json
from runtime.settings import Settings

_LOOK_SECONDS = 0.1
_VISIBLE_SECONDS = 30.0
#: no file ends for so long only when nothing moves any more
_STALLED_SECONDS = 120.0
_STATUS_SQL = """
SELECT b.status, (SELECT count(*) FROM files f WHERE f.batch_id = b.id AND f.state = ANY(%s))
FROM batches b WHERE b.id = %s
"""

#: hears how many files have ended
Listener = Callable[[int], None]


class BatchNotCompleted(Exception):
    """A batch stood still, or ended otherwise than `completed`: its time means nothing."""


@dataclass(frozen=True)
class Timed:
    """A batch's way from `complete` to its final state."""

    batch_id: str
    seconds: float
    #: CPU seconds by process, meanwhile
    cpu: dict[str, float]


@dataclass(frozen=True)
class Installation:
    """A running installation and the ways to ask it."""

    folder: Path
    url: str
    key: str
    addresses: Addresses
    client: ApiClient
    postgres: psycopg.AsyncConnection[tuple[str, int]]
    temporal: Client

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds by process so far."""
        running = (read_json(self.folder / "processes.json") or {"processes": []})["processes"]
        return cpu_seconds({each["name"]: each["pid"] for each in running})

    async def hand_in(self, question_id: str, files: int, concurrent: int) -> str:
        """A batch with its files, ready to be completed."""
        exam = await asyncio.to_thread(self.client.post, "/v1/exams", exam_document(question_id))
        opening = {"kind": "grading", "exam_id": exam["id"], "model": "scripted"}
        opening["max_concurrent"] = concurrent
        opened = await asyncio.to_thread(self.client.post, "/v1/batches", opening)
        batch_id: str = opened["batch_id"]
        await asyncio.to_thread(self._upload, batch_id, question_id, files)
        return batch_id

    def _upload(self, batch_id: str, question_id: str, files: int) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            for number in range(files):
                path = Path(folder) / f"student-{number:04}.json"
                path.write_bytes(submission(question_id))
                self.client.upload(batch_id, path)

    async def run(self, batch_id: str, on_ended: Listener) -> Timed:
        """Complete the batch and wait until it has ended."""
        before, began = self.cpu_seconds(), time.perf_counter()
        await asyncio.to_thread(self.client.post, f"/v1/batches/{batch_id}/complete")
        state = await self._ended(batch_id, on_ended)
        seconds, after = time.perf_counter() - began, self.cpu_seconds()
        if state is not BatchState.COMPLETED:
            raise BatchNotCompleted(f"Batch {batch_id} ended {state}; see {self.folder / 'logs'}.")
        return Timed(batch_id, seconds, {name: after[name] - before[name] for name in before})

    async def _ended(self, batch_id: str, on_ended: Listener) -> BatchState:
        """The final state; looks at Postgres, as a watcher of the API would be part of what is measured."""
        most, deadline = -1, 0.0
        while True:
            cursor = await self.postgres.execute(_STATUS_SQL, [sorted(FILE_MACHINE.final), batch_id])
            row = await cursor.fetchone()
            assert row is not None
            state, ended = BatchState(row[0]), row[1]
            on_ended(ended)
            if state in BATCH_MACHINE.final:
                return state
            if ended > most:
                most, deadline = ended, time.monotonic() + _STALLED_SECONDS
            elif time.monotonic() > deadline:
                raise BatchNotCompleted(f"Batch {batch_id} stands still, {state}, {ended} files ended.")
            await asyncio.sleep(_LOOK_SECONDS)

    async def history_lengths(self, batch_id: str, files: int) -> list[int]:
        """Events in the history of each of the batch's grading workflows."""
        query = f"AssayBatch = '{batch_id}' AND WorkflowType = 'GradingWorkflow' AND CloseTime IS NOT NULL"
        async with asyncio.timeout(_VISIBLE_SECONDS):
            while True:
                found = [each.history_length async for each in self.temporal.list_workflows(query)]
                if len(found) == files:
                    return found
                await asyncio.sleep(_LOOK_SECONDS)


@asynccontextmanager
async def installation(latency_seconds: float, **settings: str) -> AsyncIterator[Installation]:
    """Servers, workers and API as `assay up` starts them, over a temporary folder, then gone.

    `settings` are variables of the environment beside the defaults.
    """
    with tempfile.TemporaryDirectory(prefix="assay-benchmark-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "data"
        script = Path(name) / "script.json"
        script.write_text(model_script(latency_seconds))
        _set_environment({"ASSAY_MODELS__SCRIPT": str(script), **settings})
        async with local_installation(Settings(folder=folder)) as local:
            stack = running_stack(folder)
            assert stack is not None
            addresses = stack.addresses
            with ApiClient(local.api_url, local.key) as client:
                temporal = await Client.connect(
                    addresses.temporal_address, namespace=addresses.temporal_namespace
                )
                async with await _connect(addresses.postgres_url) as postgres:
                    yield Installation(
                        folder, local.api_url, local.key, addresses, client, postgres, temporal
                    )


async def _connect(url: str) -> psycopg.AsyncConnection[tuple[str, int]]:
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


def _set_environment(settings: Mapping[str, str]) -> None:
    """Our settings alone, whatever the caller's environment says: the defaults are what is measured."""
    for name in [each for each in os.environ if each.startswith("ASSAY_")]:
        del os.environ[name]
    os.environ.update(settings)

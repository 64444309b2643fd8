"""An upload goes on where it was after the API was killed (B2)."""

import asyncio
import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from db.postgres.uploads import PostgresResumableUploads
from runtime.embedded import Addresses
from runtime.resources import Resources
from runtime.sweeper import LANDING_TIME, UploadSweeper
from tests.api.test_resumable_uploads import PATCH, TUS, metadata
from tests.conftest import KEY
from tests.db.s3 import free_port
from tests.river.installation import ASSAY, environment
from tests.runtime.test_upload_sweeper import HeldClock

MIB = 1024**2
KILLS = 3


class Api:
    """The API as a process of its own, at an address that stays."""

    def __init__(self, settings: dict[str, str], port: int, output: Path) -> None:
        self._settings = settings | {"ASSAY_API__PORT": str(port)}
        self._output = output
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [ASSAY, "api"], env=self._settings, stdout=output, stderr=subprocess.STDOUT
            )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self._process.poll() is None, self._output.read_text()
            try:
                httpx.get(f"{self.url}/health/live")
            except httpx.TransportError:
                time.sleep(0.2)
            else:
                return
        raise TimeoutError(self.url)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def api_of(settings: dict[str, str], output: Path) -> Iterator[Api]:
    """An API that is gone after the block."""
    api = Api(settings, free_port(), output)
    try:
        api.start()
        yield api
    finally:
        api.kill()


@pytest.mark.prove
async def test_an_upload_survives_the_kills_of_the_api(
    addresses: Addresses, resources: Resources, database_url: str, own_redis_url: str, tmp_path: Path
) -> None:
    content = os.urandom(48 * MIB)
    settings = environment(
        tmp_path / "data",
        ASSAY_POSTGRES__URL=database_url,
        ASSAY_REDIS__URL=own_redis_url,
        ASSAY_TEMPORAL__ADDRESS=addresses.temporal_address,
        ASSAY_TEMPORAL__NAMESPACE=addresses.temporal_namespace,
        ASSAY_OBJECTS__URL=f"file://{tmp_path / 'objects'}",
        ASSAY_API__KEY=KEY,
    )
    file = await asyncio.to_thread(uploaded_through_kills, settings, tmp_path / "api.log", content)
    assert file["sha256"] == hashlib.sha256(content).hexdigest()

    def left() -> list[Path]:
        return [each for each in (tmp_path / "objects" / "uploads").rglob("*") if each.is_file()]

    # parts are gone with their upload; what a killed process was writing, once nobody can be at it any more
    assert len(left()) <= KILLS
    later = HeldClock(datetime.now(UTC) + 2 * LANDING_TIME)
    await UploadSweeper(PostgresResumableUploads(resources.postgres), resources.objects, later).sweep_once()
    assert left() == []


def uploaded_through_kills(settings: dict[str, str], output: Path, content: bytes) -> dict[str, Any]:
    """The file as its batch lists it, after an upload by tus during which the API was killed."""
    chance = random.Random(7)  # noqa: S311  # draws moments, no secrets
    with (
        api_of(settings, output) as api,
        httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):
        exam = {
            "title": "T",
            "questions": [{"id": "q", "type": "exact", "prompt": "?", "points": 1, "answer": "4"}],
        }
        exam_id = client.post(f"{api.url}/v1/exams", json=exam).json()["id"]
        opened = client.post(f"{api.url}/v1/batches", json={"kind": "grading", "exam_id": exam_id}).json()
        stated = metadata(batch_id=opened["batch_id"], filename=f"{uuid4()}.log")
        made = client.post(
            f"{api.url}/v1/uploads", headers={**TUS, "Upload-Length": str(len(content)), **stated}
        )
        url = made.headers["Location"]
        offset = 0
        for _ in range(KILLS):
            last = min(len(content) - MIB, offset + chance.randrange(7 * MIB, 14 * MIB))
            send_and_kill(client, api, url, content, offset, last)
            api.start()
            before, offset = offset, offset_of(client, url)
            assert before <= offset <= last
        assert offset > 0
        answer = client.patch(url, headers={**PATCH, "Upload-Offset": str(offset)}, content=content[offset:])
        assert answer.status_code == 204, answer.text
        listed: dict[str, Any]
        [listed] = client.get(f"{api.url}/v1/batches/{opened['batch_id']}/files").json()["items"]
        return listed


def send_and_kill(client: httpx.Client, api: Api, url: str, content: bytes, offset: int, last: int) -> None:
    """Send from the offset on, and kill the API once the bytes before `last` are on their way."""

    def stream() -> Iterator[bytes]:
        for start in range(offset, last, MIB // 4):
            yield content[start : min(start + MIB // 4, last)]
        time.sleep(0.2)
        api.kill()
        yield content[last:]

    headers = {**PATCH, "Upload-Offset": str(offset), "Content-Length": str(len(content) - offset)}
    with pytest.raises(httpx.TransportError):
        client.patch(url, headers=headers, content=stream())


def offset_of(client: httpx.Client, url: str) -> int:
    """How far the upload is."""
    answer = client.head(url, headers=TUS)
    assert answer.status_code == 200, answer.text
    return int(answer.headers["Upload-Offset"])

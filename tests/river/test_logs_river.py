"""The river of logs on real servers: the source's test report and its worker test, number by number (B10)."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, ClassVar

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

import runtime.worker
from db.redis.barrier import BARRIER_SECONDS, RedisBarrier, barrier_key
from runtime.cli import app
from runtime.resources import Resources
from runtime.server import services
from runtime.worker import cognition_worker, orchestration_worker, parsing_worker, serving
from tests.builders import ended
from tests.conftest import KEY

#: as the report has them
OPENING = {"vehicle_id": "FULL-FLOW-TEST", "vin": "FULLFLOWVIN001", "expected_workers": 2}
LOG = "".join(f"2026-01-21 23:17:{n:02} INFO  rec {n} written to slot A\n" for n in range(30))
FAULTY = LOG + "2026-01-21 23:18:00 ERROR checksum mismatch in slot B, expected 0x1f2e, found 0x0000\n" * 4
NEW = LOG + "2026-01-21 23:18:00 ERROR watchdog has reset unit 3\n" * 10


class WatchedBarrier(RedisBarrier):
    """The barrier, which tells what SADD answered."""

    answers: ClassVar[dict[str, list[int]]] = {}

    async def arrive(self, batch_id: str, file_id: str) -> int:
        """As the barrier's."""
        added = await super().arrive(batch_id, file_id)
        self.answers.setdefault(batch_id, []).append(added)
        return added


@pytest.fixture(scope="module")
async def river(session_resources: Resources) -> AsyncIterator[None]:
    """All workers and the relay, with the watched barrier plugged in."""
    with pytest.MonkeyPatch.context() as wiring:
        wiring.setattr(runtime.worker, "RedisBarrier", WatchedBarrier)
        wired = (orchestration_worker, cognition_worker, parsing_worker)
        workers = [each(session_resources) for each in wired]
    async with serving(session_resources, workers, relay=True):
        yield


async def handed_in(api: httpx.AsyncClient, **opening: Any) -> str:
    """A batch as the report hands it in, through the source's paths: opened, two files, completed."""
    opened = await api.post("/api/v1/batches", json=OPENING | opening)
    assert opened.status_code == 201, opened.text
    batch_id: str = opened.json()["batch_id"]
    assert (opened.json()["status"], opened.json()["total_files"]) == ("pending", 0)
    for name, content in (("rec-1.log", LOG), ("rec-2.log", FAULTY)):
        stored = await api.put(f"/api/v1/batches/{batch_id}/files/{name}", content=content.encode())
        stored.raise_for_status()
    before = (await api.get(f"/api/v1/batches/{batch_id}")).json()
    # the two faults that the report knows of: no files were counted, and the batch ran off without them
    assert (before["status"], before["total_files"]) == ("pending", 2)
    completed = await api.post(f"/api/v1/batches/{batch_id}/complete")
    assert completed.status_code == 202, completed.text
    assert completed.json()["total_files"] == 2
    assert completed.json()["estimate"]["most"]["cost_est_usd"] == "0.00"
    return batch_id


async def events_of(api: httpx.AsyncClient, resources: Resources, batch_id: str) -> list[dict[str, Any]]:
    """The batch's events as they are published, in order, once all have their numbers."""
    batches = services(resources).batches
    async with asyncio.timeout(20):
        while (await batches.event_position(batch_id)).unnumbered:
            await asyncio.sleep(0.02)
    return [each.document() for each in await batches.events_after(batch_id, 0, 1000)]


async def test_the_report_of_the_source_is_replayed(
    api: httpx.AsyncClient, session_resources: Resources, river: None
) -> None:
    batch_id = await handed_in(api)
    batch = await ended(session_resources, batch_id)
    assert (batch.state, batch.opening.kind) == ("completed", "diagnosis")

    events = await events_of(api, session_resources, batch_id)
    kinds = [each["event_type"] for each in events]
    assert [kinds.count(each) for each in ("BatchCreated", "UploadCompleted", "FileParsed")] == [1, 1, 2]
    parsed = [each for each in events if each["event_type"] == "FileParsed"]
    for each in parsed:
        assert each["batch_id"] == batch_id
        assert datetime.fromisoformat(each["timestamp"]).tzinfo is not None
    file_ids = {each["file_id"] for each in parsed}
    assert len(file_ids) == 2
    moves = [
        each["to"] for each in events if each["event_type"] == "StatusChanged" and each["machine"] == "batch"
    ]
    assert moves == [
        "uploaded", "scattering", "scattered", "gathering", "gathered", "diagnosing", "completed",
    ]  # fmt: skip
    order = [kinds.index(each) for each in ("AllFilesScattered", "AllFilesGathered", "DiagnosisCompleted")]
    assert order == sorted(order)
    assert kinds[-2:] == ["ReportReady", "StatusChanged"]
    assert [each["number"] for each in events] == list(range(1, len(events) + 1))

    # SADD 1, 1, 0; SCARD 2; SMEMBERS: the two; for 24 hours
    assert WatchedBarrier.answers[batch_id] == [1, 1]
    assert await RedisBarrier(session_resources.redis).arrive(batch_id, min(file_ids)) == 0
    async with Redis.from_url(
        session_resources.settings.redis.url.get_secret_value(),  # type: ignore[union-attr]  # it is set
        decode_responses=True,
    ) as redis:
        assert await redis.scard(barrier_key(batch_id)) == 2
        assert await redis.smembers(barrier_key(batch_id)) == file_ids  # type: ignore[misc]  # redis-py's own
        assert 0 < await redis.ttl(barrier_key(batch_id)) <= BARRIER_SECONDS

    files = (await api.get(f"/api/v1/batches/{batch_id}/files")).json()["items"]
    assert [each["log"]["lines"] for each in files] == [30, 34]
    assert {each["log"]["coverage"] for each in files} == {1.0}
    assert files[1]["log"]["levels"]["error"] == 4


async def test_the_worker_test_of_the_source_is_replayed(
    api: httpx.AsyncClient, session_resources: Resources, river: None
) -> None:
    batch_ids = await asyncio.gather(*(handed_in(api, name=f"batch {n}") for n in range(5)))
    batches = await asyncio.gather(*(ended(session_resources, each) for each in batch_ids))
    assert [each.state for each in batches] == ["completed"] * 5
    parsed = await session_resources.postgres.rows(
        "SELECT file_id FROM progress_events WHERE batch_id = ANY(%s::uuid[]) AND event_type = 'FileParsed'",
        [list(batch_ids)],
    )
    assert len(parsed) == len({row["file_id"] for row in parsed}) == 10
    barrier = RedisBarrier(session_resources.redis)
    assert [await barrier.count(each) for each in batch_ids] == [2] * 5


async def command(*arguments: str) -> str:
    """What `assay` prints."""
    done = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


async def test_a_batch_is_compared_with_a_baseline_by_name_and_by_id(
    api: httpx.AsyncClient,
    session_resources: Resources,
    river: None,
    api_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASSAY_API__URL", api_url)
    monkeypatch.setenv("ASSAY_API__KEY", KEY)
    healthy = await handed_in(api)
    await ended(session_resources, healthy)
    named = await api.put("/v1/baselines/健康 1", json={"batch_id": healthy})
    assert named.status_code == 200, named.text
    assert (await api.get("/v1/baselines/健康 1")).json() == named.json()
    assert healthy in await command("baseline", "set", "a/b", healthy)
    listed = json.loads(await command("baseline", "list", "--json"))["baselines"]
    assert {each["name"]: each["batch_id"] for each in listed} == {"a/b": healthy, "健康 1": healthy}
    await command("baseline", "remove", "a/b")

    by_name = (await api.post("/v1/batches", json={"baseline": "健康 1"})).json()
    by_id = (await api.post("/v1/batches", json={"kind": "diagnosis", "baseline": healthy})).json()
    assert by_name["baseline_batch_id"] == by_id["baseline_batch_id"] == healthy
    pending = await api.put("/v1/baselines/pending", json={"batch_id": by_id["batch_id"]})
    assert (pending.status_code, pending.json()["field"]) == (409, "batch_id")
    unknown = await api.post("/v1/batches", json={"baseline": "unheard-of"})
    assert (unknown.status_code, unknown.json()["field"]) == (404, "baseline")
    assert (await api.put(f"/v1/baselines/{healthy}", json={"batch_id": healthy})).status_code == 422

    assert (await api.delete("/v1/baselines/健康 1")).status_code == 204
    assert (await api.get("/v1/baselines/健康 1")).status_code == 404
    # what was opened with the name keeps what it stood for
    await api.put(f"/v1/batches/{by_name['batch_id']}/files/a.log", content=NEW.encode())
    await api.post(f"/v1/batches/{by_name['batch_id']}/complete")
    await ended(session_resources, by_name["batch_id"])
    row = await session_resources.postgres.row(
        "SELECT document FROM log_summaries WHERE batch_id = %s", [by_name["batch_id"]]
    )
    assert row is not None
    assert row["document"]["baseline"] == {"batch_id": healthy, "name": "健康 1", "files": 2, "lines": 64}
    assert {each["change"] for each in row["document"]["anomalies"]} == {"new"}

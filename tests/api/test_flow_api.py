"""A batch's whole way over HTTP: opened, filled, completed, followed, reported; and nobody else's."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from db.postgres.tenants import PostgresKeys
from runtime.resources import Resources
from runtime.settings import Settings

OpenBatch = Callable[..., Awaitable[str]]

OTHER_KEY = "assay_test_key_of_another_tenant"


@pytest.fixture
async def stranger(api_url: str, session_resources: Resources, api: httpx.AsyncClient) -> AsyncIterator[Any]:
    """A client with another tenant's key."""
    await PostgresKeys(session_resources.postgres).ensure("other", "Other", "other", OTHER_KEY)
    async with httpx.AsyncClient(base_url=api_url, headers={"X-API-Key": OTHER_KEY}) as client:
        yield client


async def numbers_until(api: httpx.AsyncClient, url: str, after: int, at_most: int) -> tuple[list[int], bool]:
    """The numbers of the events after that one, and whether the end was told."""
    numbers: list[int] = []
    name = ""
    async with api.stream("GET", url, params={"after": after}) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: ") and name == "end":
                return numbers, True
            if line.startswith("data: ") and name != "snapshot":
                numbers.append(json.loads(line.removeprefix("data: "))["number"])
                if len(numbers) == at_most:
                    break
    return numbers, False


@pytest.mark.usefixtures("workers")
async def test_a_batch_goes_its_whole_way(api: httpx.AsyncClient, batch_id: str) -> None:
    right, wrong, unreadable = [
        (await api.put(f"/v1/batches/{batch_id}/files/{name}", content=content)).json()["file_id"]
        for name, content in (("a.txt", b"q1: 443"), ("b.txt", b"q1: 80"), ("c.txt", b"%PDF-1.7 cut off"))
    ]
    url = f"/v1/batches/{batch_id}/events"

    await api.post(f"/v1/batches/{batch_id}/complete")
    # a client that loses its connection after every fourth event
    numbers: list[int] = []
    ended = False
    async with asyncio.timeout(60):
        while not ended:
            more, ended = await numbers_until(api, url, numbers[-1] if numbers else 0, at_most=4)
            numbers += more

    assert numbers == list(range(1, len(numbers) + 1))
    batch = (await api.get(f"/v1/batches/{batch_id}")).json()
    assert (batch["status"], batch["progress"]["percentage"]) == ("partial", 100.0)
    marks = (await api.get(f"/v1/batches/{batch_id}/files/{right}/results")).json()
    assert (marks["state"], marks["score"], marks["results"][0]["criteria"][0]["points"]) == (
        "completed",
        1,
        1,
    )
    assert (await api.get(f"/v1/batches/{batch_id}/files/{wrong}/results")).json()["score"] == 0
    failed = (await api.get(f"/v1/batches/{batch_id}/files/{unreadable}/results")).json()
    assert (failed["state"], failed["results"]) == ("failed", [])
    assert "unreadable_submission" in failed["detail"]
    report = (await api.get(f"/v1/batches/{batch_id}/report")).json()
    assert report["counts"] == batch["progress"]["counts"]
    assert report["total_files"] == 3
    again = await api.post(f"/v1/batches/{batch_id}/complete")
    assert (again.status_code, again.json()["status"]) == (202, "partial")
    assert (await api.post(f"/v1/batches/{batch_id}/cancel")).status_code == 200


async def test_a_tenant_never_sees_another_ones(
    api: httpx.AsyncClient, stranger: httpx.AsyncClient, batch_id: str, exam_id: str
) -> None:
    uploaded = await api.put(f"/v1/batches/{batch_id}/files/a.txt", content=b"q1: 443")
    file_id = uploaded.json()["file_id"]
    await api.get(f"/v1/batches/{batch_id}/report")

    answers = [
        await stranger.get(f"/v1/exams/{exam_id}"),
        await stranger.get(f"/v1/batches/{batch_id}"),
        await stranger.get(f"/v1/batches/{batch_id}/files"),
        await stranger.get(f"/v1/batches/{batch_id}/files/{file_id}/results"),
        await stranger.get(f"/v1/batches/{batch_id}/report"),
        await stranger.get(f"/v1/batches/{batch_id}/events"),
        await stranger.get(f"/v1/submissions/{file_id}/state"),
        await stranger.put(f"/v1/batches/{batch_id}/files/b.txt", content=b"1"),
        await stranger.post(f"/v1/batches/{batch_id}/files", files=[("f", ("b.txt", b"1"))]),
        await stranger.post(f"/v1/batches/{batch_id}/complete"),
        await stranger.post(f"/v1/batches/{batch_id}/cancel"),
        await stranger.post("/v1/batches", json={"kind": "grading", "exam_id": exam_id}),
    ]

    assert [each.status_code for each in answers] == [404] * len(answers)
    assert (await stranger.get("/v1/batches")).json()["items"] == []
    assert (await stranger.get("/v1/exams")).json()["items"] == []


async def test_a_cached_report_is_nobody_elses_either(
    api: httpx.AsyncClient, stranger: httpx.AsyncClient, batch_id: str
) -> None:
    await api.post(f"/v1/batches/{batch_id}/cancel")
    for _ in range(2):
        assert (await api.get(f"/v1/batches/{batch_id}/report")).status_code == 200

    assert (await stranger.get(f"/v1/batches/{batch_id}/report")).status_code == 404


def objects_of(settings: Settings) -> set[Path]:
    folder = settings.folder / "objects"
    return {each for each in folder.rglob("*") if each.is_file()}


async def connection_to(api_url: str, head: str) -> socket.socket:
    address = urlsplit(api_url)
    connection = await asyncio.to_thread(socket.create_connection, (address.hostname, address.port))
    await asyncio.to_thread(connection.sendall, head.replace("\n", "\r\n").encode())
    return connection


@pytest.mark.parametrize("multipart", [False, True])
async def test_a_client_that_leaves_in_mid_upload_leaves_nothing(
    api: httpx.AsyncClient, api_url: str, batch_id: str, session_settings: Settings, multipart: bool
) -> None:
    before = objects_of(session_settings)
    method, path = ("POST", "files") if multipart else ("PUT", "files/cut.bin")
    head = (
        f"{method} /v1/batches/{batch_id}/{path} HTTP/1.1\nHost: test\n"
        f"Authorization: {api.headers['Authorization']}\n"
        "Content-Type: multipart/form-data; boundary=B\nContent-Length: 90000000\n\n"
    )
    part = '--B\nContent-Disposition: form-data; name="f"; filename="cut.bin"\n\n' if multipart else ""

    connection = await connection_to(api_url, head + part)
    await asyncio.to_thread(connection.sendall, b"x" * 12_000_000)
    async with asyncio.timeout(60):
        while objects_of(session_settings) == before:
            await asyncio.sleep(0.01)
        connection.close()
        while objects_of(session_settings) != before:
            await asyncio.sleep(0.01)

    assert (await api.get(f"/v1/batches/{batch_id}/files")).json()["total"] == 0


async def test_a_length_over_the_limit_is_refused_at_once(
    api: httpx.AsyncClient, api_url: str, batch_id: str
) -> None:
    head = (
        f"PUT /v1/batches/{batch_id}/files/big.bin HTTP/1.1\nHost: test\n"
        f"Authorization: {api.headers['Authorization']}\nContent-Length: {2 * 1024**3}\n\n"
    )

    connection = await connection_to(api_url, head)
    answer = (await asyncio.to_thread(connection.recv, 65_536)).decode()
    connection.close()

    assert answer.startswith("HTTP/1.1 413")
    assert (await api.get(f"/v1/batches/{batch_id}/files")).json()["total"] == 0

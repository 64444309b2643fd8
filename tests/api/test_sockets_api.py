"""WebSockets: the same snapshot and events, with the key in a header or in the first message."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

OpenBatch = Callable[..., Awaitable[str]]

# the relay beside the workers numbers the events
pytestmark = pytest.mark.usefixtures("workers")


async def messages_of(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """All messages until the server closes, and the code that it closed with."""
    messages = []
    try:
        async with asyncio.timeout(60):
            while True:
                messages.append(json.loads(await socket.recv()))
    except ConnectionClosed as closed:
        return messages, closed.rcvd.code if closed.rcvd else 1006


def socket_url(api_url: str, path: str) -> str:
    return api_url.replace("http://", "ws://") + path


async def test_a_batch_is_told_from_its_snapshot_to_its_end(
    api: httpx.AsyncClient, api_url: str, batch_id: str
) -> None:
    url = socket_url(api_url, f"/ws/batches/{batch_id}?after=0")
    async with connect(url, additional_headers={"Authorization": api.headers["Authorization"]}) as socket:
        await api.post(f"/v1/batches/{batch_id}/cancel")
        (snapshot, *events, end), code = await messages_of(socket)

    assert (snapshot["type"], snapshot["last_number"], code) == ("snapshot", 0, 1000)
    assert [(each["type"], each["number"]) for each in events] == [("event", 1), ("event", 2)]
    assert (end["type"], end["state"]) == ("end", "cancelled")


async def test_a_submission_is_told_by_its_own_events_alone(
    api: httpx.AsyncClient, api_url: str, batch_id: str
) -> None:
    files = [
        (await api.put(f"/v1/batches/{batch_id}/files/{name}", content=b"q1: 443")).json()["file_id"]
        for name in ("a", "b")
    ]
    url = socket_url(api_url, f"/ws/submissions/{files[0]}?after=0")
    async with connect(url) as socket:
        await socket.send(json.dumps({"key": api.headers["Authorization"].removeprefix("Bearer ")}))
        await api.post(f"/v1/batches/{batch_id}/complete")
        (snapshot, *events, end), code = await messages_of(socket)

    assert (snapshot["type"], snapshot["submission_id"], code) == ("snapshot", files[0], 1000)
    assert {each["file_id"] for each in events} == {files[0]}
    numbers = [each["number"] for each in events]
    assert numbers == sorted(set(numbers))
    assert end["state"] == "completed"


@pytest.mark.parametrize(
    ("headers", "first_message", "code"),
    [
        ({"X-API-Key": "unknown"}, None, 4401),
        ({}, '{"key": "unknown"}', 4401),
        ({}, '{"key": 1}', 4401),
        ({}, "[]", 4401),
        ({}, "no json", 4401),
    ],
)
async def test_a_socket_without_a_known_key_is_told_why_and_closed(
    api_url: str, batch_id: str, headers: dict[str, str], first_message: str | None, code: int
) -> None:
    async with connect(socket_url(api_url, f"/ws/batches/{batch_id}"), additional_headers=headers) as socket:
        if first_message is not None:
            await socket.send(first_message)
        (refusal,), closed = await messages_of(socket)

    assert (refusal["type"], refusal["problem"]["code"], closed) == ("error", "unauthenticated", code)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/ws/batches/0197c1de-1111-7000-8000-000000000000", 4404),
        ("/ws/submissions/nothing", 4404),
        ("/ws/batches/{batch_id}?after=99", 4422),
        ("/ws/batches/{batch_id}?after=x", 4422),
    ],
)
async def test_a_faulty_request_is_told_why_and_closed(
    api: httpx.AsyncClient, api_url: str, batch_id: str, path: str, code: int
) -> None:
    url = socket_url(api_url, path.format(batch_id=batch_id))
    async with connect(url, additional_headers={"Authorization": api.headers["Authorization"]}) as socket:
        (refusal,), closed = await messages_of(socket)

    assert (refusal["type"], closed) == ("error", code)

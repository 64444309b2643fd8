"""Uploads over HTTP: streamed, checked, idempotent."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest


def file_url(batch_id: str, name: str) -> str:
    return f"/v1/batches/{batch_id}/files/{quote(name, safe='')}"


async def names_in(api: httpx.AsyncClient, batch_id: str) -> list[str]:
    listed = await api.get(f"/v1/batches/{batch_id}/files", params={"page_size": 100})
    return [each["name"] for each in listed.json()["items"]]


async def test_an_upload_is_stored_with_its_digest(api: httpx.AsyncClient, batch_id: str) -> None:
    digest = hashlib.sha256(b"q1: 443").hexdigest()
    stated: dict[str, Any] = {"sha256": digest, "size": 7, "vehicle_id": "v-1", "vin": "WVWZZZ1JZXW000001"}

    answer = await api.put(file_url(batch_id, "a.txt"), content=b"q1: 443", params=stated)

    assert answer.status_code == 201
    file = answer.json()
    assert (file["sha256"], file["size_bytes"], file["state"]) == (digest, 7, "uploaded")
    assert (file["vehicle_id"], file["vin"]) == ("v-1", "WVWZZZ1JZXW000001")


@pytest.mark.parametrize(
    "name", ["李雷.txt", "../../etc/passwd", "a/b//c/", "%41", "a?b#c", " ", "x" * 255, "💥"]
)
async def test_a_name_is_data(api: httpx.AsyncClient, batch_id: str, name: str) -> None:
    answer = await api.put(file_url(batch_id, name), content=b"1")

    assert answer.status_code == 201
    assert await names_in(api, batch_id) == [name]


@pytest.mark.parametrize("name", ["a%0A", "a%00b", "%FF", "x" * 256, "%C2%85"])
async def test_what_is_no_name_is_refused(api: httpx.AsyncClient, batch_id: str, name: str) -> None:
    answer = await api.put(f"/v1/batches/{batch_id}/files/{name}", content=b"1")

    assert (answer.status_code, answer.json()["field"]) == (422, "name")


async def test_a_repetition_is_a_no_op_and_other_content_needs_overwrite(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    url = file_url(batch_id, "a.txt")
    first = await api.put(url, content=b"one")

    same = await api.put(url, content=b"one")
    other = await api.put(url, content=b"two")
    replaced = await api.put(url, content=b"two", params={"overwrite": "true"})

    assert (same.status_code, same.json()["file_id"]) == (200, first.json()["file_id"])
    assert (other.status_code, other.json()["code"]) == (409, "file_exists")
    assert (replaced.status_code, replaced.json()["sha256"]) == (200, hashlib.sha256(b"two").hexdigest())
    assert await names_in(api, batch_id) == ["a.txt"]


@pytest.mark.parametrize(
    ("stated", "status", "field"),
    [
        ({"sha256": "0" * 64}, 409, "sha256"),
        ({"sha256": "zz"}, 422, "sha256"),
        ({"size": "4"}, 409, "size"),
        ({"size": "2"}, 409, "size"),
        ({"size": "-1"}, 422, "size"),
        ({"vin": "a-b"}, 422, "vin"),
        ({"overwrite": "perhaps"}, 422, "overwrite"),
        ({"surprise": "1"}, 422, "surprise"),
    ],
)
async def test_a_statement_that_does_not_hold_keeps_nothing(
    api: httpx.AsyncClient, batch_id: str, stated: dict[str, str], status: int, field: str
) -> None:
    answer = await api.put(file_url(batch_id, "a.txt"), content=b"abc", params=stated)

    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text
    assert await names_in(api, batch_id) == []


async def test_a_stream_of_unknown_length_is_taken(api: httpx.AsyncClient, batch_id: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 65_536

    answer = await api.put(file_url(batch_id, "big"), content=chunks())

    assert answer.json()["size_bytes"] == 6_553_600


async def test_a_multipart_request_stores_several_files(api: httpx.AsyncClient, batch_id: str) -> None:
    url = f"/v1/batches/{batch_id}/files"
    files = [("file", ("李雷.txt", b"one" * 50_000)), ("file", ("d/e.txt", b"")), ("file", ("f", b"\r\n--"))]

    first = await api.post(url, files=files, headers={"Idempotency-Key": "upload-1"})
    second = await api.post(url, files=files, headers={"Idempotency-Key": "upload-1"})

    assert first.status_code == 201
    assert [(each["name"], each["size_bytes"]) for each in first.json()["files"]] == [
        ("李雷.txt", 150_000),
        ("d/e.txt", 0),
        ("f", 4),
    ]
    assert (second.status_code, second.json()) == (200, first.json())
    assert second.headers["idempotency-replayed"] == "true"


async def test_a_refused_part_ends_the_request_and_says_what_was_stored(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    await api.put(file_url(batch_id, "b"), content=b"old")

    answer = await api.post(
        f"/v1/batches/{batch_id}/files",
        files=[("file", ("a", b"1")), ("file", ("b", b"new")), ("file", ("c", b"3"))],
    )

    assert (answer.status_code, answer.json()["code"]) == (409, "file_exists")
    assert [each["name"] for each in answer.json()["stored"]] == ["a"]
    assert await names_in(api, batch_id) == ["a", "b"]


async def test_a_multipart_body_that_is_cut_off_keeps_nothing(api: httpx.AsyncClient, batch_id: str) -> None:
    body = b'--B\r\nContent-Disposition: form-data; name="f"; filename="cut"\r\n\r\nhalf'

    answer = await api.post(
        f"/v1/batches/{batch_id}/files",
        content=body,
        headers={"Content-Type": "multipart/form-data; boundary=B"},
    )

    assert answer.status_code == 422
    assert await names_in(api, batch_id) == []


async def test_a_file_that_is_not_graded_has_its_state_and_no_results(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    file_id = (await api.put(file_url(batch_id, "a.txt"), content=b"q1: 443")).json()["file_id"]

    results = (await api.get(f"/v1/batches/{batch_id}/files/{file_id}/results")).json()
    state = (await api.get(f"/v1/submissions/{file_id}/state")).json()

    assert (results["state"], results["results"]) == ("uploaded", [])
    assert (state["state"], state["source"]) == ("uploaded", "row")

"""Uploads by the tus protocol: parts arrive whenever they can, and become one file (B2)."""

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import aiotus
import httpx
import pytest

from runtime.settings import Settings
from tests.conftest import KEY, opened

TUS = {"Tus-Resumable": "1.0.0"}
PATCH = {**TUS, "Content-Type": "application/offset+octet-stream"}


def metadata(**stated: str) -> dict[str, str]:
    """The header of a creation."""
    pairs = (f"{name} {base64.b64encode(text.encode()).decode()}" for name, text in stated.items())
    return {"Upload-Metadata": ",".join(pairs)}


async def create(api: httpx.AsyncClient, size: int | None, **stated: str) -> httpx.Response:
    """The answer to a new upload."""
    length = {"Upload-Defer-Length": "1"} if size is None else {"Upload-Length": str(size)}
    return await api.post("/v1/uploads", headers={**TUS, **length, **metadata(**stated)})


async def begin(api: httpx.AsyncClient, size: int | None, batch_id: str, name: str, **stated: str) -> str:
    """The address of a new upload."""
    answer = await create(api, size, batch_id=batch_id, filename=name, **stated)
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


async def send(api: httpx.AsyncClient, url: str, offset: int, content: bytes, **more: str) -> httpx.Response:
    """The answer to one stretch of the bytes."""
    headers = {**PATCH, "Upload-Offset": str(offset), **more}
    return await api.patch(url, headers=headers, content=content)


async def listed(api: httpx.AsyncClient, batch_id: str) -> list[dict[str, Any]]:
    """The batch's files."""
    answer = await api.get(f"/v1/batches/{batch_id}/files")
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def test_a_file_arrives_in_pieces(api: httpx.AsyncClient, batch_id: str) -> None:
    content = b"first half, second half"
    url = await begin(
        api,
        len(content),
        batch_id,
        "组 B/日志.txt",
        vehicle_id="v-1",
        sha256=hashlib.sha256(content).hexdigest(),
    )

    first = await send(api, url, 0, content[:11])
    half = await api.head(url, headers=TUS)
    assert await listed(api, batch_id) == []
    last = await send(api, url, 11, content[11:])

    assert (first.status_code, first.headers["Upload-Offset"]) == (204, "11")
    assert (half.headers["Upload-Offset"], half.headers["Upload-Length"]) == ("11", str(len(content)))
    assert (last.status_code, last.headers["Upload-Offset"]) == (204, str(len(content)))
    [file] = await listed(api, batch_id)
    assert (file["name"], file["size_bytes"], file["vehicle_id"]) == ("组 B/日志.txt", len(content), "v-1")
    assert file["sha256"] == hashlib.sha256(content).hexdigest()


async def test_a_client_of_others_making_uploads_a_file_of_several_parts(
    api: httpx.AsyncClient, api_url: str, batch_id: str
) -> None:
    content = bytes(range(256)) * 50_000  # more than two parts of 5 MiB
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        stated = {"filename": b"big.log", "batch_id": batch_id.encode()}
        url = await aiotus.upload(
            f"{api_url}/v1/uploads", io.BytesIO(content), stated, client_session=session, chunksize=900_000
        )

    assert url is not None
    [file] = await listed(api, batch_id)
    assert (file["size_bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


async def test_the_length_may_come_late_and_an_empty_file_is_one(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    late = await begin(api, None, batch_id, "late.log")
    await send(api, late, 0, b"abc")
    answer = await send(api, late, 3, b"def", **{"Upload-Length": "6"})
    await begin(api, 0, batch_id, "none.log")

    assert answer.status_code == 204, answer.text
    assert [(each["name"], each["size_bytes"]) for each in await listed(api, batch_id)] == [
        ("late.log", 6),
        ("none.log", 0),
    ]


async def test_a_stretch_that_does_not_begin_at_the_end_is_refused(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    url = await begin(api, 6, batch_id, "a.log")
    await send(api, url, 0, b"abc")

    answers = [await send(api, url, offset, b"xyz") for offset in (0, 2, 4)]

    assert [each.status_code for each in answers] == [409] * 3
    assert (await send(api, url, 3, b"def")).status_code == 204
    [file] = await listed(api, batch_id)
    assert file["sha256"] == hashlib.sha256(b"abcdef").hexdigest()


async def test_of_two_that_send_the_same_stretch_each_byte_is_kept_once(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    content = b"0123456789" * 10
    url = await begin(api, len(content), batch_id, "a.log")

    answers = await asyncio.gather(*(send(api, url, 0, content) for _ in range(6)))

    assert {each.status_code for each in answers} <= {204, 404, 409}
    assert 204 in {each.status_code for each in answers}
    [file] = await listed(api, batch_id)
    assert file["sha256"] == hashlib.sha256(content).hexdigest()


async def test_of_two_at_once_the_later_one_hears_that_its_bytes_were_not_taken(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    url = await begin(api, 6, batch_id, "a.log")
    is_under_way = asyncio.Event()
    may_end = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"AAA"
        is_under_way.set()
        await may_end.wait()
        yield b"AAA"

    headers = {**PATCH, "Upload-Offset": "0", "Content-Length": "6"}
    slow = asyncio.create_task(api.patch(url, headers=headers, content=slowly()))
    await is_under_way.wait()
    await asyncio.sleep(0.1)  # its first bytes are read while nothing has been stored
    quick = await send(api, url, 0, b"BBBBBB")
    may_end.set()

    assert (quick.status_code, (await slow).status_code) == (204, 409)
    [file] = await listed(api, batch_id)
    assert file["sha256"] == hashlib.sha256(b"BBBBBB").hexdigest()


async def test_a_body_of_unknown_length_is_refused_and_not_kept(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    url = await begin(api, 3, batch_id, "a.log")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"abc"

    answer = await api.patch(url, headers={**PATCH, "Upload-Offset": "0"}, content=chunks())

    assert (answer.status_code, "Content-Length" in answer.json()["detail"]) == (411, True)
    assert (await api.head(url, headers=TUS)).headers["Upload-Offset"] == "0"


async def test_what_is_wrong_is_said_before_a_byte_is_sent(
    api: httpx.AsyncClient, batch_id: str, open_batch: Any
) -> None:
    frozen = await open_batch()
    await api.put(f"/v1/batches/{frozen}/files/a", content=b"1")
    await api.post(f"/v1/batches/{frozen}/cancel")
    stated: list[tuple[dict[str, str], int, str]] = [
        ({"filename": "a"}, 422, "invalid_input"),
        ({"filename": "a", "batch_id": str(uuid4())}, 404, "not_found"),
        ({"filename": "a", "batch_id": frozen}, 409, "batch_frozen"),
        ({"batch_id": batch_id}, 422, "invalid_input"),
        ({"batch_id": batch_id, "filename": "a\nb"}, 422, "invalid_input"),
        ({"batch_id": batch_id, "filename": "a", "sha256": "abc"}, 422, "invalid_input"),
        ({"batch_id": batch_id, "filename": "a", "vin": "x" * 18}, 422, "invalid_input"),
        ({"batch_id": batch_id, "filename": "a", "vehicle_id": "x" * 256}, 422, "invalid_input"),
        ({"batch_id": batch_id, "filename": "a", "overwrite": "maybe"}, 422, "invalid_input"),
    ]

    answers = [await create(api, 3, **each) for each, _, _ in stated]
    too_large = await create(api, 2**40, batch_id=batch_id, filename="a")
    without_length = await api.post(
        "/v1/uploads", headers={**TUS, **metadata(batch_id=batch_id, filename="a")}
    )
    without_key = await api.post("/v1/uploads", headers={**TUS, "Upload-Length": "3", "Authorization": ""})
    other_version = await api.post("/v1/uploads", headers={"Tus-Resumable": "0.2.2", "Upload-Length": "3"})
    with_body = await api.post(
        "/v1/uploads",
        headers={**TUS, "Upload-Length": "3", **metadata(batch_id=batch_id, filename="a")},
        content=b"abc",
    )

    assert [(each.status_code, each.json()["code"]) for each in answers] == [each[1:] for each in stated]
    assert (too_large.status_code, "max_file_bytes" in too_large.text) == (413, True)
    assert (without_length.status_code, without_length.json()["field"]) == (422, "Upload-Length")
    assert (without_key.status_code, other_version.status_code, with_body.status_code) == (401, 412, 422)


async def test_a_digest_that_does_not_hold_leaves_nothing(api: httpx.AsyncClient, batch_id: str) -> None:
    url = await begin(api, 3, batch_id, "a.log", sha256="0" * 64)

    answer = await send(api, url, 0, b"abc")

    assert (answer.status_code, answer.json()["code"]) == (409, "digest_mismatch")
    assert (await api.head(url, headers=TUS)).status_code == 404
    assert await listed(api, batch_id) == []


async def test_more_than_was_stated_is_refused_and_no_key_writes_a_byte(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    url = await begin(api, 3, batch_id, "a.log")

    more = await send(api, url, 0, b"abcd")
    foreign = await send(api, url, 0, b"abc", Authorization="Bearer of nothing")

    assert (more.status_code, foreign.status_code) == (400, 401)
    assert (await api.head(url, headers=TUS)).headers["Upload-Offset"] == "0"


async def test_an_upload_can_be_given_up(api: httpx.AsyncClient, batch_id: str) -> None:
    url = await begin(api, 6, batch_id, "a.log")
    await send(api, url, 0, b"abc")

    assert (await api.delete(url, headers=TUS)).status_code == 204
    assert (await api.head(url, headers=TUS)).status_code == 404


async def test_options_name_what_is_spoken_here(api: httpx.AsyncClient) -> None:
    answer = await api.options("/v1/uploads")

    assert answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Extension"] == "creation,creation-defer-length,expiration,termination"
    assert int(answer.headers["Tus-Max-Size"]) > 0


async def test_a_crash_between_the_last_byte_and_the_file_is_made_good(
    api: httpx.AsyncClient, batch_id: str, session_settings: Settings
) -> None:
    url = await begin(api, 6, batch_id, "a.log")
    await send(api, url, 0, b"abc")
    async with opened(session_settings) as resources:
        # as a killed process leaves it: all parts are there, and nobody has joined them
        from db.postgres.uploads import PostgresResumableUploads

        uploads = PostgresResumableUploads(resources.postgres)

        async def rest() -> Any:
            yield b"def"

        key = f"uploads/{url.rpartition('/')[2]}/3-{uuid4()}"
        await resources.objects.write(key, rest())
        await uploads.add_part(url.rpartition("/")[2], 3, 3, key)

    answer = await api.head(url, headers=TUS)

    assert (answer.status_code, answer.headers["Upload-Offset"]) == (200, "6")
    [file] = await listed(api, batch_id)
    assert file["sha256"] == hashlib.sha256(b"abcdef").hexdigest()


@pytest.mark.parametrize("upload_id", ["x", "0" * 32, "..%2F..%2Fetc", str(UUID(int=4, version=4))])
async def test_an_upload_that_is_not_there_is_a_404(api: httpx.AsyncClient, upload_id: str) -> None:
    assert (await api.head(f"/v1/uploads/{upload_id}", headers=TUS)).status_code == 404

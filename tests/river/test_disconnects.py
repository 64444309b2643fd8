"""Clients that disconnect at random moments: no hold stays open, no place is taken, the ledger is whole."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from random import Random

import httpx
import pytest

from domain.completion import CompletionReply, CompletionRequest, OnChunk
from runtime.gateway import door
from runtime.resources import Resources
from tests.api.chatting import (
    HELLO,
    TalkingModel,
    a_reply,
    chat_server,
    chunks_of,
    new_key,
    state_price,
    told,
)

#: places of the key; more clients than that are there at once
PLACES = 40
#: clients that come in a second: more of them than there are places for
A_SECOND = 150
LONGEST_SECONDS = 0.2
OPEN = ("held", "dispatched", "in_doubt")


async def talk_for_a_while(request: CompletionRequest, on_chunk: OnChunk | None) -> CompletionReply:
    """A reply whose words come one by one, as long as its request says."""
    assert request.chat is not None
    words = int(str(request.chat.parameters["user"]))
    for chunk in chunks_of("word " * words):
        await asyncio.sleep(LONGEST_SECONDS / 20)
        if on_chunk is not None:
            await on_chunk(chunk)
    return a_reply("word " * words)


@pytest.fixture
async def talking(resources: Resources) -> AsyncIterator[httpx.AsyncClient]:
    """The API over the real door and a model that takes its time."""
    await state_price(resources)
    gateway = door(resources, TalkingModel(talk_for_a_while))
    async with chat_server(resources, gateway) as client:
        yield client


class Leaver:
    """A client that sends a part of its request or all of it, listens for a time, and is gone."""

    def __init__(self, random: Random, secret: str, begin_seconds: float) -> None:
        body = HELLO | {"stream": random.random() < 0.5, "user": str(random.randrange(1, 15))}
        content = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: assay\r\n"
            f"Authorization: Bearer {secret}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        request = head.encode() + content
        whole = random.random() < 0.9
        self._request = request if whole else request[: random.randrange(len(request))]
        self._begin_seconds = begin_seconds
        # at once, at any moment, or at the end
        moment = random.choice((0.0, random.uniform(0, LONGEST_SECONDS), 20.0 if whole else 0.0))
        self._listen_seconds = moment
        self._abort = random.random() < 0.5

    async def come_and_go(self, url: httpx.URL) -> bytes:
        """What it heard."""
        await asyncio.sleep(self._begin_seconds)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        heard = bytearray()
        writer.write(self._request)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(self._listen_seconds):
                while not _answered(heard) and (data := await reader.read(65_536)):
                    heard += data
        if self._abort:
            writer.transport.abort()
        writer.close()
        return bytes(heard)


def _answered(heard: bytes) -> bool:
    return heard.endswith((b"[DONE]\n\n\r\n0\r\n\r\n", b"}", b"0\r\n\r\n"))


async def settled(resources: Resources, key_id: str) -> Counter[str]:
    """The holds of the key by state, once none is open."""
    while True:
        rows = await resources.postgres.rows(
            "SELECT state, count(*) AS n FROM ledger_holds WHERE api_key_id = %s GROUP BY state", [key_id]
        )
        states = Counter({row["state"]: row["n"] for row in rows})
        if not any(states[each] for each in OPEN):
            return states
        await asyncio.sleep(0.02)


async def leave_no_trace(resources: Resources, client: httpx.AsyncClient, count: int, seed: int) -> None:
    """Let so many clients come and go, and look what they have left behind."""
    random = Random(seed)  # noqa: S311  # the seed is what makes a fault come again
    key_id, secret = await new_key(resources, max_concurrent=PLACES)
    leavers = [Leaver(random, secret, random.uniform(0, count / A_SECOND)) for _ in range(count)]
    async with asyncio.timeout(60):
        heard = await asyncio.gather(*(each.come_and_go(client.base_url) for each in leavers))
        states = await settled(resources, key_id)

    # some were answered, some left, some may have found no place, and a slow machine may turn some away;
    # what was dispatched was paid for, to the last
    statuses = Counter(each[9:12] for each in heard)
    assert {b"200", b""} <= statuses.keys() <= {b"200", b"429", b"503", b""}
    assert states.keys() == {"committed"}
    assert statuses[b"200"] < states["committed"] < count

    events, wrong = await resources.ledger.books.verify()
    assert (wrong, events) == ([], 2 * states["committed"])
    # every place is free again: as many as there are, at once
    answers = await all_at_once(client, secret)
    assert told(answers) == [200] * PLACES


async def all_at_once(client: httpx.AsyncClient, secret: str) -> Sequence[httpx.Response]:
    """What clients hear that take every place at once."""

    async def ask() -> httpx.Response:
        return await client.post(
            "/v1/chat/completions", json=HELLO | {"user": "1"}, headers={"Authorization": f"Bearer {secret}"}
        )

    return await asyncio.gather(*(ask() for _ in range(PLACES)))


async def test_clients_that_disconnect_leave_nothing_behind(
    resources: Resources, talking: httpx.AsyncClient
) -> None:
    await leave_no_trace(resources, talking, 200, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
async def test_a_thousand_clients_that_disconnect_leave_nothing_behind(
    resources: Resources, talking: httpx.AsyncClient, seed: int
) -> None:
    await leave_no_trace(resources, talking, 1_000, seed)

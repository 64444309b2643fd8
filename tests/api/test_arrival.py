"""A file is held to its limits and to what was stated of it while it arrives."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.uploads import Arrival, Statement
from domain.errors import DigestMismatch, LimitExceeded


async def stream_of(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def received(arrival: Arrival, chunks: list[bytes]) -> bytes:
    parts = []
    async for part in arrival.counted(stream_of(chunks)):
        arrival.hash(part)
        parts.append(part)
    arrival.check()
    return b"".join(parts)


@given(st.lists(st.binary(max_size=50), max_size=10))
async def test_the_bytes_are_counted_and_hashed_on_the_way(chunks: list[bytes]) -> None:
    content = b"".join(chunks)
    digest = hashlib.sha256(content).hexdigest()
    arrival = Arrival(Statement("a", sha256=digest.upper(), size_bytes=len(content)), max_bytes=500)

    assert await received(arrival, chunks) == content
    assert (arrival.size_bytes, arrival.sha256) == (len(content), digest)


async def test_the_first_byte_over_the_limit_stops_the_upload() -> None:
    arrival = Arrival(Statement("a"), max_bytes=10)
    pulled = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pulled
        while True:
            pulled += 1
            yield b"12345"

    with pytest.raises(LimitExceeded, match="max_file_bytes"):
        async for _ in arrival.counted(endless()):
            pass

    assert pulled == 3
    assert isinstance(arrival.failure, LimitExceeded)


@pytest.mark.parametrize(
    "statement",
    [Statement("a", sha256="0" * 64), Statement("a", size_bytes=2), Statement("a", size_bytes=4)],
)
async def test_other_bytes_than_stated_are_refused(statement: Statement) -> None:
    with pytest.raises(DigestMismatch, match="Nothing was kept"):
        await received(Arrival(statement, max_bytes=100), [b"abc"])

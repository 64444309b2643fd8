"""Multipart bodies are read as they arrive, wherever the network cuts them."""

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.multipart import boundary_of, read_parts
from domain.errors import InvalidInput

BOUNDARY = b"bound-ary"

contents = st.lists(
    st.tuples(
        st.text(
            st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='"\\'), min_size=1, max_size=20
        ),
        # pieces of boundaries and line ends are what parsers stumble over
        st.lists(
            st.one_of(
                st.binary(max_size=30),
                st.sampled_from(
                    [b"\r", b"\n", b"\r\n", b"--", b"\r\n--", b"\r\n--bound", b"-ary", b"bound-ar"]
                ),
            ),
            max_size=12,
        ).map(b"".join),
    ),
    max_size=4,
).filter(lambda files: all(b"\r\n--" + BOUNDARY not in b"\r\n" + data for _, data in files))


def body_of(files: Sequence[tuple[str, bytes]]) -> bytes:
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
        b"Content-Type: text/plain\r\n\r\n%s\r\n" % (BOUNDARY, name.encode(), data)
        for name, data in files
    ]
    return b"".join(parts) + b"--%s--\r\n" % BOUNDARY


async def stream_of(body: bytes, cuts: Sequence[int]) -> AsyncIterator[bytes]:
    positions = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    for start, end in pairwise(positions):
        yield body[start:end]
    # as Starlette ends a stream
    yield b""


async def read_all(stream: AsyncIterator[bytes]) -> list[tuple[str | None, bytes]]:
    return [
        (part.head.file_name, b"".join([chunk async for chunk in part.chunks]))
        async for part in read_parts(stream, BOUNDARY)
    ]


@given(contents, st.lists(st.integers(min_value=0, max_value=10_000), max_size=40))
async def test_the_parts_are_the_same_wherever_the_body_is_cut(
    files: list[tuple[str, bytes]], cuts: list[int]
) -> None:
    assert await read_all(stream_of(body_of(files), cuts)) == files


async def test_a_body_that_arrives_byte_by_byte_is_read() -> None:
    files = [("李雷.txt", b"one\r\n--bound"), ("b/../c", b"")]
    body = body_of(files)

    assert await read_all(stream_of(body, range(len(body)))) == files


async def test_data_is_handed_on_before_the_rest_has_arrived() -> None:
    pulled = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pulled
        yield b'--%s\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n' % BOUNDARY
        while True:
            pulled += 1
            yield b"x" * 1000

    part = await anext(read_parts(endless(), BOUNDARY))
    received = 0
    async for chunk in part.chunks:
        received += len(chunk)
        if received > 10_000:
            break

    assert pulled <= 12


async def test_a_part_that_nobody_reads_is_passed_over() -> None:
    body = body_of([("a", b"1" * 5000), ("b", b"2")])

    parts = [part.head.file_name async for part in read_parts(stream_of(body, range(0, 6000, 100)), BOUNDARY)]

    assert parts == ["a", "b"]


async def test_a_form_field_has_no_file_name_and_a_part_has_its_headers() -> None:
    body = (
        b'--%s\r\ncontent-disposition: form-data; name="note"\r\n'
        b"X-Content-SHA256: abc\r\n\r\nhi\r\n--%s--\r\n" % (BOUNDARY, BOUNDARY)
    )

    (part,) = [part async for part in read_parts(stream_of(body, [7, 70]), BOUNDARY)]

    assert part.head.file_name is None
    assert part.head.field_name == "note"
    assert part.head.headers["x-content-sha256"] == "abc"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no multipart at all",
        b'--bound-ary\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\ncut off',
        b"--bound-ary\r\nContent-Disposition: attachment\r\n\r\nx\r\n--bound-ary--\r\n",
        b"--bound-ary\r\n\r\nx\r\n--bound-ary--\r\n",
        b'--bound-ary\r\nContent-Disposition: form-data; name="f"; filename="\xff"\r\n\r\nx\r\n'
        b"--bound-ary--\r\n",
        b"--bound-ary\r\n" + b"X: " + b"y" * 100_000,
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        await read_all(stream_of(body, range(0, len(body), 5)))


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "multipart/form-data", f"multipart/form-data; boundary={'x' * 71}"]
)
def test_a_content_type_without_a_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidInput, match="Content-Type"):
        boundary_of(content_type)


def test_the_boundary_is_read_from_the_content_type() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"

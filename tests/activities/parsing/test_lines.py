"""The lines of stored logs, looked at anew."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from activities.parsing.lines import MAX_LINES, StoredLogLines
from db.objects.store import ObjectStoreFiles
from domain.errors import NotFound
from domain.logs import LogFile, LogLine
from tests.activities.parsing.test_unpacking import zipped

COUNT = 6_000
STORED = b"".join(
    b"2026-03-17T16:%02d:%02dZ chunk %d%s\n"
    % (n // 60 % 60, n % 60, n, b" FAILED" if n % 1_000 == 999 else b"")
    for n in range(COUNT)
)
LOG = LogFile("f1", "ota.log.gz", "t/b/f1/sha", len(STORED))
ARCHIVE = LogFile("f2", "logs.zip", "t/b/f2/sha", 1)


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
async def lines(tmp_path: Path) -> StoredLogLines:
    objects = ObjectStoreFiles.at(f"file://{tmp_path}")
    await objects.write(LOG.object_key, one(gzip.compress(STORED)))
    await objects.write(
        ARCHIVE.object_key, one(zipped({"a.log": b"1\n2\n3\n", "b.log": b"one\n\ntwo\n  at\n"}))
    )
    return StoredLogLines(objects)


def numbers(found: list[LogLine]) -> list[int]:
    return [line.number for line in found]


async def test_all_lines_are_read_as_parsing_sees_them(lines: StoredLogLines) -> None:
    assert [line.number async for line in lines.read(LOG)] == list(range(1, COUNT + 1))
    assert [(line.member, line.text) async for line in lines.read(ARCHIVE)][3:] == [
        ("b.log", "one"),
        ("b.log", "two"),
        ("b.log", "  at"),
    ]


async def test_a_search_finds_any_term_from_a_line_on_and_no_more_than_asked_for(
    lines: StoredLogLines,
) -> None:
    assert numbers(await lines.search(LOG, ["failed", "chunk 7 "])) == [
        1_000,
        2_000,
        3_000,
        4_000,
        5_000,
        6_000,
    ]
    assert numbers(await lines.search(LOG, ["failed"], first=2_001, limit=2)) == [3_000, 4_000]
    assert len(await lines.search(LOG, ["chunk"], limit=100_000)) == MAX_LINES
    assert await lines.search(LOG, ["nowhere"]) == await lines.search(LOG, [""]) == []


async def test_a_line_comes_with_its_neighbours_of_its_own_member(lines: StoredLogLines) -> None:
    assert numbers(await lines.around(LOG, 3_000, reach=2)) == [2_998, 2_999, 3_000, 3_001, 3_002]
    assert numbers(await lines.around(LOG, 1, reach=1)) == [1, 2]
    assert [line.text for line in await lines.around(ARCHIVE, 3, member="b.log", reach=2)] == [
        "one",
        "two",
        "  at",
    ]
    assert await lines.around(ARCHIVE, 1) == await lines.around(LOG, COUNT + 99) == []


async def test_a_stretch_of_time_has_both_its_ends(lines: StoredLogLines) -> None:
    since = datetime(2026, 3, 17, 16, 0, 10, tzinfo=UTC)
    found = await lines.between(LOG, since, since.replace(second=13), limit=3)
    assert numbers(found) == [11, 12, 13]


async def test_what_is_not_there_is_said_so(lines: StoredLogLines) -> None:
    with pytest.raises(NotFound):
        await lines.search(LogFile("f3", "a.log", "t/b/f3/none", 1), ["a"])


async def test_a_question_that_is_given_up_leaves_the_next_one_free(lines: StoredLogLines) -> None:
    asked = [asyncio.create_task(lines.search(LOG, ["nowhere"])) for _ in range(9)]
    await asyncio.sleep(0.01)
    for task in asked:
        task.cancel()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) or each == [] for each in ended)
    assert numbers(await lines.search(LOG, ["failed"], limit=1)) == [1_000]

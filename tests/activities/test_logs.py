"""What a parser wrote is checked before it counts, and kept where no late parser reaches it."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from activities.logs import LogActivities, RecordLogInput
from db.objects.store import ObjectStoreFiles
from domain.documents import encode
from domain.errors import DocumentInvalid, RedisUnavailable
from domain.identity import parsed_log_key
from domain.logs import KeptLog, Level, LogFormat, ParsedLog, Signal, TemplateCount

PARSED = ParsedLog(
    LogFormat.TEXT,
    size_bytes=20,
    expanded_bytes=20,
    lines=3,
    parsed_lines=2,
    first_at="2026-01-02T03:04:05+00:00",
    templates=(TemplateCount("t1", "boot <*>", 2),),
)
PLACE = ("local", "b", "f", 1)


class RecordedLogs:
    """A store of logs in memory; a real implementation of `record`, as far as this is about."""

    def __init__(self) -> None:
        self.kept: dict[str, KeptLog] = {}

    async def record(self, file_id: str, generation: int, kept: KeptLog, parsed: ParsedLog) -> None:
        """Keep it, once."""
        assert parsed.lines == PARSED.lines
        self.kept.setdefault(file_id, kept)


class AbsentRedis:
    """Barrier and bell of a server that is away."""

    async def arrive(self, batch_id: str, file_id: str) -> int:
        """Refuse."""
        raise RedisUnavailable(f"{batch_id}/{file_id}: away")

    async def ring(self) -> None:
        """Refuse."""
        raise RedisUnavailable("away")


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStoreFiles:
    return ObjectStoreFiles.at(f"file://{tmp_path}")


async def written(objects: ObjectStoreFiles, document: bytes) -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield document

    await objects.write(parsed_log_key(*PLACE), chunks())
    return hashlib.sha256(document).hexdigest()


def told(sha256: str, **changes: Any) -> RecordLogInput:
    return replace(RecordLogInput(*PLACE, sha256, lines=3, parsed_lines=2), **changes)


def recorder(objects: ObjectStoreFiles, logs: RecordedLogs) -> LogActivities:
    away: Any = AbsentRedis()
    stored: Any = logs
    return LogActivities(stored, objects, barrier=away, bell=away)


async def test_a_document_is_kept_and_a_repetition_and_a_late_parser_change_nothing(
    objects: ObjectStoreFiles,
) -> None:
    logs = RecordedLogs()
    sha256 = await written(objects, encode(PARSED))
    record = recorder(objects, logs).record_log
    await record(told(sha256))
    await record(told(sha256))
    await written(objects, b"{}")
    await record(told(sha256))
    assert await objects.read(logs.kept["f"].parsed_key) == encode(PARSED)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b"{", "the document"),
        (encode(replace(PARSED, version=2)), "version"),
        (encode(replace(PARSED, lines=4)), "lines"),
        (encode(replace(PARSED, parsed_lines=1)), "parsed_lines"),
        (encode(replace(PARSED, templates=(TemplateCount("t1", "x", 3),))), "templates.count"),
        (encode(replace(PARSED, templates=(TemplateCount("t1", "x", -1),))), "templates"),
        (encode(replace(PARSED, first_at="yesterday")), "first_at"),
        (encode(replace(PARSED, last_at="2026-01-02T03:04:05")), "last_at"),
        (encode(replace(PARSED, expanded_bytes=-1)), "expanded_bytes"),
        (encode(replace(PARSED, levels={Level.INFO: -2})), "levels"),
        (encode(replace(PARSED, signals=(Signal("s", "s", Level.INFO, 1),) * 1_001)), "signals"),
    ],
)
async def test_a_document_that_is_not_what_it_should_be_is_refused_by_its_field(
    objects: ObjectStoreFiles, document: bytes, field: str
) -> None:
    logs = RecordedLogs()
    sha256 = await written(objects, document)
    with pytest.raises(DocumentInvalid, match=field):
        await recorder(objects, logs).record_log(told(sha256))
    assert not logs.kept


async def test_a_document_that_is_missing_or_another_one_is_refused(objects: ObjectStoreFiles) -> None:
    record = recorder(objects, RecordedLogs()).record_log
    with pytest.raises(DocumentInvalid):
        await record(told("0" * 64))
    await written(objects, encode(PARSED))
    with pytest.raises(DocumentInvalid):
        await record(told("0" * 64))

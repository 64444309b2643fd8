"""The object store as a parser uses it, without an event loop: over a folder and over a real S3."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from activities.parsing.process import ParseTask, parse_object
from db.objects.blocking import BlockingObjects
from domain.documents import decode
from domain.errors import NotFound
from domain.logs import ParsedLog
from tests.db.s3 import BUCKET, s3_server


def used(objects: BlockingObjects) -> None:
    """All that a parser does with a store."""
    content = (b"part 7 is late" + b" again" * 200 + b"\n") * 2_000  # several chunks
    objects.write("t/log", content)
    assert b"".join(objects.chunks("t/log")) == content
    assert abs(objects.written_at("t/log") - datetime.now(UTC)) < timedelta(minutes=5)
    with pytest.raises(NotFound):
        next(objects.chunks("t/other"))
    with pytest.raises(NotFound):
        objects.written_at("t/other")
    figures = parse_object(objects, ParseTask("a.log", "t/log", "t/parsed"), lambda _: None)
    parsed = decode(ParsedLog, b"".join(objects.chunks("t/parsed")))
    assert (figures.lines, parsed.lines, parsed.size_bytes) == (2_000, 2_000, len(content))


def test_a_parser_works_over_a_folder(tmp_path: Path) -> None:
    used(BlockingObjects.at(f"file://{tmp_path}"))


def test_a_parser_works_over_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        used(BlockingObjects.at(f"s3://{BUCKET}/parsed"))

"""What every format's reader is held to, whatever it is packed in; a new one adds a log of its own here."""

import gzip
import io
import random
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydlt import ArgumentString, DltMessage, MessageLogInfo, MessageType, StorageHeader

from activities.parsing.reader import READERS, open_log
from activities.parsing.source import Account, Limits
from domain.errors import UnreadableLog
from domain.logs import LogFormat, LogLine

WRITTEN_AT = datetime(2026, 3, 18, tzinfo=UTC)
DEFINITIONS = (
    "FMT, 128, 89, FMT, BBnNZ, Type,Length,Name,Format",
    "FMT, 1, 17, ATT, cccc, RollIn,Roll,PitchIn,Pitch",
    "FMT, 130, 45, GPS, BIHB, Status,TimeMS,Week,NSats",
)


@dataclass(frozen=True)
class Sample:
    """A way to write a log of any number of lines in one format; each line holds `entry {number}`."""

    format: LogFormat
    name: str
    head: bytes = b""
    line: str = ""
    head_lines: int = 0

    def lines(self, count: int) -> list[bytes]:
        if self.format is LogFormat.DLT:
            return [message(f"entry {number} 电池").to_bytes() for number in range(count)]
        return [self.line.format(number).encode() + b"\n" for number in range(count)]

    def content(self, count: int) -> bytes:
        return self.head + b"".join(self.lines(count))


def message(text: str) -> DltMessage:
    argument = ArgumentString(text, is_utf8=True)
    kind, level = MessageType.DLT_TYPE_LOG, MessageLogInfo.DLT_LOG_WARN
    stored = StorageHeader(1_773_763_200, 250_000, "ECU1")
    return DltMessage.create_verbose_message([argument], kind, level, "SWUP", "CTX1", str_header=stored)


SAMPLES = (
    Sample(LogFormat.TEXT, "a.log", line="2026-03-17T16:13:38.250Z WARN entry {} 电池 ⚡"),
    Sample(LogFormat.TEXT, "a.txt", line="\x1b[33mentry {}\x1b[0m without a time 😀\r"),
    Sample(
        LogFormat.JSON_LINES,
        "a.jsonl",
        line='{{"ts":"2026-03-17T16:13:38.250Z","level":"warn","msg":"entry {} 电池","slot":"B"}}',
    ),
    Sample(
        LogFormat.CSV,
        "a.csv",
        b"time,level,message\n",
        '2026-03-17 16:13:38.250,WARN,"entry {} 电池, ""B"""',
        head_lines=1,
    ),
    Sample(
        LogFormat.DATAFLASH,
        "a.log",
        "\r\n".join((*DEFINITIONS, "")).encode(),
        "ATT, 0.0, {0}, 1, entry {0}",
        3,
    ),
    # the last: its messages state their length, of at most 65,535 bytes
    Sample(LogFormat.DLT, "a.dlt"),
)
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.format}-{sample.name}")
drawn_samples = st.sampled_from(SAMPLES)


def read(
    name: str, chunks: Iterator[bytes] | list[bytes], account: Account | None = None, **more: Limits
) -> list[LogLine]:
    return list(open_log(name, chunks, account=account, written_at=WRITTEN_AT, **more))


def cut(content: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The content in chunks of these sizes, over and over."""
    start = 0
    while start < len(content):
        for size in sizes:
            yield content[start : start + size]
            start += size


def test_every_reader_has_a_log_here() -> None:
    assert {reader.format for reader in READERS} == {sample.format for sample in SAMPLES} == set(LogFormat)


@every_sample
def test_every_line_is_there_in_order_with_its_number_and_the_format_is_told(sample: Sample) -> None:
    account = Account()
    lines = read(sample.name, [sample.content(500)], account)
    assert [line.number for line in lines] == list(range(1, sample.head_lines + 501))
    for count, line in enumerate(lines[sample.head_lines :]):
        assert f"entry {count}" in line.text
    assert (account.format, account.lines, account.members) == (sample.format, len(lines), 1)
    assert account.expanded_bytes == len(sample.content(500))
    assert account.incomplete == ""


@given(drawn_samples, st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_lines_are_the_same_whatever_the_chunks(sample: Sample, sizes: list[int], count: int) -> None:
    """A log reads the same in one piece and in pieces that cut lines, characters and headers anywhere."""
    content = sample.content(count)
    assert read(sample.name, cut(content, sizes)) == read(sample.name, [content])


PACKINGS = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor(level=1).compress,
    "gz in zst": lambda content: zstandard.compress(gzip.compress(content)),
}


@every_sample
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_log_reads_as_the_plain_one(sample: Sample, packing: str) -> None:
    content = sample.content(50)
    packed = PACKINGS[packing](content)
    assert read(sample.name, cut(packed, [7])) == read(sample.name, [content])


@given(drawn_samples, st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_damage_is_read_around_or_refused_and_never_breaks_the_reader(
    sample: Sample, garbage: bytes, position: int, length: int
) -> None:
    """Whatever stands in the place of a part of a log, its lines come in order, or the log is refused."""
    content = sample.content(20)
    start = position % len(content)
    damaged = content[:start] + garbage + content[start + length % len(content) :]
    try:
        lines = read(sample.name, cut(damaged, [64]))
    except UnreadableLog:
        return
    assert all(before.number < after.number for before, after in pairwise(lines))
    assert not any("\0" in line.text + line.content for line in lines)
    "".join(line.text + line.content for line in lines).encode()


@every_sample
def test_a_log_that_breaks_off_keeps_all_lines_before(sample: Sample) -> None:
    content, account = sample.content(100), Account()
    lines = read(sample.name, [content[: -len(sample.lines(100)[-1]) - 9]], account)
    assert lines[: sample.head_lines + 98] == read(sample.name, [sample.content(98)])
    assert account.format is sample.format


@every_sample
def test_endless_input_takes_no_more_memory(sample: Sample) -> None:
    block = b"".join(sample.lines(100))
    taken = 0

    def endless() -> Iterator[bytes]:
        yield sample.head
        while True:
            yield block

    lines = open_log(sample.name, endless(), written_at=WRITTEN_AT)
    tracemalloc.start()
    try:
        for taken, _ in enumerate(lines, 1):
            if taken == 500:
                before = tracemalloc.get_traced_memory()[0]
            if taken == 1_500:
                break
        assert tracemalloc.get_traced_memory()[0] - before < 256 * 1024
    finally:
        tracemalloc.stop()
    assert taken == 1_500


@pytest.mark.parametrize("sample", SAMPLES[:-1], ids=lambda sample: f"{sample.format}-{sample.name}")
def test_a_line_without_end_is_cut_at_the_limit_between_two_characters(sample: Sample) -> None:
    account, limits = Account(), Limits(line_characters=1_000)
    tail = ("长" * 70_000).encode() + b"\n" + sample.lines(1)[0]
    lines = read(sample.name, cut(sample.content(1) + tail, [1_001]), account, limits=limits)
    assert [line.number for line in lines] == list(range(1, sample.head_lines + 4))
    assert lines[-2].text == "长" * 1_000
    assert account.cut_lines == 1


@every_sample
def test_a_zip_of_one_format_keeps_members_apart(sample: Sample) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"one/{sample.name}", sample.content(3))
        archive.writestr(f"two/{sample.name}", sample.content(2))
    lines = read("logs.zip", [packed.getvalue()])
    numbers = [(line.member, line.number) for line in lines if "entry" in line.text]
    first = sample.head_lines + 1
    assert numbers == [
        *((f"one/{sample.name}", first + count) for count in range(3)),
        *((f"two/{sample.name}", first + count) for count in range(2)),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_are_refused_with_what_can_be_read(seed: int) -> None:
    with pytest.raises(UnreadableLog, match="DLT"):
        read("a.log", [random.Random(seed).randbytes(100_000)])  # noqa: S311 - garbage, no secret


def test_an_empty_log_has_no_lines() -> None:
    account = Account()
    assert read("a.log", [], account) == read("a.log", [b"", b"\n\n"]) == []
    assert (account.format, account.incomplete) == (LogFormat.TEXT, "")

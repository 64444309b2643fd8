"""One log in, one document out: the same however it comes, and honest about what was read."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.parsing.parser import Position, parse
from activities.parsing.source import Limits
from domain.documents import decode, encode
from domain.logs import Level, ParsedLog

WRITTEN_AT = datetime(2026, 3, 2, tzinfo=UTC)

HEADS = st.sampled_from(["", "2026-03-01 10:00:07 ERROR ", "2026-02-28T23:59:59Z INFO ", "[WARN] "])
WORDS = st.sampled_from(
    ["download", "of", "part", "7", "0x1f", "user", "ann", "bob", "true", "=", ":", '"', "失败"]
)
LINES = st.builds(lambda head, words: head + " ".join(words), HEADS, st.lists(WORDS, max_size=6))
TEXTS = st.builds(lambda lines: "\n".join(lines).encode(), st.lists(LINES, max_size=30))


class Interrupted(Exception):
    """The process was killed there."""


def in_pieces(content: bytes, cuts: Sequence[int], *, until: int | None = None) -> Iterator[bytes]:
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        if until is not None and end > until:
            yield content[start:until]
            raise Interrupted
        yield content[start:end]


CUTS = st.lists(st.integers(0, 5_000), max_size=8)


@settings(max_examples=100, deadline=None)
@given(TEXTS, CUTS, CUTS, st.integers(0, 5_000))
def test_wherever_an_attempt_ends_the_next_one_makes_the_same_document(
    content: bytes, cuts: list[int], other_cuts: list[int], end: int
) -> None:
    unbroken = encode(parse("a.log", [content], written_at=WRITTEN_AT))
    if content:
        with pytest.raises(Interrupted):
            parse("a.log", in_pieces(content, cuts, until=end % len(content)), written_at=WRITTEN_AT)
    assert encode(parse("a.log", in_pieces(content, other_cuts), written_at=WRITTEN_AT)) == unbroken


@settings(max_examples=100, deadline=None)
@given(TEXTS, CUTS)
def test_every_line_is_counted_once_and_every_example_is_a_line_of_the_log(
    content: bytes, cuts: list[int]
) -> None:
    parsed = parse("a.log", in_pieces(content, cuts), written_at=WRITTEN_AT)
    lines = content.decode().split("\n")
    assert parsed.lines == parsed.parsed_lines == sum(bool(line.strip()) for line in lines)
    assert sum(each.count for each in parsed.templates) == parsed.lines
    assert (parsed.coverage, parsed.incomplete) == (1.0, "")
    for template in parsed.templates:
        assert 1 <= len(template.examples) <= template.count
        for quote in template.examples:
            assert lines[quote.line - 1] == quote.text
    assert decode(ParsedLog, encode(parsed)) == parsed


def test_what_is_beyond_the_templates_is_said_and_the_coverage_is_less() -> None:
    lines = [b"[ERROR] part %d is late" % number for number in range(500)]
    lines += [bytes([97 + number % 26]) * (1 + number // 26) + b":" * number for number in range(40)]
    parsed = parse("a.log", [b"\n".join(lines)], written_at=WRITTEN_AT, max_templates=10)
    assert parsed.lines == 540
    assert parsed.parsed_lines < 540
    assert parsed.coverage == parsed.parsed_lines / 540
    assert sum(each.count for each in parsed.templates) == parsed.parsed_lines
    assert f"{540 - parsed.parsed_lines} of 540 lines" in parsed.incomplete
    assert parsed.levels == {Level.ERROR: 500}


def test_what_is_beyond_the_limits_of_reading_is_said() -> None:
    content = b"part 7 is late\n" * 40_000
    parsed = parse("a.log", [content], written_at=WRITTEN_AT, limits=Limits(expanded_bytes=300_000))
    assert 0 < parsed.lines < 40_000
    assert parsed.incomplete


def test_the_position_is_told_and_never_goes_back() -> None:
    told: list[Position] = []
    content = b"part 7 is late\n" * 20_000
    parse(
        "a.log", in_pieces(content, range(0, len(content), 10_000)), written_at=WRITTEN_AT, tell=told.append
    )
    assert told == sorted(told, key=lambda position: (position.bytes, position.lines))
    assert told[-1].bytes <= len(content)


def test_lines_that_were_cut_are_told() -> None:
    content = b"\n".join((b"x" * 100, b"short", b"y" * 100, b""))
    parsed = parse("a.log", [content], limits=Limits(line_characters=50))
    assert (parsed.lines, parsed.parsed_lines) == (3, 3)
    assert parsed.incomplete == "Of 2 lines only the first 50 characters were read."

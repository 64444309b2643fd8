"""Bytes as lines of text: encodings, line ends, NULs, and lines of any length cut at a limit."""

import codecs
import re
from collections.abc import Iterator

from activities.parsing.source import HEAD_BYTES, Source

_PIECE_BYTES = 256 * 1024
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: a text in UTF-16 that is mostly ASCII has a NUL in every other byte
_WIDE_SHARE = 0.3
_FEW = 4
_COMMON_SHARE = 0.9
#: logs have tabs, line ends, bells and terminals' colours; NULs are told of elsewhere
_NO_CONTROLS = bytes({*range(32, 256), *b"\0\a\b\t\n\v\f\r\x1b"})
_CONTROL_SHARE = 0.05


def lines_of(source: Source) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, without its end, cut at the limit.

    A line ends with `\\n` or `\\r\\n`, or with `\\r` in a file that has no `\\n`.
    """
    number, limit, account = 0, source.limits.line_characters, source.account
    for batch in _batches(source):
        for raw in batch:
            number += 1
            line = raw.removesuffix("\r")
            if len(line) > limit:
                account.cut_lines += 1
                line = line[:limit]
            if line and not line.isspace():
                yield number, line


def _batches(source: Source) -> Iterator[list[str]]:
    pending, longest = "", source.limits.line_characters + 2  # two: a line of the limit's length and its `\r`
    for text in _texts(source):
        lines = (pending + text).split("\n")
        pending = lines.pop()[:longest]
        yield lines
    if pending:
        yield [pending]


def _texts(source: Source) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding_of(source.head))(errors="replace")
    old_ends = _has_old_line_ends(source.head)
    for piece in _pieces(source.chunks):
        yield _cleaned(decoder.decode(piece), source, old_ends)
    yield _cleaned(decoder.decode(b"", final=True), source, old_ends)


def _pieces(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), _PIECE_BYTES):
            yield chunk[start : start + _PIECE_BYTES]


def _cleaned(text: str, source: Source, old_ends: bool) -> str:
    source.account.replaced_characters += text.count("\ufffd")
    if "\0" in text:
        # Postgres stores no text with a NUL in it, and nobody can read one
        source.account.nul_characters += text.count("\0")
        text = text.replace("\0", "")
    return text.replace("\r", "\n") if old_ends else text


def encoding_of(head: bytes) -> str:
    """The encoding that a log is written in, by its first bytes: UTF-8 unless they speak for another."""
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked is not None:
        return marked
    if b"\0" in head and (wide := _wide(head)):
        return wide
    return "gb18030" if not _is_utf8(head) and _is_chinese(head) else "utf-8"


def first_lines(head: bytes, most: int = 10) -> list[str]:
    """The first lines that are not blank, for readers to know their format by; the last may be cut off."""
    text = head[:HEAD_BYTES].decode(encoding_of(head), errors="replace").replace("\0", "")
    lines = text.replace("\r", "\n").split("\n")
    whole = lines[:-1] if len(head) == HEAD_BYTES and len(lines) > 1 else lines
    return [line for line in whole if line and not line.isspace()][:most]


def is_binary(head: bytes) -> bool:
    """Whether the bytes are no text in any encoding that is known here; NULs alone do not say so."""
    if encoding_of(head).startswith("utf-16"):
        return False
    written = len(head) - head.count(0)
    return len(head.translate(None, _NO_CONTROLS)) > _CONTROL_SHARE * written


def _has_old_line_ends(head: bytes) -> bool:
    return b"\r" in head and b"\n" not in head


def _wide(head: bytes) -> str | None:
    half = len(head) // 2
    if half and head[1::2].count(0) >= _WIDE_SHARE * half and not head[0::2].count(0):
        return "utf-16-le"
    if half and head[0::2].count(0) >= _WIDE_SHARE * half and not head[1::2].count(0):
        return "utf-16-be"
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


_PAIR = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]|[\x80-\xff]")


def _is_chinese(head: bytes) -> bool:
    """Whether what is not ASCII are pairs of bytes of GB 2312's common half, as in real Chinese text."""
    pairs = _PAIR.findall(head)
    common = sum(
        len(pair) == 2 and pair[1] >= 0xA1 and (0xA1 <= pair[0] <= 0xA3 or 0xB0 <= pair[0] <= 0xD7)
        for pair in pairs
    )
    return len(pairs) >= _FEW and common >= _COMMON_SHARE * len(pairs)

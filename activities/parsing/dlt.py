"""AUTOSAR's diagnostic log and trace: files of messages with storage headers, verbose or not."""

import struct
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from pydlt import DltMessage, MessageLogInfo, MessageType  # type: ignore[import-untyped]  # it has no stubs

from activities.parsing.source import Source
from domain.logs import Level, LogFormat, LogLine

_MAGIC = b"DLT\x01"
_STORAGE_BYTES = 16
#: of the standard header that every message has: type, counter, length
_STANDARD_BYTES = 4
_HEADERS_BYTES = _STORAGE_BYTES + _STANDARD_BYTES
_LENGTH = struct.Struct(">H")
_STORED = struct.Struct("<Ii")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEVELS = {
    MessageLogInfo.DLT_LOG_FATAL: Level.FATAL,
    MessageLogInfo.DLT_LOG_ERROR: Level.ERROR,
    MessageLogInfo.DLT_LOG_WARN: Level.WARNING,
    MessageLogInfo.DLT_LOG_INFO: Level.INFO,
    MessageLogInfo.DLT_LOG_DEBUG: Level.DEBUG,
    MessageLogInfo.DLT_LOG_VERBOSE: Level.TRACE,
}
_DAMAGED = "Some DLT messages are damaged: they are shown as bytes, or left out."
_BREAKS_OFF = "The last DLT message breaks off."
#: what pydlt raises at payloads that are not what their headers say
_UNREADABLE = (
    ValueError,
    struct.error,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    Warning,
)

# it warns of each integer that is shorter than it says
warnings.filterwarnings("ignore", module=r"pydlt\.")


class DltReader:
    """Messages as `dlt-viewer` writes them out; a line's number is the message's."""

    format = LogFormat.DLT

    def recognises(self, source: Source) -> bool:
        """Every message begins with the same bytes; the first of them may be damaged."""
        return source.head.startswith(_MAGIC) or source.head.count(_MAGIC) > 1

    def read(self, source: Source) -> Iterator[LogLine]:
        """The member's messages; after a damaged one it goes on at the next that can be found."""
        for number, data in enumerate(_messages(source), 1):
            source.account.lines += 1
            yield _line(number, data, source)


def _messages(source: Source) -> Iterator[bytes]:
    """The bytes of each message; one message and one chunk are held, no more."""
    held, account = b"", source.account
    for chunk, is_last in _with_last(source.chunks):
        held, position = held + chunk, 0
        while (start := _start(held, position)) is not None:
            if start > position:
                account.fell_short(_DAMAGED)
            position = start
            end = _end(held, start, is_last)
            if end is None:
                break
            if end - start < _HEADERS_BYTES:
                account.fell_short(_DAMAGED)
            else:
                yield held[start:end]
            position = end
        else:
            # the beginning of a message may be cut by the chunk's end
            position = max(position, len(held) - len(_MAGIC) + 1)
        held = held[position:]
    if held:
        account.fell_short(_BREAKS_OFF)


def _with_last(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in chunks:
        yield chunk, False
    yield b"", True


def _start(held: bytes, position: int) -> int | None:
    start = held.find(_MAGIC, position)
    return None if start < 0 else start


def _end(held: bytes, start: int, is_last: bool) -> int | None:
    """Where the message at `start` ends, by its own word; `None` where it is not there whole.

    One whose end is no other's beginning, but has one within, has lost a part: it ends there.
    """
    if len(held) < start + _HEADERS_BYTES:
        return None
    length: int = _LENGTH.unpack_from(held, start + _HEADERS_BYTES - _LENGTH.size)[0]
    end = start + _STORAGE_BYTES + max(length, _STANDARD_BYTES)
    if is_last and len(held) == end:
        return end
    if len(held) < end + len(_MAGIC) and not is_last:
        return None
    inner = -1 if held.startswith(_MAGIC, end) else held.find(_MAGIC, start + len(_MAGIC), end)
    if inner >= 0:
        return inner
    return end if len(held) >= end else None


def _line(number: int, data: bytes, source: Source) -> LogLine:
    seconds, microseconds = _STORED.unpack_from(data, len(_MAGIC))
    at = _EPOCH + timedelta(seconds=seconds, microseconds=microseconds)
    try:
        # many control units write UTF-8 and call it ASCII, which is a part of it
        message = DltMessage.create_from_bytes(data, with_storage_header=True, encoding="utf-8")
        text, content, level = _tidy(str(message)), _tidy(_content(message)), _level(message)
    except _UNREADABLE:
        source.account.fell_short(_DAMAGED)
        text = f"{at:%Y/%m/%d %H:%M:%S.%f} damaged {data[_HEADERS_BYTES:].hex()}"
        content, level = "damaged", None
    if len(text) > (limit := source.limits.line_characters):
        source.account.cut_lines += 1
        text, content = text[:limit], content[:limit]
    return LogLine(number, text, content, at, level, source.member)


def _content(message: DltMessage) -> str:
    """Application, context and payload; a non-verbose payload is its message's number and bytes."""
    header, payload = message.ext_header, str(message.payload or "")
    return payload if header is None else f"{header.application_id} {header.context_id} {payload}"


def _level(message: DltMessage) -> Level | None:
    header = message.ext_header
    if header is None or header.message_type != MessageType.DLT_TYPE_LOG:
        return None
    return _LEVELS.get(header.message_log_info)


def _tidy(text: str) -> str:
    return " ".join(text.replace("\0", "").splitlines()).strip()

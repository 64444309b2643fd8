"""Server-sent events, out of bytes in whatever pieces they come."""

from collections.abc import Iterator
from dataclasses import dataclass

#: of one event; a longer one is nothing that a model tells
MAX_EVENT_BYTES = 16 * 1024 * 1024


class TooManyEvents(Exception):
    """More bytes came than there may be."""


@dataclass(frozen=True)
class Event:
    """One event: its name, empty as a rule, and its data."""

    name: str
    data: bytes


class EventReader:
    """Reads events; lines end with CR, LF or both, comments and fields that tell nothing are skipped."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._rest = b""
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that are whole with this piece; raises `TooManyEvents`."""
        self._left -= len(piece)
        text = self._rest + piece
        # a CR at the end may be the first half of a CR LF
        held = text[-1:] if text.endswith(b"\r") else b""
        *lines, rest = _lines(text[: len(text) - len(held)])
        self._rest = rest + held
        yield from self._events(lines)
        if self._left < 0 or self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise TooManyEvents

    def end(self) -> Iterator[Event]:
        """The event that was not ended by an empty line, if there is one: some servers leave that out."""
        rest, self._rest = self._rest, b""
        yield from self._events([*_lines(rest), b""])

    def _events(self, lines: list[bytes]) -> Iterator[Event]:
        for line in lines:
            if line:
                self._read(line)
            elif self._data:
                yield Event(self._name, b"\n".join(self._data))
            if not line:
                self._name, self._data, self._size = "", [], 0

    def _read(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")


def _lines(text: bytes) -> list[bytes]:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")

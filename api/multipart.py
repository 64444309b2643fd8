"""Multipart bodies read as they arrive: one chunk in memory, no temporary file."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from domain.errors import InvalidInput

_MAX_BOUNDARY_LENGTH = 70


@dataclass(frozen=True)
class PartHead:
    """What a part says of itself before its data."""

    field_name: str
    #: `None` for a form field that is no file
    file_name: str | None
    headers: dict[str, str]


@dataclass(frozen=True)
class Part:
    """One part; its data is read before the next part is asked for, or skipped."""

    head: PartHead
    chunks: AsyncIterator[bytes]


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type states; raises `InvalidInput`."""
    type_, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if type_ != b"multipart/form-data" or not 0 < len(boundary) <= _MAX_BOUNDARY_LENGTH:
        raise InvalidInput(
            "Content-Type: send multipart/form-data with a boundary, or one file with PUT …/files/{name}.",
            field="Content-Type",
        )
    return boundary


async def read_parts(stream: AsyncIterator[bytes], boundary: bytes) -> AsyncGenerator[Part, None]:
    """The parts of a multipart body in their order; raises `InvalidInput` for a body that is none."""
    events = _Events(stream, boundary)
    while (event := await events.next()) is not None:
        # what is left of a part that its reader did not finish is passed over
        if isinstance(event, PartHead):
            yield Part(event, _data_of_part(events))


@dataclass(frozen=True)
class _PartEnd:
    """No more data of this part."""


_Event = PartHead | bytes | _PartEnd


async def _data_of_part(events: "_Events") -> AsyncGenerator[bytes, None]:
    while isinstance(event := await events.next(), bytes):
        yield event


@dataclass
class _Head:
    headers: dict[str, str] = field(default_factory=dict)
    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)


class _Events:
    """The parser pushes, readers pull: between them waits what one chunk of the body was parsed into."""

    def __init__(self, stream: AsyncIterator[bytes], boundary: bytes) -> None:
        self._stream = stream
        self._waiting: deque[_Event] = deque()
        self._head = _Head()
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._head.name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._head.value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": lambda: self._waiting.append(_read_head(self._head.headers)),
                "on_part_data": lambda data, start, end: self._waiting.append(data[start:end]),
                "on_part_end": lambda: self._waiting.append(_PartEnd()),
                "on_end": self._end,
            },
        )

    async def next(self) -> _Event | None:
        """The next event; `None` after the closing boundary."""
        while not self._waiting:
            if self._ended:
                # the rest of the request must be read before it can be answered on the same connection
                async for _ in self._stream:
                    pass
                return None
            await self._advance()
        return self._waiting.popleft()

    async def _advance(self) -> None:
        try:
            chunk = await anext(self._stream, None)
            if chunk is None:
                raise InvalidInput("The multipart body ends before its closing boundary.", field="body")
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidInput(f"The multipart body cannot be read: {error}.", field="body") from error

    def _begin_part(self) -> None:
        self._head = _Head()

    def _end_header(self) -> None:
        head = self._head
        head.headers[_decode(head.name).lower()] = _decode(head.value).strip()
        head.name.clear()
        head.value.clear()

    def _end(self) -> None:
        self._ended = True


def _read_head(headers: dict[str, str]) -> PartHead:
    # the option parser thinks in Latin-1, and browsers write UTF-8
    disposition = headers.get("content-disposition", "").encode().decode("latin-1")
    kind, options = parse_options_header(disposition)
    if kind != b"form-data" or b"name" not in options:
        raise InvalidInput("A part has no 'Content-Disposition: form-data' with a name.", field="body")
    file_name = options.get(b"filename")
    return PartHead(
        field_name=options[b"name"].decode(),
        file_name=None if file_name is None else file_name.decode(),
        headers=headers,
    )


def _decode(raw: bytearray) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("A part's header is not UTF-8 text.", field="body") from error

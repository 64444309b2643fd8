"""How a checkpoint's values are stored: with a checksum, and compressed where they are large (G2.5).

Free of LangGraph, so that whoever only reads a thread's history need not wait for it.
"""

import zlib
from typing import TYPE_CHECKING, Any

from domain.errors import CorruptCheckpoint

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol

#: what is larger is compressed
COMPRESS_ABOVE_BYTES = 1024**2
#: the mark in a value's type, by which SQL tells the compressed ones, too
COMPRESSED = "+zlib"
#: the fastest: the state of an agent is JSON-like, and a level more costs twice the time for a tenth of the size
_LEVEL = 1
_CHECKSUM_BYTES = 4


def sealed(type_: str, content: bytes) -> tuple[str, bytes]:
    """A serialised value as it is stored, checksum first."""
    if len(content) > COMPRESS_ABOVE_BYTES:
        type_, content = type_ + COMPRESSED, zlib.compress(content, _LEVEL)
    return type_, zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big") + content


def unsealed(type_: str, stored: bytes) -> tuple[str, bytes]:
    """The serialised value; raises `CorruptCheckpoint`."""
    content = bytes(stored[_CHECKSUM_BYTES:])
    if zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big") != bytes(stored[:_CHECKSUM_BYTES]):
        raise CorruptCheckpoint(f"A stored {type_} value fails its checksum.")
    if not type_.endswith(COMPRESSED):
        return type_, content
    try:
        return type_.removesuffix(COMPRESSED), zlib.decompress(content)
    except zlib.error as error:
        raise CorruptCheckpoint(f"A stored {type_} value cannot be read: {error}") from error


class StoredValues:
    """Any serializer, with a CRC-32 before each value: a damaged one is told, not believed."""

    def __init__(self, serializer: "SerializerProtocol") -> None:
        self._serializer = serializer

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """The value's type and its bytes, checksum first."""
        return sealed(*self._serializer.dumps_typed(obj))

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value; raises `CorruptCheckpoint`."""
        type_, content = unsealed(*data)
        try:
            return self._serializer.loads_typed((type_, content))
        except Exception as error:
            raise CorruptCheckpoint(f"A stored {type_} value cannot be read: {error}") from error

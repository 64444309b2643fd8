"""How a checkpoint's values are stored: with a checksum, and compressed where they are large (G2.5)."""

import zlib
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol

from domain.errors import CorruptCheckpoint

#: what is larger is compressed
COMPRESS_ABOVE_BYTES = 1024**2
#: the mark in a value's type, by which SQL tells the compressed ones, too
COMPRESSED = "+zlib"
#: the fastest: the state of an agent is JSON-like, and a level more costs twice the time for a tenth of the size
_LEVEL = 1
_CHECKSUM_BYTES = 4


class StoredValues(SerializerProtocol):
    """Any serializer, with a CRC-32 before each value: a damaged one is told, not believed."""

    def __init__(self, serializer: SerializerProtocol) -> None:
        self._serializer = serializer

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """The value's type and its bytes, checksum first."""
        type_, content = self._serializer.dumps_typed(obj)
        if len(content) > COMPRESS_ABOVE_BYTES:
            type_, content = type_ + COMPRESSED, zlib.compress(content, _LEVEL)
        return type_, zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big") + content

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value; raises `CorruptCheckpoint`."""
        type_, stored = data
        content = bytes(stored[_CHECKSUM_BYTES:])
        if zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big") != bytes(stored[:_CHECKSUM_BYTES]):
            raise CorruptCheckpoint(f"A stored {type_} value fails its checksum.")
        try:
            if type_.endswith(COMPRESSED):
                type_, content = type_.removesuffix(COMPRESSED), zlib.decompress(content)
            return self._serializer.loads_typed((type_, content))
        except Exception as error:
            raise CorruptCheckpoint(f"A stored {type_} value cannot be read: {error}") from error

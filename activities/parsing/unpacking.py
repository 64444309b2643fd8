"""Packed logs as their members: gzip, Zstandard, zip and tar, one within another, as streams.

Packing is known by its first bytes, never by a name. A bomb is refused (`LimitExceeded`); what breaks off or
is damaged, as on a machine that lost its power, is read so far, and the account says so.
"""

import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO

import zstandard

from activities.parsing.source import Source, with_head
from domain.errors import LimitExceeded, UnreadableLog

_PIECE_BYTES = 256 * 1024
#: of Zstandard's input: four bytes of it may be 128 KiB, so that a piece is at most 32 MiB
_ZSTD_PIECE_BYTES = 1024
#: a window is memory: 128 MiB is what `zstd --long=27` asks for
_ZSTD_WINDOW_BYTES = 128 * 1024**2
#: a piece at whose end a damage is found is lost
_ZIP_PIECE_BYTES = 16 * 1024
#: the most that may be read of a zip at once: its table of contents, which is held in memory
_ZIP_TABLE_BYTES = 4 * 1024**2
_NAME_CHARACTERS = 255
_TAR_BLOCK = 512
_TAR_BREAKS_OFF = "The tar archive is damaged or breaks off; it was read so far."
_LONG_NAME_BYTES = 64 * 1024
#: others need a dictionary as large as the archive pleases
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_ENCRYPTED = 1
#: packings that are known, and not read
_OTHERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "RAR",
    b"\x04\x22\x4d\x18": "LZ4",
}


class Unpacking:
    """One file, unpacked as far as it is packed."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._limits, self._account = source.limits, source.account
        self._packed_bytes = 0
        self._unpacked_bytes = 0
        self._names: Counter[str] = Counter()

    def members(self) -> Iterator[Source]:
        """The logs within the file, or the file itself; each is to be read before the next is asked for."""
        yield from self._opened(with_head(self._source, self._weighed(self._source.chunks)), depth=0)

    def _opened(self, source: Source, depth: int) -> Iterator[Source]:
        try:
            opener = self._opener(source.head)
            if opener is None:
                source.chunks = self._counted(source.chunks, is_packed=depth > 0)
                yield source
                return
            if depth == self._limits.depth:
                raise LimitExceeded(f"Packed more than {depth} times. Unpack it first.", field="file")
            for member in opener(source):
                yield from self._opened(member, depth + 1)
        except UnreadableLog as error:
            if not source.member:
                raise
            # one file of an archive: the others are read
            self._account.fell_short(f"{source.member}: {error.message}")

    def _opener(self, head: bytes) -> Callable[[Source], Iterator[Source]] | None:
        if head.startswith(b"\x1f\x8b\x08"):
            return lambda source: self._stream(source, _gunzipped)
        if head.startswith(zstandard.FRAME_HEADER):
            return lambda source: self._stream(source, _zstd_unpacked)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return self._zip
        if _is_tar(head):
            return self._tar
        other = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), None)
        if other is not None:
            raise UnreadableLog(f"Packed by {other}. Pack it as gz, zst or zip.", field="file")
        return None

    def _weighed(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._packed_bytes += len(chunk)
            yield chunk

    def _metered(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """What a layer unpacks to, as long as that is in proportion to the file's packed bytes."""
        limits = self._limits
        for piece in pieces:
            self._unpacked_bytes += len(piece)
            ratio = self._unpacked_bytes / max(1, self._packed_bytes)
            if self._unpacked_bytes > limits.free_bytes and ratio > limits.ratio:
                raise _unpacks_to_too_much(f"{limits.ratio} times its packed bytes")
            if piece:
                yield piece

    def _counted(self, chunks: Iterator[bytes], *, is_packed: bool) -> Iterator[bytes]:
        most, account = self._limits.expanded_bytes, self._account
        for chunk in chunks:
            part = chunk[: most - account.expanded_bytes]
            account.expanded_bytes += len(part)
            yield part
            if len(part) < len(chunk):
                if is_packed:
                    raise _unpacks_to_too_much(f"{most} bytes")
                account.fell_short(f"Only the first {most} bytes were read, which is the limit.")
                return

    def _stream(self, source: Source, unpack: "Unpack") -> Iterator[Source]:
        unpacked = unpack(source.chunks, source.account.fell_short)
        yield self._member(source, source.member, self._metered(unpacked))

    def _member(self, source: Source, member: str, pieces: Iterator[bytes]) -> Source:
        inner = Source(iter(()), b"", member, source.name, source.account, source.limits, source.written_at)
        return with_head(inner, pieces)

    def _named(self, source: Source, name: str) -> str:
        """A member's name within its archive, unlike all others; raises `LimitExceeded` for too many."""
        shown = "".join(each if each.isprintable() else "\ufffd" for each in name[:_NAME_CHARACTERS])
        full = f"{source.member}/{shown}" if source.member else shown
        self._names[full] += 1
        if self._names.total() > self._limits.members:
            raise LimitExceeded(
                f"More than {self._limits.members} files in archives. Split it.", field="file"
            )
        return full if self._names[full] == 1 else f"{full} ({self._names[full]})"

    def _zip(self, source: Source) -> Iterator[Source]:
        with tempfile.TemporaryFile() as spool:
            self._lay_down(source, spool)
            with _table_of(spool) as archive:
                for entry in archive.infolist():
                    yield from self._zip_entry(source, archive, entry)

    def _lay_down(self, source: Source, spool: IO[bytes]) -> None:
        size = 0
        for chunk in source.chunks:
            size += len(chunk)
            if size > self._limits.spooled_bytes:
                limit = self._limits.spooled_bytes
                raise LimitExceeded(f"The zip has more than {limit} bytes. Use gz or zst.", field="file")
            spool.write(chunk)

    def _zip_entry(
        self, source: Source, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
    ) -> Iterator[Source]:
        if entry.is_dir():
            return
        member = self._named(source, entry.filename)
        if entry.flag_bits & _ENCRYPTED:
            source.account.fell_short(f"{member} is encrypted and was not read.")
        elif entry.compress_type not in _ZIP_METHODS:
            source.account.fell_short(f"{member} is packed by a method that is not read (use deflate).")
        else:
            yield self._member(source, member, self._metered(_unzipped(archive, entry, source)))

    def _tar(self, source: Source) -> Iterator[Source]:
        pipe, long_name = _Pipe(source.chunks), ""
        while (block := pipe.exactly(_TAR_BLOCK)).strip(b"\0"):
            header = _tar_header(block)
            if header is None:
                source.account.fell_short(_TAR_BREAKS_OFF)
                return
            body = pipe.part(header.size if header.isreg() or header.type not in _BARE else 0)
            if header.type == tarfile.GNUTYPE_LONGNAME and header.size <= _LONG_NAME_BYTES:
                long_name = b"".join(body).rstrip(b"\0").decode(errors="replace")
            elif header.isreg():
                yield self._member(source, self._named(source, long_name or header.name), body)
                long_name = ""
            for _ in body:
                pass  # what nobody has read of the member
            if pipe.has_broken_off:
                source.account.fell_short(_TAR_BREAKS_OFF)
            pipe.exactly(-header.size % _TAR_BLOCK)


Unpack = Callable[[Iterator[bytes], Callable[[str], None]], Iterator[bytes]]


def _gunzipped(chunks: Iterator[bytes], fell_short: Callable[[str], None]) -> Iterator[bytes]:
    """The members of a gzip stream, one after another as rotated logs are joined."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        for data in chunks:
            while data:
                if unpacker.eof:
                    # padding of zeros, as tapes and some loggers leave it, is no member
                    data = data.lstrip(b"\0")
                    unpacker = zlib.decompressobj(wbits=31) if data else unpacker
                    continue
                yield unpacker.decompress(data, _PIECE_BYTES)
                data = unpacker.unconsumed_tail or unpacker.unused_data
        yield unpacker.flush()
    except zlib.error:
        fell_short("The gzip stream is damaged; what stands after that was not read.")
    else:
        if not unpacker.eof:
            fell_short("The gzip stream breaks off; it was read so far.")


def _zstd_unpacked(chunks: Iterator[bytes], fell_short: Callable[[str], None]) -> Iterator[bytes]:
    """The frames of a Zstandard stream."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), _ZSTD_PIECE_BYTES):
                data = chunk[start : start + _ZSTD_PIECE_BYTES]
                while data:
                    frame = decompressor.decompressobj() if frame.eof else frame
                    yield frame.decompress(data)
                    data = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError:
        fell_short("The Zstandard stream is damaged or needs a window over 128 MiB; the rest was not read.")
    else:
        if not frame.eof:
            fell_short("The Zstandard stream breaks off; it was read so far.")


class _Guarded:
    """A zip in a temporary file, of which nobody reads more at once than a table of contents may have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _ZIP_TABLE_BYTES:
            raise LimitExceeded(
                f"The zip's table of contents has over {_ZIP_TABLE_BYTES} bytes.", field="file"
            )
        return self._file.read(size if size >= 0 else _ZIP_TABLE_BYTES)


_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
)


def _table_of(spool: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(_Guarded(spool))
    except _ZIP_ERRORS as error:
        raise UnreadableLog(
            "The zip is damaged or breaks off: its table of contents cannot be read. Upload it again.",
            field="file",
        ) from error


def _unzipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, source: Source) -> Iterator[bytes]:
    try:
        with archive.open(entry) as unpacked:
            while piece := unpacked.read(_ZIP_PIECE_BYTES):
                yield piece
    except _ZIP_ERRORS:
        source.account.fell_short("A file in the zip is damaged; it was read so far.")


class _Pipe:
    """Chunks of whatever size read in parts of a stated size."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        #: the stream has ended within a part
        self.has_broken_off = False

    def part(self, size: int) -> Iterator[bytes]:
        """The next bytes, as they come; fewer where the stream ends."""
        while size > 0 and (rest := self._rest or memoryview(next(self._chunks, b""))):
            piece, self._rest = rest[:size], rest[size:]
            size -= len(piece)
            yield bytes(piece)
        self.has_broken_off |= size > 0

    def exactly(self, size: int) -> bytes:
        """The next bytes in one piece; fewer where the stream ends."""
        return b"".join(self.part(size))


#: kinds of a tar's entries that have no bytes, whatever size they state
_BARE = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" and _tar_header(head[:_TAR_BLOCK]) is not None


def _tar_header(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None


def _unpacks_to_too_much(limit: str) -> LimitExceeded:
    return LimitExceeded(
        f"The log unpacks to more than {limit}, the limit. Unpack it or split it.", field="file"
    )

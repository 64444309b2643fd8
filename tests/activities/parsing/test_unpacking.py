"""Packed logs: what is within, what is refused, and what half of one is worth."""

import bz2
import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from activities.parsing.reader import open_log
from activities.parsing.source import Account, Limits
from domain.errors import LimitExceeded, UnreadableLog

LOG = b"".join(b"2026-03-17T16:13:38Z chunk %d\n" % number for number in range(2_000))


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        archive.addfile(directory("logs"))
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def directory(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    return entry


def read(
    content: bytes, account: Account | None = None, size: int = 10_000, **limits: Any
) -> list[tuple[str, int, str]]:
    chunks = (content[start : start + size] for start in range(0, len(content), size))
    lines = open_log("a.log", chunks, account=account, limits=Limits(**limits))
    return [(line.member, line.number, line.content) for line in lines]


def chunked(member: str, count: int) -> list[tuple[str, int, str]]:
    return [(member, number + 1, f"chunk {number}") for number in range(count)]


def test_archives_within_archives_are_read_with_the_way_to_each_member() -> None:
    long_name = "logs/" + "深" * 60 + ".log"
    inner = tarred({long_name: LOG, "b.log": LOG[:29]})
    packed = zipped({"car/1.tar.gz": gzip.compress(inner), "2.log.zst": zstandard.compress(LOG)})
    account = Account()
    assert read(packed, account) == [
        *chunked(f"car/1.tar.gz/{long_name}", 2_000),
        *chunked("car/1.tar.gz/b.log", 1),
        *chunked("2.log.zst", 2_000),
    ]
    assert (account.members, account.incomplete) == (3, "")
    assert account.expanded_bytes == 2 * len(LOG) + 29


def test_members_are_told_apart_and_their_names_are_no_paths_nor_controls() -> None:
    # \x1b and \x1c are shown alike
    packed = zipped(dict.fromkeys(("../../etc/a.log", "b\x1b[2J.log", "b\x1c[2J.log"), b"one\n"))
    shown = ["../../etc/a.log", "b\ufffd[2J.log", "b\ufffd[2J.log (2)"]
    assert [member for member, *_ in read(packed)] == shown


@pytest.mark.parametrize(
    "joined",
    [
        gzip.compress(LOG) + gzip.compress(LOG) + b"\0" * 600,
        zstandard.compress(LOG) + zstandard.compress(LOG),
    ],
    ids=["gz", "zst"],
)
@pytest.mark.parametrize("size", [101, 1_000_000])
def test_streams_that_were_joined_are_read_to_the_end(joined: bytes, size: int) -> None:
    account = Account()
    assert len(read(joined, account, size=size)) == 4_000
    assert account.incomplete == ""


#: several blocks of 128 KiB, which Zstandard unpacks whole
HARD = b"".join(b"chunk %d %s\n" % (n, hashlib.sha512(b"%d" % n).hexdigest().encode()) for n in range(4_000))
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "tar.gz": lambda content: gzip.compress(tarred({"a.log": content})),
    "tar": lambda content: tarred({"a.log": content}),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("rest", [b"", b"\xa5" * 5_000], ids=["breaks off", "damaged"])
def test_half_a_packed_log_is_read_and_said_to_be_half(packing: str, rest: bytes) -> None:
    # Zstandard unpacks whole blocks of 128 KiB
    hard = b"".join(
        b"chunk %d %s\n" % (n, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in range(9_000)
    )
    packed, account = PACKINGS[packing](hard), Account()
    lines = read(packed[: len(packed) // 2] + rest, account)
    assert len(lines) > 900
    assert [content.split()[1] for _, _, content in lines[:900]] == [str(number) for number in range(900)]
    assert account.incomplete != ""


def test_a_broken_frame_of_zstandard_with_nothing_before_it_is_refused() -> None:
    with pytest.raises(UnreadableLog, match="Zstandard stream"):
        read(zstandard.compress(LOG)[:40])


def test_one_bad_file_of_an_archive_does_not_hide_the_others() -> None:
    packed = zipped(
        {
            "a.bin": bytes(range(1, 32)) * 9,
            "b.log": b"one\n",
            "c.bz2": bz2.compress(LOG),
            "d.zip": b"PK\x03\x04 no",
        }
    )
    account = Account()
    assert read(packed, account) == [("b.log", 1, "one")]
    assert account.incomplete.count(": ") >= 3
    assert all(name in account.incomplete for name in ("a.bin", "c.bz2", "d.zip"))


def test_a_damaged_file_in_a_zip_is_read_so_far() -> None:
    stored = zipped({"a.log": LOG}, zipfile.ZIP_STORED).replace(b"chunk 1999", b"chunk XXXX")
    account = Account()
    assert len(read(stored, account)) > 1_000
    assert "damaged" in account.incomplete


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (zipped({"a.log": LOG})[:-30], "table of contents"),
        (bz2.compress(LOG), "bzip2.*gz, zst or zip"),
        (gzip.compress(LOG)[:12], "gzip stream breaks off"),
        (zipped({"a.log": LOG}, zipfile.ZIP_LZMA), "method"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_with_the_reason(packed: bytes, says: str) -> None:
    with pytest.raises(UnreadableLog, match=says):
        read(packed)


def encrypted() -> bytes:
    content = bytearray(zipped({"a.log": LOG}))
    table = content.rindex(b"PK\x01\x02")
    content[table + 8] |= 1
    return bytes(content)


def test_an_encrypted_file_is_refused() -> None:
    with pytest.raises(UnreadableLog, match="encrypted"):
        read(encrypted())


def nested(depth: int) -> bytes:
    content = LOG
    for _ in range(depth):
        content = gzip.compress(content)
    return content


def table_of(size: int) -> bytes:
    """A zip whose end says that its table of contents has so many bytes."""
    return b"PK\x03\x04" + bytes(size) + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 4, 0)


@pytest.mark.parametrize(
    ("packed", "limits", "names"),
    [
        (gzip.compress(bytes(3_000_000)), {"free_bytes": 1_000_000}, "500 times"),
        (zstandard.compress(b"\n" * 3_000_000), {"free_bytes": 1_000_000}, "500 times"),
        (zipped({"a": bytes(3_000_000)}), {"free_bytes": 1_000_000}, "500 times"),
        (gzip.compress(gzip.compress(bytes(9_000_000))), {"free_bytes": 1_000_000}, "500 times"),
        (gzip.compress(LOG), {"expanded_bytes": 30_000}, "30000 bytes"),
        (nested(4), {"depth": 3}, "3 times"),
        (zipped({f"{number}.log": b"" for number in range(4)}), {"members": 3}, "3 files"),
        (tarred({f"{number}.log": b"" for number in range(4)}), {"members": 3}, "3 files"),
        (zipped({"a.log": LOG}), {"spooled_bytes": 1_000}, "1000 bytes"),
        (table_of(5_000_000), {}, "table of contents"),
    ],
)  # fmt: skip
def test_a_bomb_is_refused_with_the_limit_it_breaks(
    packed: bytes, limits: dict[str, int], names: str
) -> None:
    with pytest.raises(LimitExceeded, match=names) as refusal:
        read(packed, **limits)
    assert refusal.value.field == "file"


def test_a_plain_log_over_the_limit_is_read_so_far() -> None:
    account = Account()
    assert len(read(LOG, account, expanded_bytes=1_000)) == 34
    assert account.expanded_bytes == 1_000
    assert "first 1000 bytes" in account.incomplete


def test_a_bomb_is_refused_long_before_it_is_unpacked() -> None:
    account, bomb = Account(), zstandard.compress(b"\n" * 50_000_000)
    with pytest.raises(LimitExceeded):
        read(bomb, account, free_bytes=1_000_000)
    assert account.expanded_bytes < 34_000_000

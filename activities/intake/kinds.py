"""Kinds: what a file is by its bytes, and by its name where the bytes are plain text."""

from enum import StrEnum
from pathlib import PurePosixPath

from domain.errors import UnreadableSubmission


class Kind(StrEnum):
    """A format that can be read."""

    TEXT = "text"
    JSON = "json"
    NOTEBOOK = "notebook"
    TABLE = "table"
    WORD = "word"
    PDF = "pdf"
    PICTURE = "picture"


_TO_WORD_OR_PDF = "Open it in the program that made it, save it as .docx or PDF, and upload that file."
_TO_JPEG = "Save it as JPEG, PNG or PDF and upload that file."
_UNPACK = "Unpack it and upload each student's file by itself."

#: first bytes -> what it is and the way out
_REFUSED = (
    (b"{\\rtf", "An RTF document.", _TO_WORD_OR_PDF),
    (b"%!PS", "A PostScript file.", "Convert it to PDF and upload that file."),
    (b"GIF87a", "A GIF picture.", _TO_JPEG),
    (b"GIF89a", "A GIF picture.", _TO_JPEG),
    (b"II*\0", "A TIFF picture.", _TO_JPEG),
    (b"MM\0*", "A TIFF picture.", _TO_JPEG),
    (b"\x1f\x8b", "A gzip archive.", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "A 7z archive.", _UNPACK),
    (b"Rar!\x1a\x07", "A RAR archive.", _UNPACK),
    (b"BZh91AY&SY", "A bzip2 archive.", _UNPACK),
    (b"\xfd7zXZ\0", "An xz archive.", _UNPACK),
)
_PHOTO_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
#: programs write a few bytes before the head of a PDF; its readers look through the first kilobyte
_PDF_HEAD_BYTES = 1024

_BY_SUFFIX = {".json": Kind.JSON, ".ipynb": Kind.NOTEBOOK, ".csv": Kind.TABLE, ".tsv": Kind.TABLE}
_NAMED_OTHERWISE = {
    ".docx": "Word document",
    ".pdf": "PDF",
    ".png": "PNG picture",
    ".jpg": "JPEG picture",
    ".jpeg": "JPEG picture",
    ".doc": "Word document",
    ".odt": "OpenDocument text",
    ".pages": "Pages document",
}


def kind_of(name: str, content: bytes) -> Kind:
    """What the file is; raises `UnreadableSubmission`, which says how to hand in what cannot be read."""
    if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.WORD
    if content.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return Kind.PICTURE
    # a text about PDF has no objects
    if content.startswith(b"%PDF-") or (b"%PDF-" in content[:_PDF_HEAD_BYTES] and b"endobj" in content):
        return Kind.PDF
    _refuse_known(content)
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix in _NAMED_OTHERWISE and content.strip():
        raise UnreadableSubmission(
            f"The file is named {suffix} and is no {_NAMED_OTHERWISE[suffix]}; it may be damaged. "
            "Save it once more as .docx or PDF and upload that file.",
            field="file",
        )
    return _BY_SUFFIX.get(suffix, Kind.TEXT)


def _refuse_known(content: bytes) -> None:
    for head, what, way_out in _REFUSED:
        if content.startswith(head):
            raise UnreadableSubmission(f"{what} {way_out}", field="file")
    if content.startswith(_OLE):
        raise UnreadableSubmission(_ole(content), field="file")
    if content[4:8] == b"ftyp":
        what = "A HEIC photo." if content[8:12] in _PHOTO_BRANDS else "A recording."
        raise UnreadableSubmission(
            f"{what} {_TO_JPEG if 'photo' in what else 'Write the answers down and upload the text.'}",
            field="file",
        )
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        raise UnreadableSubmission(f"A WebP picture. {_TO_JPEG}", field="file")
    if content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        raise UnreadableSubmission(
            "A web page. Print it to PDF, or copy its text into a .txt file, and upload that.", field="file"
        )


def _ole(content: bytes) -> str:
    """What an OLE container holds, by the names in its folder, which are UTF-16."""
    if "EncryptedPackage".encode("utf-16-le") in content:
        return "A document with a password. Remove the password (File > Info > Protect) and upload it again."
    if "WordDocument".encode("utf-16-le") in content:
        return f"A Word document of the old kind (.doc). {_TO_WORD_OR_PDF}"
    return f"An Office file of an old kind. {_TO_WORD_OR_PDF}"

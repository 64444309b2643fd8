"""Every kind of broken file, made here and really read: the source of the table in docs/submissions.md."""

import asyncio
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from activities.intake.reader import Intake
from domain.errors import UnreadableSubmission
from domain.exam import Question, QuestionType

QUESTIONS = [
    Question("q1", QuestionType.EXACT, "Which system translates host names?", 1, (), answer="DNS"),
    Question("q2", QuestionType.EXACT, "Which port has HTTPS?", 1, (), answer="443"),
]
ANSWERED = "## q1\nDNS\n## q2\n443\n"


@dataclass(frozen=True)
class Broken:
    """A file that cannot be read, and whose bytes it takes to see that."""

    what: str
    name: str
    content: bytes


def table() -> str:
    """The Markdown table: what is handed in, and what is said to it."""
    files = broken_files()
    # a loop of its own, wherever this is called from
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(asyncio.run, messages(files)).result()
    rows = [f"| {each.what} | {message} |" for each, message in zip(files, said, strict=True)]
    return "\n".join(["| handed in | message |", "| --- | --- |", *rows]) + "\n"


async def messages(files: Iterable[Broken]) -> list[str]:
    """What is said to each file, where no text recognition is installed; a file that can be read says so."""
    intake = Intake(recognition=False)
    return await asyncio.gather(*(_message(intake, each) for each in files))


async def _message(intake: Intake, broken: Broken) -> str:
    try:
        answers = await intake.read(broken.name, broken.content, QUESTIONS)
    except UnreadableSubmission as unreadable:
        return unreadable.message
    return f"read: {sorted(answers)}"


def broken_files() -> list[Broken]:
    """One file of each kind."""
    return [
        *_texts(),
        *_documents(),
        *_pdfs(),
        *_pictures(),
    ]


def _texts() -> list[Broken]:
    student_rows = "student,q1,q2\nli,DNS,443\nwu,DNS,80\n"
    return [
        Broken("an empty file", "a.txt", b""),
        Broken("white space alone", "a.txt", b" \n\t\n"),
        Broken("no heading and no number, in an exam of several questions", "a.md", b"DNS, and then 443.\n"),
        Broken("another exam's answers", "a.md", b"## q8\nDNS\n"),
        Broken("a program or another binary file", "a.txt", b"\x7fELF\x02\x01\x01" + bytes(64)),
        Broken("text with NUL bytes", "a.txt", b"q1: D\0N\0S and more\0"),
        Broken("text in an encoding that cannot be told", "a.txt", "q1: Ответ: ДНС".encode("koi8-r")),
        Broken("JSON that breaks off", "a.json", b'{"answers": {"q1": "DNS"'),
        Broken("JSON without answers", "a.json", b'{"answers": ["DNS", "443"]}'),
        Broken("JSON nested a hundred thousand deep", "a.json", b"[" * 100_000),
        Broken("JSON with half a character", "a.json", rb'{"answers": {"q1": "\ud800"}}'),
        Broken("JSON with a question twice", "a.json", b'{"answers": {"q1": "DNS", "Question 1": "TLS"}}'),
        Broken("a damaged notebook", "a.ipynb", b'{"cells": '),
        Broken("a notebook of empty cells", "a.ipynb", json.dumps({"cells": [{"source": []}]}).encode()),
        Broken("a class's table as one submission", "a.csv", student_rows.encode()),
        Broken("a table without a question's column", "a.csv", b"a,b\n1,2\n"),
        Broken("a table with an open quotation mark", "a.csv", b'q1,q2\n"DNS,443\n'),
        Broken("more than 8 MiB of text", "a.txt", ANSWERED.encode() + b"x" * 8 * 1024**2),
        Broken("a saved web page", "a.html", b"<!DOCTYPE html><html><body>q1: DNS</body></html>"),
        Broken("RTF", "a.rtf", rb"{\rtf1 q1: DNS}"),
    ]


def _documents() -> list[Broken]:
    import docx

    whole = _docx(lambda document: document.add_paragraph("q1: DNS"))
    heavy = _zip({"[Content_Types].xml": b"<Types/>", "word/document.xml": bytes(1024**2)})
    wide = "utf-16-le"
    return [
        Broken("a document without text", "a.docx", _docx(lambda document: None)),
        Broken(
            "a document of photos",
            "a.docx",
            _docx(lambda document: document.add_picture(io.BytesIO(_png()), width=docx.shared.Inches(1))),
        ),
        Broken("`.docx` that is no Word document", "a.docx", b"q1: DNS"),
        Broken("`.docx` that was cut off", "a.docx", whole[: len(whole) // 2]),
        Broken("`.docx` with a damaged part", "a.docx", _with_part(whole, b"<w:document")),
        Broken("`.docx` with entities", "a.docx", _with_entities(whole)),
        Broken("a zip bomb", "a.docx", heavy.replace(struct.pack("<I", 1024**2), struct.pack("<I", 1024**3))),
        Broken("a document with a password", "a.docx", _ole("EncryptedPackage".encode(wide))),
        Broken("a Word document with macros", "a.docm", _as_macro_document(whole)),
        Broken("the old `.doc`", "a.doc", _ole("WordDocument".encode(wide))),
        Broken("`.odt`", "a.odt", _zip({"mimetype": b"", "content.xml": b"<a/>"})),
        Broken("`.pages`", "a.pages", _zip({"Index/Document.iwa": b"x"})),
        Broken("`.xlsx`", "a.xlsx", _zip({"xl/workbook.xml": b"<a/>"})),
        Broken("`.pptx`", "a.pptx", _zip({"ppt/presentation.xml": b"<a/>"})),
        Broken("a zip of files", "a.zip", _zip({"li.txt": b"q1: DNS"})),
        Broken("an archive of another kind", "a.rar", b"Rar!\x1a\x07\x01\x00"),
    ]


def _pdfs() -> list[Broken]:
    shape = b"0 0 m 50 50 l S"
    return [
        Broken("a PDF with a password", "a.pdf", _pdf(b"", encrypted=True)),
        Broken("a PDF that was cut off", "a.pdf", _pdf(b"BT ET")[:60]),
        Broken("`.pdf` that is none", "a.pdf", b"q1: DNS"),
        Broken("a PDF of blank pages", "a.pdf", _pdf(b"")),
        Broken("a PDF of thousands of pages", "a.pdf", _pdf(b"", pages=5_000)),
        Broken("a scan or a drawing, without the extra `ocr`", "a.pdf", _pdf(shape)),
    ]


def _pictures() -> list[Broken]:
    return [
        Broken("a photo or a screenshot, without the extra `ocr`", "a.png", _png()),
        Broken("a HEIC photo", "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0"),
        Broken("a GIF", "a.gif", b"GIF89a"),
        Broken("a TIFF", "a.tiff", b"II*\0"),
        Broken("a WebP picture", "a.webp", b"RIFF\0\0\0\0WEBPVP8 "),
        Broken("a recording", "a.mp4", b"\0\0\0\x18ftypisom\0\0\0\0"),
    ]


# --- how they are made ------------------------------------------------------------------------------


def _docx(fill: Callable[..., object]) -> bytes:
    import docx

    document = docx.Document()
    fill(document)
    written = io.BytesIO()
    document.save(written)
    return written.getvalue()


def _zip(parts: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return written.getvalue()


def _parts(document: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(document)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _with_part(document: bytes, main: bytes) -> bytes:
    return _zip(_parts(document) | {"word/document.xml": main})


def _with_entities(document: bytes) -> bytes:
    main = _parts(document)["word/document.xml"].replace(b"DNS", b"&e;")
    head, end, body = main.partition(b"?>")
    return _with_part(
        document, head + end + b'<!DOCTYPE w [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + body
    )


def _as_macro_document(document: bytes) -> bytes:
    parts = _parts(document)
    plain = b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    macro = b"application/vnd.ms-word.document.macroEnabled.main+xml"
    return _zip(parts | {"[Content_Types].xml": parts["[Content_Types].xml"].replace(plain, macro)})


def _ole(entry: bytes) -> bytes:
    """The head and a folder's entry of what Office wrote before 2007, and still writes around encryption."""
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + entry + bytes(512)


def _png() -> bytes:
    """One grey point."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0\x80")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _pdf(drawing: bytes, *, pages: int = 1, encrypted: bool = False) -> bytes:
    """A small PDF, each of its pages the same one; its readers find the objects without a table of them."""
    kids = b"3 0 R " * pages
    owner, user = b"e5a8d2687bd9d0cff946b7ac55f51081" * 2, b"ed959e6f5727a89ad576e2f1dc58e268" * 2
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count %d/Kids[%s]>>" % (pages, kids),
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Resources<<>>/Contents 4 0 R>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(drawing), drawing),
        b"<</Filter/Standard/V 1/R 2/Length 40/P -4/O<%s>/U<%s>>>" % (owner, user),
    ]
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % numbered for numbered in enumerate(objects, start=1))
    secret = b"/Encrypt 5 0 R/ID[<00><00>]" if encrypted else b""
    return b"%PDF-1.4\n" + body + b"trailer\n<</Size 6/Root 1 0 R" + secret + b">>\n%%EOF\n"

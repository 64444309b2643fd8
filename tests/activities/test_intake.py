"""The intake: every format as a student hands it in, and every broken file alone."""

import asyncio
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.document import Document
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.intake.confined import READERS, answer
from activities.intake.kinds import Kind, kind_of
from activities.intake.ocr import recognition_installed
from activities.intake.reader import MAX_TEXT_BYTES, Intake
from activities.intake.word import read_word
from docs.broken.submissions import QUESTIONS, Broken, broken_files, messages
from domain.errors import UnreadableSubmission
from domain.exam import Question, QuestionType

BOTH = {"q1": "DNS", "q2": "443"}
EXAM = [Question(f"q{n}", QuestionType.ESSAY, f"Prompt number {n}, at some length", 1, ()) for n in (1, 2, 3)]


def intake() -> Intake:
    return Intake(recognition=False)


async def read(name: str, content: bytes) -> dict[str, str]:
    return await intake().read(name, content, EXAM)


def saved(document: Document) -> bytes:
    written = io.BytesIO()
    document.save(written)
    return written.getvalue()


def pdf(*pages: str) -> bytes:
    """A PDF with a text layer in a standard font, a line a line."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{kids}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, page in enumerate(pages):
        lines = " ".join(f"({line}) Tj 0 -20 Td" for line in page.split("\n"))
        drawing = f"BT /F1 12 Tf 50 700 Td {lines} ET" if page else ""
        objects.append(
            "<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F1 3 0 R>>>>"
            f"/Contents {5 + 2 * number} 0 R>>"
        )
        objects.append(f"<</Length {len(drawing)}>>stream\n{drawing}\nendstream")
    body = "".join(f"{number} 0 obj\n{each}\nendobj\n" for number, each in enumerate(objects, start=1))
    return f"%PDF-1.4\n{body}trailer\n<</Size {len(objects) + 1}/Root 1 0 R>>\n%%EOF\n".encode()


# --- formats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"q1: DNS\nq2: 443"),
        ("a", "第一题：DNS\n第二题：443".encode()),
        ("a.md", "## q1\nDNS\n## q2\n443".encode("utf-16")),
        ("答卷.TXT", "一、DNS\n二、443\n三、".encode("gbk")),
        ("a.json", b'{"answers": {"q1": "DNS", "q2": 443}}'),
        ("a.txt", b' {"answers": {"q1": "DNS", "q2": "443"}}'),
        ("a.json", b'{"Question 1": "DNS", "Question 2": "443"}'),
        ("a.csv", b"student;q1;q2;q3\nLi;DNS;443;\n"),
        ("a.tsv", b"Response 1\tResponse 2\nDNS\t443\n"),
        ("a.pdf", pdf("Name: Li\nQuestion 1\nDNS", "", "Question 2\n443")),
        ("a.txt", pdf("q1: DNS\nq2: 443")),
        ("a.txt", b"\r\nheader\r\n" + pdf("q1: DNS\nq2: 443")),
    ],
)
async def test_a_format_is_read(name: str, content: bytes) -> None:
    assert await read(name, content) == BOTH


async def test_a_text_about_formats_is_a_text() -> None:
    assert await read("a.md", b"q1: begins with %PDF-1.4\nq2: PK") == {
        "q1": "begins with %PDF-1.4",
        "q2": "PK",
    }


async def test_a_notebook_is_read_in_order_without_what_it_printed() -> None:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": ["## Question 1\n", "In words."]},
        {"cell_type": "code", "source": "# Question 3\nprint(1)", "outputs": [{"text": "## q2\nprinted"}]},
        {"cell_type": "code", "source": ["x = 2\n", "# Question 2"], "outputs": []},
        {"cell_type": "raw", "source": None},
    ]
    content = json.dumps({"nbformat": 4, "cells": cells}).encode()
    assert await read("a.ipynb", content) == {
        "q1": "In words.",
        "q3": "```\nprint(1)\n```\n\n```\nx = 2\n# Question 2\n```",
    }


async def test_a_word_document_is_read_in_order() -> None:
    document = docx.Document()
    document.add_heading("Question 1", 1)
    for word in ("SYN", "ACK"):
        document.add_paragraph(word, style="List Number")
    document.add_paragraph("more", style="List Bullet")
    table = document.add_table(2, 2)
    table.cell(0, 0).text, table.cell(0, 1).text, table.cell(1, 0).text = "a", "b\nc", "d"
    document.add_paragraph("after the table")
    document.add_heading("Question 2", 2)
    document.add_paragraph("443")
    assert await read("a.docx", saved(document)) == {
        "q1": "1. SYN\n2. ACK\n- more\na | b\nc\nd | \nafter the table",
        "q2": "443",
    }


async def test_the_numbers_that_word_shows_and_does_not_store_open_answers() -> None:
    document = docx.Document()
    for word in ("DNS", "443"):
        document.add_paragraph(word, style="List Number")
    assert await read("a.docx", saved(document)) == BOTH


async def test_a_form_as_a_table_is_read_by_its_rows() -> None:
    document = docx.Document()
    table = document.add_table(2, 2)
    for row, label, word in ((0, "1.", "DNS"), (1, "2.", "443")):
        table.cell(row, 0).text, table.cell(row, 1).text = label, word
    assert await read("a.docx", saved(document)) == BOTH


def test_tracked_changes_boxes_forms_and_formulas_are_read_as_they_show() -> None:
    document = docx.Document()
    paragraph = document.add_paragraph("kept ")
    box = "<w:txbxContent><w:p><w:r><w:t>boxed</w:t></w:r></w:p></w:txbxContent>"
    for xml in (
        "<w:ins {}><w:r><w:t>new</w:t></w:r></w:ins>",
        "<w:del {}><w:r><w:delText>old</w:delText></w:r></w:del>",
        "<w:r {}><w:tab/><w:t>x</w:t><w:br/><w:t>y</w:t></w:r>",
        "<w:r {}><w:drawing>" + box + "</w:drawing></w:r>",
    ):
        paragraph._p.append(parse_xml(xml.replace("{}", nsdecls("w"))))
    filled = "<w:sdtContent><w:p><w:r><w:t>filled in</w:t></w:r></w:p></w:sdtContent>"
    form = f"<w:sdt {nsdecls('w')}>{filled}</w:sdt>"
    paragraph._p.addnext(parse_xml(form))
    assert read_word(saved(document)) == "kept new\tx\ny\nboxed\nfilled in"


def test_a_picture_in_a_document_leaves_a_mark() -> None:
    document = docx.Document()
    document.add_paragraph("See:")
    png = next(each.content for each in broken_files() if each.name.endswith(".png"))
    document.add_picture(io.BytesIO(png), width=docx.shared.Inches(1))
    assert read_word(saved(document)) == "See:\n[picture]"


# --- what cannot be read -------------------------------------------------------------------------------


async def test_every_broken_file_says_what_to_do_and_nothing_of_the_student() -> None:
    files = [Broken(each.what, f"张三-{each.name}", each.content) for each in broken_files()]
    for broken, message in zip(files, await messages(files), strict=True):
        assert not message.startswith("read: "), broken.what
        assert "张三" not in message
        assert "DNS" not in message
        assert message.endswith((".", "}."))
    assert len({each.what for each in files}) == len(files)


async def test_a_broken_file_fails_alone() -> None:
    shared = intake()
    bad = next(each for each in broken_files() if each.what.startswith("a zip bomb"))
    outcomes = await asyncio.gather(
        *(shared.read(*each, EXAM) for each in ((bad.name, bad.content), ("a.pdf", pdf("q1: DNS\nq2: 443")))),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], UnreadableSubmission)
    assert outcomes[1] == BOTH


def test_a_bomb_that_lies_about_its_size_expands_no_further_than_it_said() -> None:
    document = docx.Document()
    document.add_paragraph("q1: DNS")
    content = saved(document)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = archive.getinfo("word/document.xml").file_size
    lying = content.replace(struct.pack("<I", size), struct.pack("<I", 10))
    with pytest.raises(UnreadableSubmission, match="damaged"):
        read_word(lying)


async def test_text_has_a_limit_that_the_message_names() -> None:
    with pytest.raises(UnreadableSubmission, match="8,388,608"):
        await read("a.txt", b"x" * (MAX_TEXT_BYTES + 1))


@settings(max_examples=200)
@given(
    name=st.sampled_from(["a.txt", "a.docx", "a.pdf", "a.ipynb", "a.csv", "a.json", "a", "a/b\\c.doc"]),
    head=st.sampled_from([b"", b"PK\x03\x04", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n", b"{", b"\xd0\xcf\x11\xe0"]),
    content=st.binary(max_size=200),
)
def test_arbitrary_bytes_are_of_a_kind_or_refused(name: str, head: bytes, content: bytes) -> None:
    try:
        kind = kind_of(name, head + content)
    except UnreadableSubmission:
        return
    assert isinstance(kind, Kind)
    # the child's part, without the child: whatever the libraries make of it, it is an answer
    reader = {Kind.WORD: "word", Kind.PDF: "pdf"}.get(kind)
    if reader is not None:
        assert set(answer(reader, head + content)) <= {"unreadable", "failed", "scanned"}


@settings(max_examples=100)
@given(
    cut=st.integers(0, 100), flipped=st.lists(st.integers(0, 10_000), max_size=4), mask=st.integers(1, 255)
)
@pytest.mark.parametrize("reader", ["word", "pdf"])
def test_a_damaged_document_is_an_answer_or_a_refusal(
    reader: str, cut: int, flipped: list[int], mask: int
) -> None:
    content = bytearray(_WHOLE[reader])
    for position in flipped:
        content[position % len(content)] ^= mask
    read = answer(reader, bytes(content[: len(content) - cut]))
    assert len(read) == 1
    assert set(read) <= {"text", "unreadable", "failed", "scanned"}


def _document() -> bytes:
    document = docx.Document()
    document.add_heading("Question 1", 1)
    document.add_paragraph("DNS", style="List Number")
    return saved(document)


_WHOLE = {"word": _document(), "pdf": pdf("q1: DNS", "q2: 443")}


# --- recognition ---------------------------------------------------------------------------------------


async def test_a_scan_without_recognition_names_the_extra_and_the_page() -> None:
    scan = next(each for each in broken_files() if each.what.startswith("a scan"))
    with pytest.raises(UnreadableSubmission, match=r"Page 1 .*assay\[ocr\]"):
        await read(scan.name, scan.content)


@pytest.mark.skipif(not recognition_installed(), reason="the extra `ocr` is not installed")
async def test_a_printed_scan_is_read(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (1240, 600), "white")
    for number, line in enumerate(("Question 1", "DNS", "Question 2", "443")):
        font = ImageFont.load_default(size=40)
        ImageDraw.Draw(page).text((80, 60 + number * 80), line, fill="black", font=font)
    page.save(tmp_path / "page.png")
    page.save(tmp_path / "page.pdf")
    reading = Intake(recognition=True)
    for path in (tmp_path / "page.png", tmp_path / "page.pdf"):
        assert await reading.read(path.name, path.read_bytes(), EXAM) == BOTH


def test_every_reader_that_the_intake_asks_for_is_there() -> None:
    assert set(READERS) == {Kind.WORD, Kind.PDF, Kind.PICTURE, "scan"}
    assert [each.id for each in QUESTIONS] == ["q1", "q2"]

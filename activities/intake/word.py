"""Word documents: paragraphs, headings, lists, tables and text boxes in reading order. Runs confined."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from domain.errors import UnreadableSubmission

MAX_EXPANDED_BYTES = 256 * 1024**2
MAX_ENTRIES = 5_000

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_BLIP = "{http://schemas.openxmlformats.org/drawingml/2006/main}blip"
_IMAGE_DATA = "{urn:schemas-microsoft-com:vml}imagedata"
#: what stands where a document shows a picture
PICTURE = "[picture]"

_WRAPPERS = {f"{_W}{name}" for name in ("sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag")}
#: deleted by tracked changes, instructions of fields, and what says how something looks
_UNSEEN = {f"{_W}{name}" for name in ("del", "moveFrom", "instrText", "pPr", "rPr", "tblPr", "tcPr", "sdtPr")}
_LITERAL = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}

_OTHERS = (
    ("xl/", "A spreadsheet. Save it as CSV, a row a student, and hand that in."),
    ("ppt/", "A presentation. Save it as PDF and upload that file."),
    ("Index/", "A Pages document. Export it as Word (.docx) or PDF and upload that file."),
    ("content.xml", "An OpenDocument file. Save it as .docx or PDF and upload that file."),
)
_DAMAGED = "The Word document is damaged. Open it in Word, save it as .docx or PDF, and upload that file."


def read_word(content: bytes) -> str:
    """The document's text; headings begin with `#`, list items with their number, as Word shows them."""
    _check_archive(content)
    import docx
    from docx.opc.exceptions import PackageNotFoundError

    try:
        document = docx.Document(io.BytesIO(content))
    except ValueError as error:
        # python-docx names the content type of a macro document or a template
        raise UnreadableSubmission(
            "A Word document with macros, or a template. Save it as .docx or PDF and upload that file.",
            field="file",
        ) from error
    except (PackageNotFoundError, KeyError, zipfile.BadZipFile, OSError, SyntaxError) as error:
        raise UnreadableSubmission(_DAMAGED, field="file") from error
    if document.element.getroottree().docinfo.internalDTD is not None:
        # no program writes entities into a document, and unresolved ones would be left out unsaid
        raise UnreadableSubmission(_DAMAGED, field="file")
    text = "\n".join(_blocks(document.element.body, Numbering.of(document)))
    if not text.replace(PICTURE, "").strip():
        raise UnreadableSubmission(
            "The document holds pictures and no text. Save it as PDF, which is read by text recognition "
            "where that is installed, or type the answers."
            if PICTURE in text
            else "The document has no text in it. Write the answers into it and upload it again.",
            field="file",
        )
    return text


def _check_archive(content: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UnreadableSubmission(
            "The archive is damaged, as after a broken transfer. Save the document once more as .docx or PDF "
            "and upload that file.",
            field="file",
        ) from error
    if len(entries) > MAX_ENTRIES or sum(each.file_size for each in entries) > MAX_EXPANDED_BYTES:
        raise UnreadableSubmission(
            f"The document unpacks to more than {MAX_EXPANDED_BYTES // 1024**2} MiB or "
            f"{MAX_ENTRIES:,} parts. Leave out large pictures, or save it as PDF.",
            field="file",
        )
    if any(each.flag_bits & 1 for each in entries):
        raise UnreadableSubmission(
            "An archive with a password. Upload the document without it.", field="file"
        )
    names = [each.filename for each in entries]
    if any(name.startswith("word/") for name in names):
        return
    for prefix, reason in _OTHERS:
        if any(name.startswith(prefix) for name in names):
            raise UnreadableSubmission(reason, field="file")
    raise UnreadableSubmission(
        "A zip archive. Unpack it and upload each student's file by itself.", field="file"
    )


def _blocks(parent: Any, numbering: "Numbering") -> Iterator[str]:
    for child in parent.iterchildren():
        if child.tag == f"{_W}p":
            yield _paragraph(child, numbering)
            for box in _boxes(child):
                yield from _blocks(box, numbering)
        elif child.tag == f"{_W}tbl":
            yield from _rows(child, numbering)
        elif child.tag in _WRAPPERS:
            yield from _blocks(child, numbering)


def _rows(table: Any, numbering: "Numbering") -> Iterator[str]:
    for row in _through_wrappers(table, f"{_W}tr"):
        cells = ("\n".join(_blocks(cell, numbering)).strip() for cell in _through_wrappers(row, f"{_W}tc"))
        yield " | ".join(cells)


def _through_wrappers(parent: Any, tag: str) -> Iterator[Any]:
    for child in parent.iterchildren():
        if child.tag == tag:
            yield child
        elif child.tag in _WRAPPERS:
            yield from _through_wrappers(child, tag)


def _paragraph(paragraph: Any, numbering: "Numbering") -> str:
    text = "".join(_runs(paragraph))
    return numbering.lead(paragraph) + text if text.strip() else ""


def _runs(element: Any) -> Iterator[str]:
    for child in element.iterchildren():
        if child.tag in _UNSEEN or child.tag in (_FALLBACK, f"{_W}txbxContent"):
            continue
        if child.tag in (f"{_W}t", _MATH_TEXT):
            yield child.text or ""
        elif child.tag in _LITERAL:
            yield _LITERAL[child.tag]
        elif child.tag in (_BLIP, _IMAGE_DATA):
            yield PICTURE
        else:
            yield from _runs(child)


def _boxes(element: Any) -> Iterator[Any]:
    """The outermost text boxes that hang on a paragraph, each once."""
    for child in element.iterchildren():
        if child.tag == f"{_W}txbxContent":
            yield child
        elif child.tag != _FALLBACK and child.tag not in _UNSEEN:
            yield from _boxes(child)


# --- the numbers that Word shows and does not store ---------------------------------------------------


@dataclass(frozen=True)
class _Level:
    format: str
    pattern: str
    start: int


@dataclass
class Numbering:
    """Counts the document's lists along, as Word does."""

    #: list -> its levels' look
    levels: dict[str, dict[int, _Level]] = field(default_factory=dict)
    #: list -> the definition that it counts with
    definitions: dict[str, str] = field(default_factory=dict)
    restarts: dict[str, dict[int, int]] = field(default_factory=dict)
    styles: dict[str, Any] = field(default_factory=dict)
    _counts: dict[str, dict[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Any) -> "Numbering":
        """The document's lists and styles."""
        from docx.opc.constants import RELATIONSHIP_TYPE

        styles = {
            _value(each, "styleId"): each for each in document.styles.element.iterchildren(f"{_W}style")
        }
        numbering = cls(styles=styles)
        try:
            element = document.part.part_related_by(RELATIONSHIP_TYPE.NUMBERING).element
        except (KeyError, AttributeError):
            return numbering
        looks = {
            _value(each, "abstractNumId"): _levels(each) for each in element.iterchildren(f"{_W}abstractNum")
        }
        for each in element.iterchildren(f"{_W}num"):
            list_id, definition = _value(each, "numId"), _value(each.find(f"{_W}abstractNumId"))
            numbering.definitions[list_id] = definition
            numbering.levels[list_id] = looks.get(definition, {})
            numbering.restarts[list_id] = {
                _number(_value(override, "ilvl")): _number(_value(start), 1)
                for override in each.iterchildren(f"{_W}lvlOverride")
                if (start := override.find(f"{_W}startOverride")) is not None
            }
        return numbering

    def lead(self, paragraph: Any) -> str:
        """What stands before a paragraph's text: `# ` for headings, then the list's number."""
        style = _value(paragraph.find(f"{_W}pPr/{_W}pStyle"))
        return self._heading(style) + self._label(paragraph, style)

    def _heading(self, style_id: str) -> str:
        for style in self._ancestry(style_id):
            name = _value(style.find(f"{_W}name")).lower()
            if name.startswith("heading ") and name[8:].isdecimal():
                return "#" * min(int(name[8:]), 6) + " "
        return ""

    def _label(self, paragraph: Any, style_id: str) -> str:
        sources = [paragraph, *self._ancestry(style_id)]
        number = next(
            (each for each in (source.find(f"{_W}pPr/{_W}numPr") for source in sources) if each is not None),
            None,
        )
        if number is None:
            return ""
        list_id, depth = _value(number.find(f"{_W}numId")), _number(_value(number.find(f"{_W}ilvl")))
        level = self.levels.get(list_id, {}).get(depth)
        if level is None or level.format == "none":
            return ""
        return "- " if level.format == "bullet" else self._count(list_id, depth) + " "

    def _count(self, list_id: str, depth: int) -> str:
        levels = self.levels[list_id]
        counts = self._counts.setdefault(self.definitions[list_id], {})
        for restarted, start in self.restarts.pop(list_id, {}).items():
            counts[restarted] = start - 1
        counts[depth] = counts.get(depth, levels[depth].start - 1) + 1
        for deeper in [each for each in counts if each > depth]:
            del counts[deeper]
        label = levels[depth].pattern
        for each, level in levels.items():
            label = label.replace(f"%{each + 1}", _written(counts.get(each, level.start), level.format))
        return label

    def _ancestry(self, style_id: str) -> Iterator[Any]:
        seen: set[str] = set()
        while style_id in self.styles and style_id not in seen:
            seen.add(style_id)
            yield self.styles[style_id]
            style_id = _value(self.styles[style_id].find(f"{_W}basedOn"))


def _levels(definition: Any) -> dict[int, _Level]:
    return {
        _number(_value(each, "ilvl")): _Level(
            _value(each.find(f"{_W}numFmt")) or "decimal",
            _value(each.find(f"{_W}lvlText")),
            _number(_value(each.find(f"{_W}start")), 1),
        )
        for each in definition.iterchildren(f"{_W}lvl")
    }


def _value(element: Any, name: str = "val") -> str:
    return "" if element is None else element.get(f"{_W}{name}") or ""


def _number(text: str, default: int = 0) -> int:
    return int(text) if text.isdecimal() and len(text) < 6 else default


def _written(number: int, format_: str) -> str:
    if format_ in ("lowerLetter", "upperLetter") and 1 <= number <= 26:
        letter = chr(ord("a") + number - 1)
        return letter.upper() if format_ == "upperLetter" else letter
    if format_ in ("lowerRoman", "upperRoman"):
        return _roman(number).lower() if format_ == "lowerRoman" else _roman(number)
    if format_.startswith(("chinese", "taiwanese", "japanese", "ideograph")) and 1 <= number < 100:
        tens, ones = divmod(number, 10)
        digits = "〇一二三四五六七八九"
        return ("" if tens < 2 else digits[tens]) + ("十" if tens else "") + (digits[ones] if ones else "")
    return str(number)


def _roman(number: int) -> str:
    signs = ((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
    written = ""
    for value, sign in signs:
        count, number = divmod(min(number, 89), value)
        written += sign * count
    return written

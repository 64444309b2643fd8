"""PDF: the text layer page by page, and which pages have none. Runs confined."""

from collections.abc import Callable
from typing import Any

from domain.decoding import plausible
from domain.errors import UnreadableSubmission

MAX_PAGES = 300
#: a page takes a second or more
MAX_SCANNED_PAGES = 40

_PASSWORD_ERROR = 4


class ScannedPages(Exception):
    """Pages show something and hold no text: they are pictures of it."""

    def __init__(self, pages: list[int]) -> None:
        super().__init__(pages)
        self.pages = pages


def read_pdf(content: bytes, recognise: Callable[[Any], str] | None = None) -> str:
    """The text of the pages; those without a text layer are given to `recognise`.

    Raises `ScannedPages` where there are such pages and nobody recognises them.
    """
    document = _opened(content)
    if len(document) > MAX_PAGES:
        raise UnreadableSubmission(
            f"The PDF has {len(document):,} pages; at most {MAX_PAGES} are read. Upload the answers alone.",
            field="file",
        )
    texts = [_text(document[number]) for number in range(len(document))]
    scanned = [number for number, text in enumerate(texts) if text is None]
    if scanned and recognise is None:
        raise ScannedPages([number + 1 for number in scanned])
    if len(scanned) > MAX_SCANNED_PAGES:
        raise UnreadableSubmission(
            f"{len(scanned)} pages are pictures of text; at most {MAX_SCANNED_PAGES} are read. "
            "Upload fewer pages, or a PDF with text in it.",
            field="file",
        )
    if recognise is not None:
        for number in scanned:
            texts[number] = recognise(document[number])
    text = "\n".join(each or "" for each in texts)
    if not text.strip():
        raise UnreadableSubmission(
            "All pages of the PDF are blank. Export it once more and look at it before the upload.",
            field="file",
        )
    return text


def _opened(content: bytes) -> Any:
    import pypdfium2  # type: ignore[import-untyped]  # it has no types

    try:
        document = pypdfium2.PdfDocument(content)
        len(document)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD_ERROR:
            raise UnreadableSubmission(
                "A PDF with a password. Print it to a new PDF without one and upload that file.", field="file"
            ) from error
        raise UnreadableSubmission(
            "The PDF is damaged. Save it once more, or print it to a new PDF, and upload that file.",
            field="file",
        ) from error
    return document


def _text(page: Any) -> str | None:
    """The page's text; `None` where it shows something and has none, or one that stands for nothing."""
    text = page.get_textpage().get_text_range()
    # PDFium marks a hyphen at a line's end by what is no character
    text = text.replace("\ufffe\r\n", "").replace("\ufffe", "").replace("\r\n", "\n").replace("\0", "")
    if text.strip() and plausible(text):
        return str(text)
    return None if text.strip() or any(True for _ in page.get_objects(max_depth=2)) else ""

"""Bytes read as text: which encoding a file was written in, or `UnreadableSubmission` where that is doubtful.

Tried in this order: a byte order mark; UTF-8; UTF-16 and UTF-32 without a mark; GB18030 (with GBK) and Big5;
Windows-1252. All but the first two must give plausible text, and no other candidate may: garbage before a
grader is worse than a file that is handed in again.
"""

import codecs
import re
import unicodedata
from collections.abc import Callable

from domain.errors import UnreadableSubmission

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # the mark of UTF-32 begins with the one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_TYPOGRAPHIC = frozenset("‘’“”„‚–—…•·«»‹›€£§°±µ²³¹½¼¾¿¡©®™ª×÷‰†\u00a0\u00ad")
#: real Chinese text is in the common half of its character set for 95 to 100 %, misread text for 40 to 80
_COMMON_SHARE = 0.9
#: so much of a text tells what it is
_PASSAGE = 100_000
_FEW = 4


def decode(content: bytes) -> str:
    """The text of a file, its line ends as `\\n`; raises `UnreadableSubmission` with the way out."""
    if not content.strip():
        raise UnreadableSubmission(
            "The file holds nothing but white space. Write the answers into it and upload it again."
            if content
            else "The file is empty. Save the answers into it and upload it again.",
            field="file",
        )
    text = _decoded(content)
    if "\0" in text:
        raise UnreadableSubmission(
            "A binary file, not text. Save the answers as .docx, .pdf or .txt and upload that file.",
            field="file",
        )
    if not text.strip():
        raise UnreadableSubmission(
            "The file holds nothing but white space. Write the answers into it and upload it again.",
            field="file",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(content: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        return _guessed(content, error.start)
    return _guessed(content, 0) if "\0" in text else text


def _guessed(content: bytes, position: int) -> str:
    candidates = _wide(content) if b"\0" in content else _chinese(content) or _western(content)
    if len(candidates) != 1:
        raise UnreadableSubmission(
            "A binary file, not text. Save the answers as .docx, .pdf or .txt and upload that file."
            if b"\0" in content
            else f"Byte {position} is not UTF-8 text. Save the file as UTF-8 and upload it again.",
            field="file",
        )
    return candidates[0]


def _wide(content: bytes) -> list[str]:
    texts = [text for name in _WIDE if (text := _strict(content, name)) is not None]
    # two bytes are some letter in every encoding; a text has a few, and a line end or a digit among them
    return [text for text in texts if len(text) >= _FEW and re.search(r"[\n -~]", text) and plausible(text)]


def plausible(text: str) -> bool:
    """Whether people write such text: mostly letters and punctuation that are in use, hardly a control."""
    odd = sum(map(_is_odd, text[:_PASSAGE]))
    known = sum(map(_is_usual, text[:_PASSAGE]))
    return odd == 0 and known >= _COMMON_SHARE * len(text[:_PASSAGE])


def _is_odd(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") and character not in "\t\n\r\f\v"


def _is_usual(character: str) -> bool:
    """ASCII, Latin, Greek, Cyrillic, or Chinese with its punctuation."""
    return (character < "\u0530" or "\u2000" <= character < "\u2100" or "\u3000" <= character < "\u3030") or (
        "\u4e00" <= character < "\ua000" or "\uff00" <= character < "\uff60"
    )


def _strict(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _chinese(content: bytes) -> list[str]:
    shares = {"gb18030": _share(content, _is_common_gb), "big5": _share(content, _is_common_big5)}
    texts = [_strict(content, encoding) for encoding, share in shares.items() if share >= _COMMON_SHARE]
    found = [text for text in texts if text is not None and not any(map(_is_odd, text[:_PASSAGE]))]
    return [] if found and _japanese_or_korean(content) else found


#: encoding, its syllables, their least share in a text
_NEIGHBOURS = (("euc_jp", "[\u3040-\u30ff]", 0.2), ("euc_kr", "[\uac00-\ud7a3]", 0.8))


def _japanese_or_korean(content: bytes) -> bool:
    """Whether the bytes are text in their encodings, too, which share ranges with the Chinese ones."""
    for encoding, syllables, share in _NEIGHBOURS:
        text = re.sub(r"[\x00-\x7f]", "", _strict(content, encoding) or "")[:_PASSAGE]
        if text and len(re.findall(syllables, text)) >= share * len(text):
            return True
    return False


_PAIR = re.compile(
    rb"[\x81-\xfe][\x30-\x39][\x81-\xfe][\x30-\x39]|[\x81-\xfe][\x40-\x7e\x80-\xfe]|[\x80-\xff]"
)


def _share(content: bytes, is_common: Callable[[bytes], bool]) -> float:
    """The share of two-byte characters that are common ones."""
    pairs = _PAIR.findall(content[:_PASSAGE])
    return sum(map(is_common, pairs)) / len(pairs) if pairs else 0.0


def _is_common_gb(pair: bytes) -> bool:
    # punctuation and full-width forms, then the 3,755 characters of GB 2312's first level
    return len(pair) == 2 and pair[1] >= 0xA1 and (0xA1 <= pair[0] <= 0xA3 or 0xB0 <= pair[0] <= 0xD7)


def _is_common_big5(pair: bytes) -> bool:
    # punctuation, then the 5,401 characters of Big5's first level
    return len(pair) == 2 and 0xA1 <= pair[0] <= 0xC6 and (pair[1] <= 0x7E or pair[1] >= 0xA1)


_WESTERN_RUN = re.compile(r"[^\x00-\x7f]{3}")


def _western(content: bytes) -> list[str]:
    """Windows-1252, where what is not ASCII stands alone between letters, as accents do."""
    text = _strict(content, "cp1252")
    if text is None or any(map(_is_odd, text)) or _WESTERN_RUN.search(text):
        return []
    foreign = [character for character in text if not character.isascii()]
    usual = all(
        "À" <= character <= "ÿ" or character in _TYPOGRAPHIC or character in "ŒœŠšŽžŸ"
        for character in foreign
    )
    return [text] if usual and len(foreign) <= len(text) / 4 else []

"""An answer as pieces that can be quoted: sentences or lines, verbatim, none too long."""

import re

MAX_PIECE_LENGTH = 300
#: what is read of an answer at most; beyond it the work would grow with the text
MAX_READ_LENGTH = 40_000

_BREAK = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")


def pieces(answer: str) -> list[str]:
    """The answer's sentences and lines in order, each a substring of it of at most 300 characters."""
    found: list[str] = []
    for sentence in _BREAK.split(answer[:MAX_READ_LENGTH]):
        found += _shorten(sentence.strip())
    return found


def _shorten(sentence: str) -> list[str]:
    """The sentence cut at spaces into pieces that are short enough."""
    found = []
    while len(sentence) > MAX_PIECE_LENGTH:
        space = sentence.rfind(" ", MAX_PIECE_LENGTH // 2, MAX_PIECE_LENGTH + 1)
        end = space if space > 0 else MAX_PIECE_LENGTH
        found.append(sentence[:end].strip())
        sentence = sentence[end:].strip()
    return [*found, sentence] if sentence else found

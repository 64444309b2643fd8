"""Messages masked: what differs from line to line as a wildcard, the rest as words and signs between them.

Masking is a function of the message alone: the same one in any log gives the same words.
"""

import re
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import yaml

from domain.logs import WILDCARD

#: more of a message says nothing more about which template it follows
MAX_MASKED_LENGTH = 1_000

#: no pattern asks which digit it is, so that messages which differ in digits only are masked once
_ZEROS = str.maketrans("123456789", "000000000")
#: a code or a name with a number, such as `P0301`, `E12`, `ssh2` or `slot-1`, says what is meant
_NUMBERED_NAME = re.compile(
    r"(?<![\w.:/<>@$-])(?:[A-Z]{1,3}-?0{1,4}|[A-Za-z][A-Za-z_-]{1,30}0{1,2})(?![\w/<>@$-]|\.\w)"
)
#: longer words are data, such as base64; a pattern takes quadratic time in a word's length at worst
_LONG_WORD = re.compile(r"[^\s=:,;()\[\]|\"']{100,}")
_DIGIT = re.compile(r"\d")
_LIST = re.compile(rf"{re.escape(WILDCARD)}(?:(?:, ?| ){re.escape(WILDCARD)})+")
_SEPARATOR = re.compile(r"(\s+|[=:,;()\[\]|\"'])")

#: a quoted string is one word, unless it is what a line in logfmt has to say
_QUOTED = re.compile(r'(?<!msg=)(?<!message=)(?<!error=)(?<!err=)(?<!reason=)"([^"]*)"')
#: control characters stand for the separators within a quoted word
_BOUND = str.maketrans(" =:,;()[]|'", "\x01\x02\x03\x04\x05\x06\x07\x0e\x0f\x10\x11")
_LOOSE = str.maketrans("\x01\x02\x03\x04\x05\x06\x07\x0e\x0f\x10\x11", " =:,;()[]|'")
_BOUND_SIGN = re.compile("[\x01-\x07\x0e-\x11]")

#: of a message, or the signs between them
Words = tuple[str, ...]
#: in a message, start and end of each
Places = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Masked:
    """A message as its words and the signs between them, of which there is one fewer."""

    signs: Words
    words: Words


def text_of(signs: Words, words: Words) -> str:
    """The message that has these words, with these signs between them."""
    return "".join(chain.from_iterable(zip_longest(words, signs, fillvalue=""))).translate(_LOOSE)


@dataclass(frozen=True)
class _Mask:
    within: tuple[str, ...]
    pattern: re.Pattern[str]


def _listed() -> tuple[_Mask, ...]:
    listed = yaml.safe_load(Path(__file__).with_name("masks.yaml").read_text(encoding="utf-8"))
    return tuple(_Mask(tuple(each["within"]), re.compile(each["pattern"])) for each in listed)


_MASKS = _listed()


def without_digits(message: str) -> str:
    """The message with each digit as 0: of the same length, and mostly the same for one template."""
    return message.translate(_ZEROS)


def cut(message: str) -> str:
    """The message, and where it is long what fits of it, to the end of a word."""
    if len(message) <= MAX_MASKED_LENGTH:
        return message
    return message[:MAX_MASKED_LENGTH].rpartition(" ")[0] or message[:MAX_MASKED_LENGTH]


def numbered_names(zeroed: str) -> Places:
    """Where, in a message without digits, names stand whose digits count."""
    return tuple(found.span() for found in _NUMBERED_NAME.finditer(zeroed))


def masked(message: str) -> Masked:
    """The message masked; its digits are zeros except those of names."""
    text = _LONG_WORD.sub(WILDCARD, message)
    for mask in _MASKS:
        if any(each in text for each in mask.within):
            text = mask.pattern.sub(WILDCARD, text)
    if '"' in text:
        text = _QUOTED.sub(lambda found: found[0].translate(_BOUND), text)
    parts = _SEPARATOR.split(text.strip())
    parts[::2] = map(_word, parts[::2])
    parts[1::2] = [" " if sign.isspace() else sign for sign in parts[1::2]]
    merged = _LIST.sub(WILDCARD, "".join(parts))
    parts = _SEPARATOR.split(merged)
    return Masked(tuple(parts[1::2]), tuple(parts[::2]))


def _word(word: str) -> str:
    if _BOUND_SIGN.search(word):
        return word
    if WILDCARD in word:
        return WILDCARD
    return WILDCARD if _DIGIT.search(word) and not _is_name(word) else word


def _is_name(word: str) -> bool:
    return _NUMBERED_NAME.fullmatch(without_digits(word)) is not None

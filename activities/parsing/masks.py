"""Messages masked: what differs from line to line as a wildcard, and the rest as words and punctuation."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from domain.logs import WILDCARD

#: more of a message says nothing more about which template it follows
MAX_MASKED_LENGTH = 1_000
#: longer words are data, such as base64; patterns take quadratic time in a word at worst
_LONG_WORD = re.compile(r"[^\s=:,;()\[\]{}|\"']{100,}")

_ZEROS = str.maketrans("123456789", "000000000")

_SEPARATOR = re.compile(r"(\s+|[=:,;()\[\]|\"'])")
#: a quoted string is one word, unless it is what a line in logfmt has to say
_QUOTED = re.compile(r'(?<!msg=)(?<!message=)(?<!error=)(?<!err=)(?<!reason=)"([^"]*)"')
#: these stand for separators within a quoted word; no log has them, as control characters
_KEPT = str.maketrans(" =:,;()[]|'", "\x01\x02\x03\x04\x05\x06\x07\x0e\x0f\x10\x11")
_FREED = str.maketrans("\x01\x02\x03\x04\x05\x06\x07\x0e\x0f\x10\x11", " =:,;()[]|'")
_KEPT_SIGN = re.compile("[\x01-\x07\x0e-\x11]")

#: a name with a number, such as `ssh2`, `E12` or `eth0`, says what is meant; a longer number is an id
_NUMBERED_NAME = re.compile(r"[A-Za-z][A-Za-z_-]*0{1,2}")
_LIST = re.compile(rf"{re.escape(WILDCARD)}(?:(?:, ?| ){re.escape(WILDCARD)})+")


@dataclass(frozen=True)
class _Mask:
    within: tuple[str, ...]
    pattern: re.Pattern[str]


def _masks() -> tuple[_Mask, ...]:
    listed = yaml.safe_load(Path(__file__).with_name("masks.yaml").read_text(encoding="utf-8"))
    return tuple(_Mask(tuple(each["within"]), re.compile(each["pattern"])) for each in listed)


_MASKS = _masks()

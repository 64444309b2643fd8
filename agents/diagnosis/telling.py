"""The text of a reply while it is written: the words for people in a growing JSON object."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

#: fields that people read, in whichever reply
TOLD_FIELDS = frozenset({"thought", "note", "title", "explanation", "summary"})

_ESCAPES = {"n": "\n", "t": "\t", "r": "", "b": "", "f": "", '"': '"', "\\": "\\", "/": "/"}
_HIGH_SURROGATES, _LOW_SURROGATES = range(0xD800, 0xDC00), range(0xDC00, 0xE000)
_SENTENCE = re.compile(r".+?(?:[.!?。！？](?=\s)|\n+|\Z)\s*", re.DOTALL)


class Telling:
    """Hears a reply piece by piece and tells those of its texts that are for people."""

    def __init__(self, on_delta: Callable[[str], None], fields: Collection[str] = TOLD_FIELDS) -> None:
        self._on_delta = on_delta
        self._fields = fields
        self._key = ""
        self._string: list[str] | None = None
        self._last = ""
        self._awaits_value = False
        self._escape = ""
        self._high = 0
        self.told = False

    async def hear(self, choices: Sequence[Mapping[str, Any]]) -> None:
        """A chunk of a streamed reply, as OpenAI's protocol has it."""
        for choice in choices:
            self.feed(str((choice.get("delta") or {}).get("content") or ""))

    def feed(self, text: str) -> None:
        """The next characters of the reply."""
        said = "".join(map(self._take, text))
        if said:
            self.told = True
            self._on_delta(said)

    def _take(self, character: str) -> str:
        """What the character adds to the text for people."""
        if self._string is None:
            self._structure(character)
            return ""
        if self._escape:
            return self._say(self._unescaped(character))
        if character == "\\":
            self._escape = character
            return ""
        return self._ended() if character == '"' else self._say(character)

    def _structure(self, character: str) -> None:
        if character == '"':
            self._string = []
        elif character == ":":
            self._key, self._awaits_value = self._last, True
        elif character in ",{}[]":
            self._awaits_value = False

    def _ended(self) -> str:
        assert self._string is not None
        told = self._is_told and bool(self._string)
        self._last, self._string, self._awaits_value = "".join(self._string), None, False
        return "\n" if told else ""

    def _say(self, text: str) -> str:
        assert self._string is not None
        self._string.append(text)
        return text if self._is_told else ""

    @property
    def _is_told(self) -> bool:
        return self._awaits_value and self._key in self._fields

    def _unescaped(self, character: str) -> str:
        if self._escape == "\\" and character != "u":
            self._escape = ""
            return _ESCAPES.get(character, "")
        self._escape += character
        if len(self._escape) < len("\\u0000"):
            return ""
        code, self._escape = _code(self._escape[2:]), ""
        return self._paired(code)

    def _paired(self, code: int) -> str:
        """The character of a code, or of a pair of them; half a pair is none."""
        high, self._high = self._high, code if code in _HIGH_SURROGATES else 0
        if code in _LOW_SURROGATES:
            return chr(0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)) if high else ""
        return "" if self._high or not code else chr(code)


def _code(digits: str) -> int:
    try:
        return int(digits, 16)
    except ValueError:
        return 0


def tell_whole(text: str, on_delta: Callable[[str], None]) -> None:
    """Tell a reply that came in one piece, sentence by sentence."""
    said: list[str] = []
    Telling(said.append).feed(text)
    for sentence in _SENTENCE.findall("".join(said)):
        on_delta(sentence)

"""Fields of a handed-in document, read one by one: a mistake is noted with its path, and reading goes on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, TypeVar

from domain.identity import is_segment

#: whoever has more of them reads no further
MAX_MISTAKES = 100
MAX_TEXT_LENGTH = 20_000
MAX_ID_LENGTH = 50
#: integers beyond it are exact neither in JSON nor in a float; NaN and infinity fail the comparison too
MAX_NUMBER = 2**53
#: what JSON's escapes can write and neither UTF-8 nor Postgres takes: NUL and halves of characters
NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
#: what stands for a number that could not be read: no comparison with it holds, so no mistake follows
UNREAD = float("nan")

_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True)
class Mistake:
    """What is wrong at one place of a document, and the way out; line and column count from 1."""

    #: such as `questions[0].points`; empty for the document as a whole
    path: str
    reason: str
    remedy: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return f"{self.path or 'exam'}: {self.reason}. {self.remedy}"


class WrittenNumber(float):
    """A number that remembers how it was written: `3.10` is a version, too."""

    source: str

    def __new__(cls, source: str) -> "WrittenNumber":
        """The number that the text writes; `ValueError` if it writes none."""
        number = super().__new__(cls, source)
        number.source = source
        return number


def path_of(where: str, name: str | int) -> str:
    """The path of a field of a mapping, or of an entry of a list."""
    if isinstance(name, int):
        return f"{where}[{name}]"
    return f"{where}.{name}" if where else name


@dataclass(frozen=True)
class Section:
    """A mapping of the document, with the path to it and the mistakes found so far.

    What cannot be read is noted and answered as "", `UNREAD`, `None` or (): nothing of it may be used.
    """

    content: Mapping[Any, Any]
    where: str = ""
    mistakes: list[Mistake] = field(default_factory=list)
    #: a value for each field, for the remedy where it is missing
    samples: Mapping[str, str] = field(default_factory=dict)

    def note(self, name: str, reason: str, remedy: str) -> None:
        """Note a mistake at a field."""
        self._note_at(path_of(self.where, name), reason, remedy)

    def _note_at(self, path: str, reason: str, remedy: str) -> None:
        if len(self.mistakes) < MAX_MISTAKES:
            self.mistakes.append(Mistake(path, reason, remedy))

    def allow(self, *names: str, elsewhere: Mapping[str, str] | None = None) -> None:
        """Note every other field; `elsewhere` has the remedies for names that other sections know."""
        for name in self.content:
            if name in names:
                continue
            if elsewhere and name in elsewhere:
                self.note(name, "does not belong here", elsewhere[name])
            else:
                shown = name if isinstance(name, str) and name and name.isprintable() else repr(name)
                self.note(shown[:80], "unknown field", _nearest(shown, names))

    def text(self, name: str, *, default: str | None = None, at_most: int = MAX_TEXT_LENGTH) -> str:
        """The text without the space around it; a number is text as it is written."""
        if name not in self.content:
            if default is None:
                self._note_missing(name)
            return default or ""
        return self._plain(name, self.content[name], at_most, empty=default is not None)

    def texts(self, name: str, *, at_most: int) -> tuple[str, ...]:
        """A list of texts, none of them empty; () where there is none."""
        values = self._list(name, at_least=0, at_most=at_most)
        return tuple(
            self._plain(f"{name}[{index}]", each, MAX_TEXT_LENGTH) for index, each in enumerate(values)
        )

    def _plain(self, name: str, value: object, at_most: int, *, empty: bool = False) -> str:
        if isinstance(value, bool):
            self.note(name, f"{_shown(value)} is a truth value, not text", 'Put it in quotes: "true".')
            return ""
        if isinstance(value, (int, float)) and not abs(value) <= MAX_NUMBER:
            self.note(name, "a number that cannot be kept exactly", "Put it in quotes, so that it is text.")
            return ""
        if value is None:
            self.note(name, "nothing is written here", self._sample(name, "Write"))
            return ""
        if not isinstance(value, (str, int, float)):
            self.note(name, f"expected text, got {_kind(value)}", "Write one text; quotes may be around it.")
            return ""
        text = str(getattr(value, "source", value))
        if not self._is_storable(name, text, at_most):
            return ""
        if not text.strip() and not empty:
            self.note(name, "must not be empty", self._sample(name, "Write"))
        return text.strip()

    def _is_storable(self, name: str, text: str, at_most: int) -> bool:
        if NO_CHARACTER.search(text):
            self.note(
                name, "holds a NUL or half a character, which is no text", "Remove the escape that writes it."
            )
            return False
        if len(text) > at_most:
            self.note(name, f"{len(text):,} characters; the limit is {at_most:,}", "Shorten it.")
            return False
        return True

    def identifier(self, name: str) -> str:
        """A short text that may stand in a path."""
        text = self.text(name, at_most=MAX_ID_LENGTH)
        if text and not is_segment(text):
            self.note(name, f"{text!r} is no id", "Use letters a to z, digits, '_', '-' and '.', such as q1.")
            return ""
        return text

    def choice(self, name: str, options: type[_Choice]) -> _Choice | None:
        """One of the enumeration's values."""
        text = self.text(name, at_most=MAX_ID_LENGTH)
        try:
            return options(self.content[name]) if text else None
        except ValueError:
            self.note(name, f"{text!r} is not one of them", _nearest(text, tuple(options)))
            return None

    def number(
        self, name: str, *, above: float | None = None, at_least: float = 0.0, at_most: float
    ) -> float:
        """A finite number within its bounds."""
        if name not in self.content:
            self._note_missing(name)
            return UNREAD
        value = self.content[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            remedy = f"Write digits without quotes or leading zeros, such as {self.samples.get(name, '1')}."
            self.note(name, f"expected a number, got {_kind(value)}", remedy)
            return UNREAD
        lowest = f"more than {above:g}" if above is not None else f"at least {at_least:g}"
        too_low = value < at_least or (above is not None and value <= above)
        if too_low or value > at_most:
            bounds = lowest if at_most == MAX_NUMBER else f"{lowest} and at most {at_most:g}"
            broken = lowest if too_low else f"at most {at_most:g}"
            self.note(name, f"must be {broken}", f"Write a number of {bounds}.")
            return UNREAD
        # the sum turns -0.0 into 0.0: no store keeps the sign, and a hash would tell them apart
        return float(value) + 0.0

    def section(self, name: str) -> "Section | None":
        """The mapping at a field that is there."""
        return self.mapping(path_of(self.where, name), self.content[name])

    def sections(self, name: str, *, at_least: int, at_most: int) -> "Iterator[Section]":
        """The mappings in a list; entries that are none are noted and left out."""
        values = self._list(name, at_least=at_least, at_most=at_most)
        for index, each in enumerate(values):
            if (entry := self.mapping(path_of(path_of(self.where, name), index), each)) is not None:
                yield entry

    def mapping(self, path: str, value: object) -> "Section | None":
        """The value as a mapping with that path."""
        if isinstance(value, Mapping):
            return Section(value, path, self.mistakes, self.samples)
        self._note_at(
            path, f"expected fields with values, got {_kind(value)}", "Write `name: value` for each field."
        )
        return None

    def _list(self, name: str, *, at_least: int, at_most: int) -> Sequence[Any]:
        if name not in self.content:
            if at_least:
                self._note_missing(name)
            return ()
        value = self.content[name]
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            self.note(name, f"expected a list, got {_kind(value)}", "Begin each entry with `- `, or use [ ].")
            return ()
        if not at_least <= len(value) <= at_most:
            self.note(
                name,
                f"has {len(value)} entries; between {at_least} and {at_most} are possible",
                f"Write {at_most} at most." if value else "Add one.",
            )
            return ()
        return value

    def _note_missing(self, name: str) -> None:
        self.note(name, "required, and missing", self._sample(name, "Add"))

    def _sample(self, name: str, verb: str) -> str:
        sample = self.samples.get(name)
        return f"{verb} it, such as `{name}: {sample}`." if sample else f"{verb} it, or leave the entry out."

    def refuse_repeats(self, name: str, ids: Sequence[str]) -> None:
        """Note ids that are there twice; letter case does not make two of one."""
        first: dict[str, int] = {}
        for index, each in enumerate(ids):
            before = first.setdefault(each.casefold(), index)
            if each and before != index:
                self.note(
                    f"{name}[{index}].id",
                    f"{each!r} is the id of {name}[{before}] already",
                    "Give each an id of its own; letter case does not tell ids apart.",
                )


def top_section(document: object, samples: Mapping[str, str]) -> tuple[Section | None, list[Mistake]]:
    """The document's outermost mapping, and where its mistakes are going to be."""
    mistakes: list[Mistake] = []
    section = Section({}, "", mistakes, samples)
    return section.mapping("", document), mistakes


def _nearest(name: str, names: Sequence[str]) -> str:
    nearest = get_close_matches(name.casefold(), names, n=1, cutoff=0.7)
    known = ", ".join(names)
    return f"Did you mean {str(nearest[0])!r}? Known here: {known}." if nearest else f"Known here: {known}."


_KINDS: Mapping[type, str] = {
    str: "the text",
    bool: "the truth value",
    int: "the number",
    float: "the number",
}


def _kind(value: object) -> str:
    """What was found, in a reader's words."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "fields with values"
    if isinstance(value, (list, tuple)):
        return "a list"
    kind = next((name for type_, name in _KINDS.items() if isinstance(value, type_)), type(value).__name__)
    return f"{kind} {_shown(value)}"


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return "beyond 2^53"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 40 else shown[:39] + "…"

"""Exams as text: YAML or JSON read into a document that knows the line of every field.

YAML is read as its version 1.2 has it, for what people write is then what they get: `yes`, `2024-05-01`,
`007` and `12:30` are texts, `3.10` stays `3.10`, and only `true`, `false`, `null` and decimal numbers are
more than text.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal, TypeAlias

import yaml

from domain.errors import InvalidExam
from domain.exam import Exam, check_exam, read_exam
from domain.fields import MAX_MISTAKES, Mistake, WrittenNumber, path_of

#: an exam needs five levels; what goes deeper is meant to exhaust a stack
MAX_DEPTH = 30
#: values of one file; 100,000 of them take a second
MAX_VALUES = 300_000
#: longer numbers are not made integers: that takes time in the square of their length
MAX_INTEGER_LENGTH = 16

Format: TypeAlias = Literal["yaml", "json"]
#: line and column, from 1
Place: TypeAlias = tuple[int, int]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_ENDLESS = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")


@dataclass(frozen=True)
class ExamDocument:
    """A document with the place of each of its fields, by path, and the mistakes of its writing."""

    value: object
    lines: tuple[str, ...]
    places: Mapping[str, Place] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    #: whether the text is YAML or JSON at all; where not, its one mistake says why
    readable: bool = True

    def check(self) -> tuple[Mistake, ...]:
        """Every mistake with its line, in the order of the lines; none if it is an exam."""
        if not self.readable:
            return self.mistakes
        written = {mistake.path for mistake in self.mistakes}
        # what could not be read is not "missing", too
        others = [each for each in check_exam(self.value) if each.path not in written]
        located = [*self.mistakes, *map(self.located, others)]
        return tuple(sorted(located, key=lambda each: (each.line or 0, each.column or 0))[:MAX_MISTAKES])

    def exam(self) -> Exam:
        """The exam; raises `InvalidExam` with every mistake."""
        if mistakes := self.check():
            raise InvalidExam.of(mistakes)
        return read_exam(self.value)

    def located(self, mistake: Mistake) -> Mistake:
        """The mistake with its line, or that of what it is missing from."""
        path = mistake.path
        while path and path not in self.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        line, column = self.places.get(path, (1, 1) if self.places or not path else (None, None))
        return replace(mistake, line=line, column=column)


def read_document(content: bytes, format_: Format) -> ExamDocument:
    """The document in a file's content; whatever is wrong with it stands in `mistakes`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        remedy = "Save the file as UTF-8."
        return _unreadable((), Mistake("", "this is not UTF-8 text", remedy, line, None))
    lines = tuple(_BREAK.split(text))
    try:
        return _from_json(text, lines) if format_ == "json" else _from_yaml(text, lines)
    except _Unreadable as error:
        return _unreadable(lines, error.mistake)


class _Unreadable(Exception):
    """The text ends being YAML or JSON at this mistake."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(mistake)
        self.mistake = mistake


def _unreadable(lines: tuple[str, ...], mistake: Mistake) -> ExamDocument:
    return ExamDocument(None, lines, mistakes=(mistake,), readable=False)


# --- YAML ------------------------------------------------------------------------------------------


def _from_yaml(text: str, lines: tuple[str, ...]) -> ExamDocument:
    try:
        building = _Building(yaml.parse(text, Loader=_Loader))
        value = building.document()
    except yaml.MarkedYAMLError as error:
        raise _Unreadable(_explained(error, lines)) from error
    except yaml.reader.ReaderError as error:
        raise _Unreadable(_controlled(text)) from error
    return ExamDocument(value, lines, building.places, tuple(building.mistakes))


def _controlled(text: str) -> Mistake:
    """The mistake of a character that YAML does not take; the parser counts its place in bytes."""
    found = _CONTROL.search(text)
    shown, position = (f" U+{ord(found[0]):04X}", found.start()) if found else ("", 0)
    line = len(_BREAK.findall(text, 0, position)) + 1
    return Mistake("", f"holds the control character{shown}", "Delete it, or type the text anew.", line)


class _Building:
    """A document made from YAML's events, in one pass: no alias is followed, and no tag makes an object."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self.places: dict[str, Place] = {}
        self.mistakes: list[Mistake] = []
        self._values = 0

    def document(self) -> object:
        """The value of the only document; `None` if there is none."""
        value: object = None
        documents = 0
        for event in self._events:
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                remedy = "Remove the line `---`, or keep the other exam in a file of its own."
                raise _Unreadable(Mistake("", "a second document begins here", remedy, *_place(event)))
            if isinstance(event, yaml.NodeEvent):
                value = self._value(event, "", 0)
        return value

    def _value(self, event: yaml.Event, path: str, depth: int) -> object:
        self._bound(event, depth)
        if isinstance(event, yaml.AliasEvent):
            self._note(path, "aliases (*name) are not followed", "Write the value out.", event)
            return None
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(path, depth)
        return self._mapping(path, depth)

    def _bound(self, event: yaml.Event, depth: int) -> None:
        self._values += 1
        if depth > MAX_DEPTH:
            remedy = "An exam needs five; close what is open."
            raise _Unreadable(Mistake("", f"nested deeper than {MAX_DEPTH} levels", remedy, *_place(event)))
        if self._values > MAX_VALUES:
            remedy = "Split the exam into several."
            raise _Unreadable(Mistake("", f"more than {MAX_VALUES:,} values", remedy, *_place(event)))

    def _scalar(self, event: yaml.ScalarEvent, path: str) -> object:
        if event.tag not in _TEXT_TAGS:
            self._note(path, *_TAG, event)
            return None
        return _plain_value(event.value) if event.implicit[0] else event.value

    def _list(self, path: str, depth: int) -> list[object]:
        values: list[object] = []
        for index in count():
            event = next(self._events)
            if isinstance(event, yaml.SequenceEndEvent):
                break
            entry = path_of(path, index)
            self.places[entry] = _place(event)
            values.append(self._value(event, entry, depth + 1))
        return values

    def _mapping(self, path: str, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._name(event, path, depth)
            entry = path_of(path, name)
            if name in values:
                line, _ = self.places[entry]
                reason = f"is there twice; the first is in line {line}"
                self._note(entry, reason, "Keep one of the two.", event)
            self.places[entry] = _place(event)
            values[name] = self._value(next(self._events), entry, depth + 1)
        return values

    def _name(self, event: yaml.Event, path: str, depth: int) -> str:
        if isinstance(event, yaml.ScalarEvent):
            return str(event.value)
        self._value(event, path, depth + 1)
        self._note(path_of(path, "?"), "a field's name must be text", "Write `name: value`.", event)
        return "?"

    def _note(self, path: str, reason: str, remedy: str, event: yaml.Event) -> None:
        if len(self.mistakes) < MAX_MISTAKES:
            self.mistakes.append(Mistake(path, reason, remedy, *_place(event)))


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _plain_value(text: str) -> object:
    """What a YAML 1.2 scalar without quotes stands for."""
    if text in _WORDS:
        return _WORDS[text]
    if _FLOAT.fullmatch(text):
        return _number(text)
    return float(text.replace(".", "")) if _ENDLESS.fullmatch(text) else text


def _number(text: str) -> int | float:
    if _INTEGER.fullmatch(text) and len(text) <= MAX_INTEGER_LENGTH and str(int(text)) == text:
        return int(text)
    return WrittenNumber(text)


#: libyaml's words, what they mean to somebody who writes an exam, and the way out
_YAML_REASONS: Mapping[str, tuple[str, str]] = {
    "mapping values are not allowed": (
        "a field begins where none can: a line above is not finished, or this one is indented too far",
        "Begin it in the same column as its siblings.",
    ),
    "did not find expected key": (
        "this line is indented as none of the lines above it",
        "Begin all fields of one question in the same column.",
    ),
    "did not find expected '-' indicator": (
        "this line is no entry of the list above, and not indented under one",
        "Begin an entry with `- `, and all of its fields in one column.",
    ),
    "found unexpected end of stream": ("a quote is opened here and never closed", "Close it."),
    "found unknown escape character": (
        "a backslash between double quotes means something else",
        "Write it twice, or use single quotes.",
    ),
    "did not find expected ',' or ']'": (
        "the bracket [ is not closed, or a comma is missing",
        "Close it with ], or put a comma between the entries.",
    ),
    "did not find expected ',' or '}'": (
        "the brace { is not closed, or a comma is missing",
        "Close it with }, or put a comma between the fields.",
    ),
    "could not find expected ':'": (
        "a line without a colon",
        "Write `name: value`; a text of several lines begins with | after its colon, and is indented.",
    ),
    "did not find expected comment or line break": (
        "text stands right behind | or >",
        "Begin it on the next line, indented.",
    ),
    "block sequence entries are not allowed": (
        "a list begins where none can",
        "Begin it on the next line, or put a text that begins with `- ` in quotes.",
    ),
    "did not find expected <document start>": (
        "this line is indented less than the first one",
        "Begin the outermost fields in the first column.",
    ),
}
_SECOND_COLON = (
    "a second `: ` in one line",
    'Put the text in quotes, such as prompt: "Explain: why".',
)
_BEHIND_QUOTE = (
    "text goes on behind the closing quote",
    "Put all of it between the quotes; a quote within is written twice in single quotes.",
)
_TAG = ("tags (!name) are not read", "Write the value without it, or in quotes if ! belongs to it.")
_TAB = ("a tab stands where YAML wants spaces", "Indent with spaces alone.")
_BAD_START = ("no text can begin with {shown} here", "Put the text in quotes.")


def _explained(error: yaml.MarkedYAMLError, lines: tuple[str, ...]) -> Mistake:
    """The parser's complaint in plain words, at the line to be mended."""
    problem = error.problem or error.context or "no YAML"
    mark = error.problem_mark or error.context_mark
    # what was begun and never ended is to be mended where it begins
    if any(each in problem for each in ("end of stream", "or ']'", "or '}'", "expected ':'")):
        mark = error.context_mark or mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    before, behind = _halves(lines, line, column)
    known = (words for part, words in _YAML_REASONS.items() if part in problem)
    reason, remedy = _by_position(problem, before, behind) or next(
        known, (problem, "Put the value in quotes if it is text.")
    )
    return Mistake("", reason, remedy, line, column)


def _halves(lines: tuple[str, ...], line: int, column: int) -> tuple[str, str]:
    text = lines[line - 1] if line <= len(lines) else ""
    return text[: column - 1], text[column - 1 :]


def _by_position(problem: str, before: str, behind: str) -> tuple[str, str] | None:
    """What only the characters around the place tell."""
    if "mapping values" in problem and ": " in before:
        return _SECOND_COLON
    if "expected key" in problem and re.search(r""": *(['"]).*\1 *$""", before):
        return _BEHIND_QUOTE
    if "tag" in problem:
        return _TAG
    if "cannot start any token" in problem or "tab character" in problem:
        return (
            _TAB
            if behind.startswith("\t") or "tab" in problem
            else (_BAD_START[0].format(shown=behind[:1]), _BAD_START[1])
        )
    return None


# --- JSON ------------------------------------------------------------------------------------------


def _from_json(text: str, lines: tuple[str, ...]) -> ExamDocument:
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number)
    except json.JSONDecodeError as error:
        raise _Unreadable(_explained_json(error)) from error
    except RecursionError:
        # reading the places ends at a much smaller depth, and names it
        value = None
    building = _Building(yaml.parse(_as_yaml(text), Loader=_Loader))
    try:
        building.document()
    except yaml.YAMLError:
        # JSON is not YAML in every corner: then there are no lines, and twins are not found
        return ExamDocument(value, lines)
    return ExamDocument(value, lines, building.places, tuple(building.mistakes))


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_NO_YAML = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


def _as_yaml(text: str) -> str:
    """JSON of the same length that YAML's parser takes, to learn the places of its fields from."""
    return _NO_YAML.sub("?", _SURROGATE.sub(r"\\u003f", text))


_JSON_REASONS: Mapping[str, tuple[str, str]] = {
    "Expecting property name": (
        "a field's name in double quotes is expected here",
        'Write "name": value.',
    ),
    "Expecting ',' delimiter": ("a comma is missing before this", "Put a comma behind the entry above."),
    "Expecting ':' delimiter": ("a colon is missing before this", 'Write "name": value.'),
    "Expecting value": (
        "no value of JSON stands here",
        "Put text in double quotes; the words are true, false and null.",
    ),
    "Invalid control character": (
        "a text goes over the end of the line, or holds a tab",
        "Write \\n or \\t instead, or close the quote.",
    ),
    "Unterminated string": ("a quote is opened here and never closed", "Close it."),
    "Invalid \\": ("a backslash that is no escape", "Write it twice."),
    "Extra data": ("something follows the end of the exam", "Keep one { } in the file."),
}
_TRAILING_COMMA = ("a comma behind the last entry", "Remove it.")


def _explained_json(error: json.JSONDecodeError) -> Mistake:
    before = error.doc[: error.pos].rstrip()
    if error.doc[error.pos : error.pos + 1] in ("]", "}") and before.endswith(","):
        comma = json.JSONDecodeError(error.msg, error.doc, len(before) - 1)
        return Mistake("", *_TRAILING_COMMA, comma.lineno, comma.colno)
    known = (words for part, words in _JSON_REASONS.items() if error.msg.startswith(part))
    reason, remedy = next(known, (error.msg, "Write it as JSON wants it."))
    return Mistake("", reason, remedy, error.lineno, error.colno)

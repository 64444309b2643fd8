"""Exams: questions, rubrics and criteria, as handed in and as graded against."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NoReturn

from domain.errors import InvalidExam
from domain.identity import is_segment

MAX_QUESTIONS = 200
MAX_CRITERIA = 50
MAX_ACCEPTED = 100
MAX_TEXT_LENGTH = 20_000
MAX_POINTS = 1_000.0
#: beyond it no points and no tolerance make sense; NaN and infinity fail the comparison too
MAX_NUMBER = 1e100
#: what JSON's escapes can write and neither UTF-8 nor Postgres takes: NUL and halves of characters
NO_CHARACTER = re.compile("[\0\ud800-\udfff]")


class QuestionType(StrEnum):
    """What kind of answer a question asks for."""

    EXACT = "exact"
    MULTIPLE_CHOICE = "multiple_choice"
    NUMERIC = "numeric"
    SHORT_ANSWER = "short_answer"
    ESSAY = "essay"
    CODE = "code"

    @property
    def closed(self) -> bool:
        """Whether rules decide the answer and no model is needed."""
        return self in (QuestionType.EXACT, QuestionType.MULTIPLE_CHOICE, QuestionType.NUMERIC)


@dataclass(frozen=True)
class Criterion:
    """One thing that earns points."""

    id: str
    points: float
    description: str


@dataclass(frozen=True)
class GradedExample:
    """An answer that a teacher has marked; models are calibrated by it, students never see it."""

    answer: str
    points: float
    #: points by criterion id, in the rubric's order; empty where only the sum is known
    by_criterion: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Question:
    """One question with its rubric; `points` is the cap on what its criteria add up to.

    `reference`, `guidelines` and `examples` are for graders alone: no student sees them.
    """

    id: str
    type: QuestionType
    prompt: str
    points: float
    criteria: tuple[Criterion, ...]
    answer: str = ""
    accept: tuple[str, ...] = ()
    tolerance: float = 0.0
    unit: str = ""
    reference: str = ""
    #: the text of each choice by its letter, where they do not stand in the prompt
    options: tuple[tuple[str, str], ...] = ()
    guidelines: str = ""
    examples: tuple[GradedExample, ...] = ()

    def rubric_hash(self) -> str:
        """The SHA-256, in hex, of everything that decides this question's marks."""
        document = asdict(self)
        # they came later than the first stored hashes: where they say nothing, the hash stays
        for name in ("options", "guidelines", "examples"):
            if not document[name]:
                del document[name]
        content = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Exam:
    """Questions with one version of their rubrics; never edited in place."""

    title: str
    questions: tuple[Question, ...]
    language: str = "en"
    id: str = ""
    rubric_version: int = 1

    @property
    def max_points(self) -> float:
        """What a perfect submission earns."""
        return round(sum(question.points for question in self.questions), 2)

    def question(self, question_id: str) -> Question:
        """The question of that id; `KeyError` if there is none."""
        for question in self.questions:
            if question.id == question_id:
                return question
        raise KeyError(question_id)


def read_exam(document: object) -> Exam:
    """The exam that a parsed YAML or JSON document describes; `InvalidExam` names the field at fault."""
    top = _Section(document, "")
    top.allow("title", "language", "questions")
    questions = tuple(
        _read_question(section) for section in top.sections("questions", at_most=MAX_QUESTIONS, at_least=1)
    )
    _refuse_repeats([question.id for question in questions], "questions", "id")
    return Exam(
        title=top.text("title", at_most=500),
        language=top.text("language", default="en", at_most=35),
        questions=questions,
    )


def _read_question(section: "_Section") -> Question:
    type_ = section.choice("type", QuestionType)
    section.allow(
        "id",
        "type",
        "prompt",
        "points",
        *(("answer", "accept") if type_.closed else ("reference",)),
        *(("tolerance", "unit") if type_ is QuestionType.NUMERIC else ()),
        "criteria",
    )
    points = section.number("points", above=0, at_most=MAX_POINTS)
    criteria = tuple(
        _read_criterion(each)
        for each in section.sections("criteria", at_most=MAX_CRITERIA, at_least=0 if type_.closed else 1)
    )
    if type_.closed and len(criteria) > 1:
        section.fail("criteria", f"a {type_} question has one criterion at most: it is right or wrong")
    if not criteria:
        criteria = (Criterion("correct", points, "The answer is correct."),)
    _refuse_repeats([criterion.id for criterion in criteria], section.path("criteria"), "id")
    answer = section.text("answer", at_most=MAX_TEXT_LENGTH) if type_.closed else ""
    if type_ is QuestionType.NUMERIC and parse_number(answer) is None:
        section.fail("answer", f"{answer!r} is no number")
    return Question(
        id=section.identifier("id"),
        type=type_,
        prompt=section.text("prompt", at_most=MAX_TEXT_LENGTH),
        points=points,
        criteria=criteria,
        answer=answer,
        accept=section.texts("accept", at_most=MAX_ACCEPTED),
        tolerance=section.number("tolerance", default=0.0, at_least=0),
        unit=section.text("unit", default="", at_most=50),
        reference="" if type_.closed else section.text("reference", at_most=MAX_TEXT_LENGTH),
    )


def _read_criterion(section: "_Section") -> Criterion:
    section.allow("id", "points", "description")
    return Criterion(
        id=section.identifier("id"),
        points=section.number("points", above=0, at_most=MAX_POINTS),
        description=section.text("description", at_most=MAX_TEXT_LENGTH),
    )


def parse_number(text: str) -> float | None:
    """The number that a text states, with a decimal point or comma and thousands apart; `None` if none."""
    compact = text.strip().replace("\u00a0", "").replace(" ", "").replace("−", "-")
    if "," in compact and "." not in compact and compact.count(",") == 1:
        whole, _, fraction = compact.partition(",")
        # 1,500 is a thousand and a half; 1,5 is one and a half
        compact = (
            whole + fraction
            if len(fraction) == 3 and whole.strip("-") not in ("", "0")
            else f"{whole}.{fraction}"
        )
    compact = compact.replace(",", "")
    try:
        number = float(compact)
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None


def _refuse_repeats(values: Sequence[str], where: str, field_name: str) -> None:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            path = f"{where}[{index}].{field_name}"
            raise InvalidExam(f"{path}: {value!r} is there twice; ids are unique.", field=path)
        seen.add(value)


@dataclass(frozen=True)
class _Section:
    """A mapping of the document with the path to it, for messages that name the field."""

    value: Any
    where: str
    content: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.value, Mapping):
            where = self.where or "exam"
            raise InvalidExam(f"{where}: expected a mapping of fields, got {_kind(self.value)}.", field=where)
        object.__setattr__(self, "content", self.value)

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def fail(self, name: str, reason: str) -> NoReturn:
        path = self.path(name)
        raise InvalidExam(f"{path}: {reason}.", field=path)

    def allow(self, *names: str) -> None:
        for name in self.content:
            if name not in names:
                shown = name if isinstance(name, str) and name and name.isprintable() else repr(name)
                self.fail(shown[:80], f"unknown field; known here: {', '.join(names)}")

    def text(self, name: str, *, default: str | None = None, at_most: int) -> str:
        value = self.content.get(name, default)
        if value is None:
            self.fail(name, "required")
        text = self._plain(name, value, at_most)
        if not text and default is None:
            self.fail(name, "must not be empty")
        return text

    def texts(self, name: str, *, at_most: int) -> tuple[str, ...]:
        values = self._list(name, at_least=0, at_most=at_most)
        return tuple(
            self._plain(f"{name}[{index}]", each, MAX_TEXT_LENGTH) for index, each in enumerate(values)
        )

    def _plain(self, name: str, value: object, at_most: int) -> str:
        # YAML reads `answer: 80` as a number and `answer: yes` as a truth value
        if isinstance(value, bool):
            self.fail(name, "YAML reads this as true or false; put it in quotes")
        if not isinstance(value, (str, int, float)):
            self.fail(name, f"expected text, got {_kind(value)}")
        text = str(value).strip()
        if NO_CHARACTER.search(text):
            self.fail(name, "holds a NUL or half a character, which is no text")
        if len(text) > at_most:
            self.fail(name, f"{len(text):,} characters; the limit is {at_most:,}")
        return text

    def identifier(self, name: str) -> str:
        text = self.text(name, at_most=50)
        if not is_segment(text):
            self.fail(name, f"{text!r} is no id; use letters, digits, '_', '-' and '.'")
        return text

    def choice(self, name: str, options: type[QuestionType]) -> QuestionType:
        text = self.text(name, at_most=50)
        try:
            return options(text)
        except ValueError:
            self.fail(name, f"{text!r} is not one of {', '.join(options)}")

    def number(
        self,
        name: str,
        *,
        default: float | None = None,
        above: float | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> float:
        value = self.content.get(name, default)
        if value is None:
            self.fail(name, "required")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MAX_NUMBER:
            self.fail(name, f"expected a number, got {_kind(value)}")
        if above is not None and value <= above:
            self.fail(name, f"must be more than {above:g}")
        if at_least is not None and value < at_least:
            self.fail(name, f"must be at least {at_least:g}")
        if at_most is not None and value > at_most:
            self.fail(name, f"must be at most {at_most:g}")
        return float(value)

    def sections(self, name: str, *, at_least: int, at_most: int) -> "list[_Section]":
        values = self._list(name, at_least=at_least, at_most=at_most)
        return [_Section(each, f"{self.path(name)}[{index}]") for index, each in enumerate(values)]

    def _list(self, name: str, *, at_least: int, at_most: int) -> Sequence[Any]:
        value = self.content.get(name, [])
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            self.fail(name, f"expected a list, got {_kind(value)}")
        if not at_least <= len(value) <= at_most:
            self.fail(name, f"has {len(value)} entries; between {at_least} and {at_most} are possible")
        return value


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]

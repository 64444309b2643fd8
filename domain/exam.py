"""Exams: questions, rubrics and criteria, as handed in and as graded against."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from domain.errors import InvalidExam
from domain.fields import MAX_NUMBER, UNREAD, Mistake, Section, path_of, top_section
from domain.fields import NO_CHARACTER as NO_CHARACTER  # what reads submissions looks for it here

MAX_QUESTIONS = 200
MAX_CRITERIA = 50
MAX_ACCEPTED = 100
MAX_EXAMPLES = 200
MAX_OPTIONS = 26
MAX_TITLE_LENGTH = 500
MAX_LANGUAGE_LENGTH = 35
MAX_UNIT_LENGTH = 50
MAX_POINTS = 1_000.0
#: how a unit can stand behind a number in an answer: one word, or two with a slash
UNIT_PATTERN = r"%|°[CF]?|[€$]|[^\W\d_]+(?:/[^\W\d_]+)?"
#: the letters of a choice: C; A, C; AC
LETTERS_PATTERN = r"[A-Z]+|[A-Za-z](?:[\s,;/&+、]+[A-Za-z])*"
#: a tolerance as a share of the answer: 2%
SHARE_PATTERN = r"([0-9]+(?:\.[0-9]+)?)\s*%"
MAX_SHARE = 100.0

_OPTION = re.compile(r"^\s*\(?(?P<letter>[A-Z])[).:、]\s*(?P<text>\S.*?)\s*$", re.MULTILINE)


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

    def choices(self) -> dict[str, str]:
        """The text of each choice by its letter: those of the prompt's lines, and `options` before them."""
        in_prompt = {each["letter"]: each["text"] for each in _OPTION.finditer(self.prompt)}
        return in_prompt | dict(self.options)

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


#: a value for each field, for the remedy where it is missing, for the schema and for the documents
SAMPLES: Mapping[str, str] = {
    "title": "Networks, midterm",
    "language": "en",
    "questions": "[…]",
    "id": "q1",
    "type": "short_answer",
    "prompt": "Which port does HTTPS use?",
    "points": "2",
    "answer": "443",
    "tolerance": "0.5",
    "unit": "ms",
    "reference": "What a full answer says.",
    "criteria": "[{id: c1, points: 2, description: Names the port.}]",
    "description": "Names the port.",
}
_COMMON = ("id", "type", "prompt", "points", "criteria", "guidelines")
_CLOSED = (*_COMMON, "answer", "accept")
_OPEN = (*_COMMON, "reference", "examples")
#: the fields of a question by its type
FIELDS: Mapping[QuestionType, tuple[str, ...]] = {
    QuestionType.EXACT: _CLOSED,
    QuestionType.MULTIPLE_CHOICE: (*_CLOSED, "options"),
    QuestionType.NUMERIC: (*_CLOSED, "tolerance", "unit"),
    QuestionType.SHORT_ANSWER: _OPEN,
    QuestionType.ESSAY: _OPEN,
    QuestionType.CODE: _OPEN,
}
_RULES_DECIDE = "Remove it: rules decide this type, from `answer`."
_ELSEWHERE = {
    "answer": "Remove it: this type is marked by `criteria`; a model answer goes into `reference`.",
    "accept": "Remove it: this type is marked by `criteria`, not by comparing texts.",
    "options": "Remove it: only multiple_choice has options.",
    "tolerance": "Remove it: only numeric has a tolerance.",
    "unit": "Remove it: only numeric has a unit.",
    "reference": _RULES_DECIDE,
    "examples": _RULES_DECIDE,
}


def read_exam(document: object) -> Exam:
    """The exam that a parsed YAML or JSON document describes; `InvalidExam` has every mistake."""
    exam, mistakes = _read(document)
    if exam is None or mistakes:
        raise InvalidExam.of(mistakes)
    return exam


def check_exam(document: object) -> tuple[Mistake, ...]:
    """Every mistake in a parsed document, up to `MAX_MISTAKES`; none if it is an exam."""
    return tuple(_read(document)[1])


def _read(document: object) -> tuple[Exam | None, list[Mistake]]:
    top, mistakes = top_section(document, SAMPLES)
    if top is None:
        return None, mistakes
    top.allow("title", "language", "questions")
    title = top.text("title", at_most=MAX_TITLE_LENGTH)
    language = top.text("language", default="en", at_most=MAX_LANGUAGE_LENGTH)
    questions = [
        _read_question(each) for each in top.sections("questions", at_least=1, at_most=MAX_QUESTIONS)
    ]
    top.refuse_repeats("questions", [question.id for question in questions])
    return Exam(title=title, questions=tuple(questions), language=language), mistakes


def _read_question(section: Section) -> Question:
    type_ = section.choice("type", QuestionType)
    every = tuple(dict.fromkeys(name for names in FIELDS.values() for name in names))
    section.allow(*(FIELDS[type_] if type_ else every), elsewhere=_ELSEWHERE)
    question = Question(
        id=section.identifier("id"),
        type=type_ or QuestionType.ESSAY,
        prompt=section.text("prompt"),
        points=section.number("points", above=0, at_most=MAX_POINTS),
        criteria=(),
        guidelines=section.text("guidelines", default=""),
    )
    if type_ is None:
        return question
    return _read_closed(section, question) if type_.closed else _read_open(section, question)


def _read_open(section: Section, question: Question) -> Question:
    question = replace(
        question,
        reference=section.text("reference"),
        criteria=_read_criteria(section, question.points, at_least=1, at_most=MAX_CRITERIA),
    )
    examples = section.sections("examples", at_least=0, at_most=MAX_EXAMPLES)
    return replace(question, examples=tuple(_read_example(each, question) for each in examples))


def _read_closed(section: Section, question: Question) -> Question:
    criteria = _read_criteria(section, question.points, at_least=0, at_most=1)
    question = replace(
        question,
        criteria=criteria or (Criterion("correct", question.points, "The answer is correct."),),
        answer=section.text("answer"),
        accept=section.texts("accept", at_most=MAX_ACCEPTED),
    )
    if question.type is QuestionType.MULTIPLE_CHOICE:
        return _read_choice(section, question)
    return _read_numeric(section, question) if question.type is QuestionType.NUMERIC else question


def _read_criteria(section: Section, cap: float, *, at_least: int, at_most: int) -> tuple[Criterion, ...]:
    before = len(section.mistakes)
    entries = section.sections("criteria", at_least=at_least, at_most=at_most)
    criteria = tuple(_read_criterion(each) for each in entries)
    section.refuse_repeats("criteria", [criterion.id for criterion in criteria])
    total = sum(criterion.points for criterion in criteria)
    # a sum is judged only where all of it was read; binary fractions: 0.1 + 0.2 is not 0.3
    if criteria and len(section.mistakes) == before and round(total, 6) < round(cap, 6):
        section.note(
            "criteria",
            f"add up to {total:g} points, but the question has {cap:g}",
            f"Add criteria, or set the question's points to {total:g}: nobody can earn the rest.",
        )
    return criteria


def _read_criterion(section: Section) -> Criterion:
    section.allow("id", "points", "description")
    return Criterion(
        id=section.identifier("id"),
        points=section.number("points", above=0, at_most=MAX_POINTS),
        description=section.text("description"),
    )


def _read_example(section: Section, question: Question) -> GradedExample:
    section.allow("answer", "points")
    answer = section.text("answer")
    if isinstance(section.content.get("points"), Mapping) and (marks := section.section("points")):
        by_criterion = _read_marks(marks, question.criteria)
        total = round(sum(points for _, points in by_criterion), 2)
        return GradedExample(answer, min(question.points, total), by_criterion)
    return GradedExample(answer, section.number("points", at_most=_bound(question.points)))


def _read_marks(section: Section, criteria: tuple[Criterion, ...]) -> tuple[tuple[str, float], ...]:
    """An example's points by criterion, each of them stated."""
    # ids that are there twice or not at all are told at the criteria
    caps = {criterion.id: criterion.points for criterion in criteria if criterion.id}
    section = replace(section, samples=dict.fromkeys(caps, "0"))
    section.allow(*caps)
    return tuple((each, section.number(each, at_most=_bound(cap))) for each, cap in caps.items())


def _bound(points: float) -> float:
    """The most that can be earned; where that could not be read, the most that there is."""
    return points if points == points else MAX_POINTS


def _answers(question: Question) -> Iterator[tuple[str, str]]:
    """The answer and those accepted beside it, each with its place, where there is a text."""
    places = ("answer", *(path_of("accept", index) for index in range(len(question.accept))))
    yield from (pair for pair in zip(places, (question.answer, *question.accept), strict=True) if pair[1])


def _read_choice(section: Section, question: Question) -> Question:
    options = _read_options(section)
    for place, text in _answers(question):
        letters = choice_letters(text)
        if not letters:
            remedy = "Name the letters of the right options, such as C or A, C."
            section.note(place, f"{text[:40]!r} is no choice", remedy)
        elif options and (strange := sorted(letters - dict(options).keys())):
            known = ", ".join(letter for letter, _ in options)
            section.note(place, f"{', '.join(strange)} is not among the options", f"The options are {known}.")
    return replace(question, options=options)


def _read_options(section: Section) -> tuple[tuple[str, str], ...]:
    if "options" not in section.content or (texts := section.section("options")) is None:
        return ()
    if not 2 <= len(texts.content) <= MAX_OPTIONS:
        remedy = f"Write between 2 and {MAX_OPTIONS} of them."
        section.note("options", f"{len(texts.content)} cannot be chosen from", remedy)
    letters = [name for name in texts.content if isinstance(name, str) and re.fullmatch("[A-Z]", name)]
    for name in texts.content:
        if name not in letters:
            texts.note(str(name)[:40], "is no option's letter", "Name the options A, B, C and so on.")
    return tuple((letter, texts.text(letter)) for letter in letters)


def choice_letters(text: str) -> frozenset[str]:
    """The letters that a text such as `C`, `A, C` or `AC` names; none if it is another text."""
    if not re.fullmatch(LETTERS_PATTERN, text.strip()):
        return frozenset()
    return frozenset(re.findall("[A-Z]", text.upper()))


def _read_numeric(section: Section, question: Question) -> Question:
    for place, text in _answers(question):
        if parse_number(text) is None:
            section.note(place, f"{text[:40]!r} is no number", "Write the number alone; `unit` has the unit.")
    unit = section.text("unit", default="", at_most=MAX_UNIT_LENGTH)
    if unit and not re.fullmatch(UNIT_PATTERN, unit):
        remedy = "Use one word, such as ms, m/s or packets, or leave the unit out."
        section.note("unit", f"{unit!r} cannot be found in answers", remedy)
    return replace(question, unit=unit, tolerance=_read_tolerance(section, parse_number(question.answer)))


def _read_tolerance(section: Section, answer: float | None) -> float:
    value = section.content.get("tolerance", 0)
    if not isinstance(value, str):
        return section.number("tolerance", at_most=MAX_NUMBER) if "tolerance" in section.content else 0.0
    share = re.fullmatch(SHARE_PATTERN, value.strip())
    if share is None or float(share[1]) > MAX_SHARE:
        remedy = "Write a number without quotes, such as 0.5, or a share of the answer, such as 2%."
        section.note("tolerance", f"{value[:40]!r} is no tolerance", remedy)
        return UNREAD
    if answer is None:
        return UNREAD
    tolerance = abs(answer) * float(share[1]) / 100
    if not 0 < tolerance <= MAX_NUMBER:
        remedy = "Write the tolerance as a number, such as 0.5."
        section.note("tolerance", f"{value} of {answer:g} is no tolerance", remedy)
    return tolerance


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

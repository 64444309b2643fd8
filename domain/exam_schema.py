"""The JSON Schema of an exam, for editors and for programs that write exams.

Whatever it refuses, `read_exam` refuses, too. The reader alone sees what a schema cannot say: ids that are
there twice (letter case apart), criteria that add up to less than their question, answers that are no number
or not among the options, an example's points against its criteria, a share of nothing as tolerance, NaN, and
halves of characters.
"""

from typing import Any

from domain.exam import (
    FIELDS,
    LETTERS_PATTERN,
    MAX_ACCEPTED,
    MAX_CRITERIA,
    MAX_EXAMPLES,
    MAX_LANGUAGE_LENGTH,
    MAX_OPTIONS,
    MAX_POINTS,
    MAX_QUESTIONS,
    MAX_TITLE_LENGTH,
    MAX_UNIT_LENGTH,
    SHARE_PATTERN,
    QuestionType,
)
from domain.fields import MAX_ID_LENGTH, MAX_NUMBER, MAX_TEXT_LENGTH

SCHEMA_ID = "urn:assay:schema:exam:1"
MEDIA_TYPE = "application/schema+json"

#: where a text is meant, a number is read as it is written
_NUMBER_AS_TEXT = {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}


def _text(description: str, *, at_most: int = MAX_TEXT_LENGTH, pattern: str | None = None) -> dict[str, Any]:
    """A text that is not empty; of a pattern it has to be a text, not a number."""
    text = {"type": "string", "maxLength": at_most, "pattern": pattern or r"^[^\u0000]*\S[^\u0000]*$"}
    return {"description": description, **(text if pattern else {"anyOf": [text, _NUMBER_AS_TEXT]})}


def _optional_text(description: str, *, at_most: int = MAX_TEXT_LENGTH) -> dict[str, Any]:
    text = {"type": "string", "maxLength": at_most, "pattern": r"^[^\u0000]*$"}
    return {"description": description, "anyOf": [text, _NUMBER_AS_TEXT]}


def _id(description: str) -> dict[str, Any]:
    text = {"type": "string", "maxLength": MAX_ID_LENGTH, "pattern": r"^\s*[A-Za-z0-9_.-]+\s*$"}
    return {"description": description, "anyOf": [text, _NUMBER_AS_TEXT]}


def _points(description: str, *, zero: bool = False) -> dict[str, Any]:
    lowest = {"minimum": 0} if zero else {"exclusiveMinimum": 0}
    return {"description": description, "type": "number", **lowest, "maximum": MAX_POINTS}


def _list(description: str, items: dict[str, Any], *, at_least: int = 0, at_most: int) -> dict[str, Any]:
    bounds = {"minItems": at_least, "maxItems": at_most}
    return {"description": description, "type": "array", "items": items, **bounds}


_CHOICE = rf"^\s*({LETTERS_PATTERN})\s*$"
_CRITERION = {
    "type": "object",
    "required": ["id", "points", "description"],
    "additionalProperties": False,
    "properties": {
        "id": _id("The criterion's id, its own within the question."),
        "points": _points("What it earns."),
        "description": _text("What an answer must have to earn it."),
    },
}
_MARKS = {
    "description": "Its points by criterion id, every criterion stated.",
    "type": "object",
    "minProperties": 1,
    "maxProperties": MAX_CRITERIA,
    "additionalProperties": _points("What the answer earned there.", zero=True),
}
_EXAMPLE = {
    "type": "object",
    "required": ["answer", "points"],
    "additionalProperties": False,
    "properties": {
        "answer": _text("What a student wrote."),
        "points": {
            "description": "What the answer earned: in all, or by criterion id.",
            "anyOf": [_points("In all.", zero=True), _MARKS],
        },
    },
}
_QUESTION: dict[str, dict[str, Any]] = {
    "id": _id("The question's id, its own within the exam; students answer under it."),
    "type": {"description": "What kind of answer it asks for."},
    "prompt": _text("What the student reads."),
    "points": _points("What a perfect answer earns; a cap on what its criteria add up to."),
    "criteria": _list("What earns points.", {"$ref": "#/$defs/criterion"}, at_most=MAX_CRITERIA),
    "guidelines": _optional_text("How to mark: for graders, hidden from students."),
    "answer": _text("The right answer; hidden from students."),
    "accept": _list("Answers that are right, too; hidden.", _text("One of them."), at_most=MAX_ACCEPTED),
    "options": {
        "description": "The text of each choice by its letter, where they do not stand in the prompt.",
        "type": "object",
        "minProperties": 2,
        "maxProperties": MAX_OPTIONS,
        "patternProperties": {"^[A-Z]$": _text("The option's text.")},
        "additionalProperties": False,
    },
    "tolerance": {
        "description": "How far a number may be off: a number, or a share of the answer such as 2%.",
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": MAX_NUMBER},
            {"type": "string", "pattern": rf"^\s*{SHARE_PATTERN}\s*$"},
        ],
    },
    "unit": _optional_text("The unit that the result is asked for in.", at_most=MAX_UNIT_LENGTH),
    "reference": _text("A full answer, as a teacher would write it; hidden from students."),
    "examples": _list(
        "Answers that a teacher has marked; hidden from students.",
        {"$ref": "#/$defs/example"},
        at_most=MAX_EXAMPLES,
    ),
}


def _question_of(type_: QuestionType) -> dict[str, Any]:
    """What a question of one type has."""
    fields = {name: _QUESTION[name] for name in FIELDS[type_]} | {"type": {"const": type_.value}}
    required = ["id", "type", "prompt", "points"]
    if type_.closed:
        fields["criteria"] = {**_QUESTION["criteria"], "maxItems": 1}
        required += ["answer"]
    else:
        fields["criteria"] = {**_QUESTION["criteria"], "minItems": 1}
        required += ["reference", "criteria"]
    if type_ is QuestionType.MULTIPLE_CHOICE:
        fields["answer"] = _text(
            "The letters of the right options, such as C or A, C; hidden.", pattern=_CHOICE
        )
        fields["accept"] = {
            **_QUESTION["accept"],
            "items": _text("Letters that are right, too.", pattern=_CHOICE),
        }
    return {"type": "object", "required": required, "additionalProperties": False, "properties": fields}


def exam_schema() -> dict[str, Any]:
    """The schema as a document, under its stable `$id`."""
    by_type = [
        {
            "if": {"properties": {"type": {"const": each.value}}},
            "then": {"$ref": f"#/$defs/{each.value}"},
        }
        for each in QuestionType
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Exam",
        "description": "Questions with what they are marked by, in YAML or JSON.",
        "type": "object",
        "required": ["title", "questions"],
        "additionalProperties": False,
        "properties": {
            "title": _text("The exam's title.", at_most=MAX_TITLE_LENGTH),
            "language": {
                **_optional_text("The language of the answers; en if left out.", at_most=MAX_LANGUAGE_LENGTH),
                "default": "en",
            },
            "questions": _list(
                "In their order.", {"$ref": "#/$defs/question"}, at_least=1, at_most=MAX_QUESTIONS
            ),
        },
        "$defs": {
            "question": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {**_QUESTION["type"], "enum": [each.value for each in QuestionType]}},
                "allOf": by_type,
            },
            **{each.value: _question_of(each) for each in QuestionType},
            "criterion": _CRITERION,
            "example": _EXAMPLE,
        },
    }

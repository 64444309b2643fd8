"""The public data: answers with human scores, as questions with one criterion."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.local.parameters import prompt_hash
from domain.exam import Criterion, Question, QuestionType

#: one word for every blank: the files write them in several ways
_BLANK = re.compile(r"\s*(?:(?:no|empty) (?:submission|response|answer)\.?)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A file of graded answers, and what may be said about it."""

    name: str
    file: str
    origin: str
    licence: str
    score: str

    def share(self, row: dict[str, object]) -> float:
        """The score as a share of what could be had."""
        if self.score == "label":
            return float(row["label"] == "correct")
        return float(str(row[self.score]))


SOURCES = (
    Source(
        "scientsbank",
        "scientsbank_train.jsonl",
        "SemEval-2013 task 7, SciEntsBank training part",
        "CC BY-SA 3.0; only fitted numbers are kept, no text",
        "label",
    ),
    Source(
        "saf_en",
        "saf_en_train.jsonl",
        "SAF, communication networks, English (Filighera et al., ACL 2022)",
        "MIT",
        "score",
    ),
)


@dataclass(frozen=True)
class GradedQuestion:
    """A question with the answers to it and the shares of the points that people gave."""

    source: str
    question: Question
    answers: tuple[str, ...]
    shares: tuple[float, ...]


def read_source(source: Source, folder: Path) -> list[GradedQuestion]:
    """The file's questions; blank answers are left out, for they would make any figure look good."""
    with (folder / source.file).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    grouped: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        if not _BLANK.fullmatch(row["answer"]):
            grouped.setdefault(row["question"], []).append(row)
    return [_question(source, prompt, group) for prompt, group in grouped.items()]


def _question(source: Source, prompt: str, rows: Sequence[dict[str, object]]) -> GradedQuestion:
    references = rows[0]["reference_answers"]
    assert isinstance(references, list)
    question = Question(
        id=str(rows[0]["question_id"]),
        type=QuestionType.SHORT_ANSWER,
        prompt=prompt,
        points=1.0,
        criteria=(Criterion("correct", 1.0, "The answer is correct."),),
        reference="\n".join(references),
    )
    answers = tuple(str(row["answer"]) for row in rows)
    return GradedQuestion(source.name, question, answers, tuple(source.share(row) for row in rows))


def split(questions: Sequence[GradedQuestion]) -> tuple[list[GradedQuestion], list[GradedQuestion]]:
    """One source's questions to fit on and those that stay unseen: every other one by its prompt's hash."""
    order = sorted(questions, key=lambda each: prompt_hash(each.question.prompt))
    return order[::2], order[1::2]

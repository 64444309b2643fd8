"""The demonstration's classes: an exam, the answers handed in, and the marks that its authors gave."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path, PurePath
from typing import Any

import yaml

from domain.exam import Exam, Question, read_exam

NAMES = ("english", "chinese")
MARKED_BY = "the authors of the demonstration; no teacher marked these answers"


@dataclass(frozen=True)
class SchoolClass:
    """One class: `marks` by student and question, `unreadable` files with the code they must fail with."""

    name: str
    folder: Path
    exam: Exam
    marks: Mapping[str, Mapping[str, float]]
    unreadable: Mapping[str, str]
    injections: frozenset[str]

    @property
    def exam_file(self) -> Path:
        """The exam as it is handed in."""
        return self.folder / "exam.yaml"

    @property
    def answer_files(self) -> list[Path]:
        """What the class has handed in: a file a student, and tables with a row a student."""
        return sorted((self.folder / "answers").iterdir())

    @property
    def students(self) -> frozenset[str]:
        """Everybody who has handed something in, readable or not."""
        return frozenset(self.marks) | {student_of(name) for name in self.unreadable}


@contextmanager
def open_classes() -> Iterator[tuple[SchoolClass, ...]]:
    """The classes, as folders on disk for the time of the block."""
    with as_file(files("runtime.demo")) as folder:
        yield tuple(read_class(folder / name) for name in NAMES)


def read_class(folder: Path) -> SchoolClass:
    """The class in a folder of `exam.yaml`, `marks.yaml` and `answers`."""
    exam = read_exam(_document(folder / "exam.yaml"))
    document = _document(folder / "marks.yaml")
    return SchoolClass(
        name=folder.name,
        folder=folder,
        exam=exam,
        marks={student: _points(exam, given) for student, given in document["marks"].items()},
        unreadable=document["unreadable"],
        injections=frozenset(document["injections"]),
    )


def student_of(submission: str) -> str:
    """The student whose submission has that name."""
    return PurePath(submission).stem


def _document(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _points(exam: Exam, given: Mapping[str, float | Sequence[float]]) -> dict[str, float]:
    return {question.id: _points_for(question, given[question.id]) for question in exam.questions}


def _points_for(question: Question, given: float | Sequence[float]) -> float:
    """The question's points; open questions are marked by criterion, in the rubric's order."""
    return float(given) if isinstance(given, (int, float)) else float(sum(given))

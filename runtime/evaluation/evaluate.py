"""`assay evaluate`: from a labelled set to what its marks and a model's have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from domain.errors import AssayError, InvalidExam
from domain.exam import Exam, Question, read_exam
from domain.ports import Models
from runtime.evaluation.labelled import LabelledSet, Reading, read_labelled_set
from runtime.evaluation.measuring import Basis, Evaluation, measure
from runtime.evaluation.questions import (
    Choice,
    MarkedQuestion,
    Plan,
    plan,
    questions_of_exam,
    questions_of_set,
)
from runtime.evaluation.running import Run, grade_answers


class NothingGraded(AssayError):
    """Every answer of an evaluation failed."""

    code = "nothing_graded"


@dataclass(frozen=True)
class Material:
    """A labelled set, read and chosen from: what an evaluation grades, and on what terms."""

    labelled: LabelledSet
    exam: Exam | None
    choice: Choice
    plan: Plan


def read_material(
    data: Path,
    exam: Path | None,
    reading: Reading,
    choice: Choice,
    *,
    maximum: float | None,
    fitted: Callable[[Question], bool],
) -> Material:
    """The set with its questions and the answers to measure; `InvalidInput` says what is wrong with them."""
    labelled = read_labelled_set(data, reading)
    notes: list[str] = []
    against = _read_exam(exam) if exam is not None else None
    if against is not None:
        questions: list[MarkedQuestion] = questions_of_exam(labelled, against, maximum)
    else:
        questions, notes = questions_of_set(labelled, maximum)
    chosen = plan(questions, choice, fitted)
    return Material(labelled, against, choice, Plan(chosen.tasks, (*notes, *chosen.notes)))


def _read_exam(path: Path) -> Exam:
    try:
        return read_exam(yaml.safe_load(path.read_bytes()))
    except yaml.YAMLError as error:
        raise InvalidExam(f"{path.name}: no valid YAML or JSON: {error}.", field="exam") from error


async def evaluate(
    material: Material,
    models: Models,
    *,
    model: str,
    parameters_version: str | None,
    step: float | None,
    resamples: int,
    concurrency: int,
    on_progress: Callable[[Run], None],
) -> Evaluation:
    """Grade and compare; raises `NothingGraded` with the first failure where no answer came through."""
    run = await grade_answers(
        material.plan.tasks, models, model=model, concurrency=concurrency, on_progress=on_progress
    )
    if not run.graded:
        first = run.failures[0] if run.failures else None
        reason = f"{first.code}: {first.message}" if first else "interrupted"
        raise NothingGraded(f"None of {len(material.plan.tasks)} answers was graded. {reason}")
    basis = Basis(
        data=material.labelled.name,
        sha256=material.labelled.sha256,
        exam=material.exam.title if material.exam else None,
        model=model,
        parameters_version=parameters_version,
        seed=material.choice.seed,
        resamples=resamples,
        examples_per_question=material.choice.examples,
        blank_answers=material.labelled.blank,
        chosen_answers=len(material.plan.tasks),
        notes=material.plan.notes,
    )
    return measure(run, basis, step=step)

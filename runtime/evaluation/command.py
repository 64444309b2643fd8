"""`assay evaluate`: its options read, its run shown on the way, its page written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from domain.errors import InvalidInput
from runtime.evaluation.embedded import EMBEDDED_MODEL, parameters_version, was_fitted_on
from runtime.evaluation.evaluate import evaluate, read_material
from runtime.evaluation.labelled import Reading
from runtime.evaluation.measuring import Evaluation
from runtime.evaluation.questions import Choice
from runtime.evaluation.running import Run
from runtime.settings import Settings


@dataclass(frozen=True)
class Options:
    """The command's options, as they were given."""

    data: Path
    exam: Path | None = None
    model: str = EMBEDDED_MODEL
    columns: Sequence[str] = ()
    labels: Sequence[str] = ()
    skipped_answers: Sequence[str] = ()
    maximum: float | None = None
    step: float | None = None
    examples: int = 0
    seed: int = 0
    limit: int | None = None
    pattern: str = "*"
    include_fitted: bool = False
    concurrency: int = 8
    resamples: int = 1000
    html: Path | None = None

    def reading(self) -> Reading:
        """How the set is to be read."""
        return Reading(
            columns=dict(_pair("map", each, "answer=Response") for each in self.columns),
            labels=dict(_worth(each) for given in self.labels for each in given.split(",")),
            skipped_answers=frozenset(self.skipped_answers),
        )

    def choice(self) -> Choice:
        """Which answers are measured."""
        return Choice(self.pattern, self.examples, self.limit, self.seed, self.include_fitted)


async def run_evaluation(options: Options, settings: Settings, console: Console) -> Evaluation:
    """Read, grade and compare; progress goes to the console."""
    _check(options)
    material = read_material(
        options.data,
        options.exam,
        options.reading(),
        options.choice(),
        maximum=options.maximum,
        fitted=partial(was_fitted_on, options.model),
    )
    # all of Temporal comes with it: a set that cannot be read is told without waiting for that
    from runtime.gateway import models

    with _progress(console, len(material.plan.tasks)) as on_progress:
        return await evaluate(
            material,
            models(settings.models),
            model=options.model,
            parameters_version=parameters_version(options.model),
            step=options.step,
            resamples=options.resamples,
            concurrency=options.concurrency,
            on_progress=on_progress,
        )


def write_page(evaluation: Evaluation, path: Path) -> None:
    """Write the evaluation as a page; after it has been shown, so that a full disk costs the page alone."""
    from runtime.evaluation.page import evaluation_page

    try:
        path.write_text(evaluation_page(evaluation), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"--html: {path} cannot be written: {error.strerror}.", field="html") from error


def _check(options: Options) -> None:
    """What must not come out only after everything has been graded and paid for."""
    if options.html is not None and not options.html.parent.is_dir():
        raise InvalidInput(f"--html: there is no folder {options.html.parent}.", field="html")
    for name, value in (("maximum", options.maximum), ("step", options.step)):
        if value is not None and not 0 < value < float("inf"):
            raise InvalidInput(f"--{name}: {value:g} is not above 0.", field=name)


def _pair(option: str, given: str, example: str) -> tuple[str, str]:
    # from the right: a label may hold an equals sign, what follows the last one may not
    name, equals, value = given.rpartition("=")
    if not equals or not name.strip() or not value.strip():
        raise InvalidInput(f"--{option}: {given!r} is no pair such as {example}.", field=option)
    return name.strip(), value.strip()


def _worth(given: str) -> tuple[str, float]:
    label, value = _pair("labels", given, "correct=1")
    try:
        mark = float(value)
    except ValueError as error:
        raise InvalidInput(f"--labels: {value!r} is no mark for {label!r}.", field="labels") from error
    if not 0 <= mark < float("inf"):
        raise InvalidInput(f"--labels: {value} is no mark for {label!r}; marks begin at 0.", field="labels")
    return label, mark


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[Run], None]]:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}"), TimeRemainingColumn())
    with Progress("grading", *columns, console=console, transient=True) as bar:
        task = bar.add_task("grading", total=total, failed="")

        def show(run: Run) -> None:
            failed = f"{len(run.failures)} failed" if run.failures else ""
            bar.update(task, completed=len(run.graded) + len(run.failures), failed=failed)

        yield show

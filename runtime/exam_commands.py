"""`assay exam …`: begin an exam, check it, print its schema. Nothing has to run for that."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from domain.errors import InvalidInput, LimitExceeded
from domain.exam import Exam
from domain.fields import Mistake
from runtime.terminal import terminal

if TYPE_CHECKING:
    from domain.exam_document import ExamDocument

OK, BAD_INPUT = 0, 2
#: as much as the API takes, unless it is set otherwise
MAX_FILE_BYTES = 5 * 1024**2
STARTERS = Path(__file__).parent / "starter"

exam_commands = typer.Typer(
    name="exam",
    help="Begin an exam, check it, print its schema.\n\nExample: assay exam check exam.yaml",
    no_args_is_help=True,
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]


@exam_commands.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The exam, YAML or JSON.", exists=True, dir_okay=False)
    ],
    json_: Json = False,
) -> None:
    """Tell every mistake in an exam, with its line and the way out. Exit code 2 if there is one.

    Example: assay exam check exam.yaml
    """
    document = read_file(file)
    mistakes = document.check()
    exam = None if mistakes else document.exam()
    advice = _advice(document, exam)
    if json_:
        sys.stdout.write(json.dumps(_as_json(exam, mistakes, advice), ensure_ascii=False, indent=2) + "\n")
    else:
        _show(file, document, exam, mistakes, advice)
    raise typer.Exit(BAD_INPUT if mistakes else OK)


@exam_commands.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="What to write; YAML.")] = Path("exam.yaml"),
    language: Annotated[Literal["en", "zh"], typer.Option(help="The language of the starter.")] = "en",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented exam with a question of every type to begin with.

    Example: assay exam new midterm.yaml --language zh
    """
    if file.suffix.lower() == ".json":
        raise InvalidInput(
            f"{file}: the starter has comments, and JSON has none; name it .yaml.", field="file"
        )
    if file.exists() and not force:
        raise InvalidInput(f"{file} is there already; --force replaces it.", field="file")
    if not file.parent.is_dir():
        raise InvalidInput(f"{file.parent} is no folder; make it first.", field="file")
    file.write_text((STARTERS / f"{language}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    terminal().print(f"Wrote {escape(str(file))}. Edit it, then run: assay exam check {escape(str(file))}")


@exam_commands.command()
def schema() -> None:
    """Print the JSON Schema of exams, for editors and programs.

    Example: assay exam schema > exam.schema.json
    """
    from domain.exam_schema import exam_schema

    sys.stdout.write(json.dumps(exam_schema(), indent=2) + "\n")


def read_file(path: Path) -> "ExamDocument":
    """The document in a file, JSON by its name or else YAML; raises `LimitExceeded`."""
    from domain.exam_document import read_document

    if path.stat().st_size > MAX_FILE_BYTES:
        raise LimitExceeded(f"{path} is larger than {MAX_FILE_BYTES:,} bytes; an exam is not.", field="file")
    return read_document(path.read_bytes(), "json" if path.suffix.lower() == ".json" else "yaml")


def _advice(document: "ExamDocument", exam: Exam | None) -> list[Mistake]:
    from domain.exam_advice import advise

    return [document.located(each) for each in advise(exam)] if exam else []


def _as_json(exam: Exam | None, mistakes: Sequence[Mistake], advice: Sequence[Mistake]) -> dict[str, Any]:
    return {
        "valid": not mistakes,
        "mistakes": [_one_as_json(each) for each in mistakes],
        "warnings": [_one_as_json(each) for each in advice],
        **({"questions": len(exam.questions), "max_points": exam.max_points} if exam else {}),
    }


def _one_as_json(mistake: Mistake) -> dict[str, Any]:
    return {
        "field": mistake.path or "exam",
        "line": mistake.line,
        "column": mistake.column,
        "message": mistake.reason,
        "remedy": mistake.remedy,
    }


def _show(
    file: Path,
    document: "ExamDocument",
    exam: Exam | None,
    mistakes: Sequence[Mistake],
    advice: Sequence[Mistake],
) -> None:
    console = terminal()
    for color, found in (("red", mistakes), ("yellow", advice)):
        for each in found:
            console.print(_described(file, document, each, color))
    if exam:
        count = _counted(len(exam.questions), "question")
        points = f"{exam.max_points:g} point{'s' * (exam.max_points != 1)}"
        warned = f" {_counted(len(advice), 'warning')}." if advice else ""
        console.print(f"{escape(str(file))} is a valid exam: {count}, {points}.{warned}")
    else:
        console.print(f"{_counted(len(mistakes), 'mistake')}.")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _described(file: Path, document: "ExamDocument", mistake: Mistake, color: str) -> str:
    """One mistake as compilers show theirs: where, what, the way out, and the line itself."""
    where = f"{file}:{mistake.line}" if mistake.line else str(file)
    field = f"[bold]{escape(mistake.path)}[/bold]: " if mistake.path else ""
    label = "" if color == "red" else "[yellow]warning[/yellow]: "
    reason = f"[{color}]{escape(mistake.reason)}[/{color}]. {escape(mistake.remedy)}"
    return f"{escape(where)}: {label}{field}{reason}" + _excerpt(document.lines, mistake, color)


def _excerpt(lines: Sequence[str], mistake: Mistake, color: str) -> str:
    """The line at fault with a mark under it; wide characters take two columns of a terminal."""
    from rich.cells import cell_len

    if not mistake.line or not mistake.column or mistake.line > len(lines):
        return ""
    text = lines[mistake.line - 1].replace("\t", " ")[:100].rstrip()
    before, marked = text[: mistake.column - 1], text[mistake.column - 1 :]
    number = f"{mistake.line:>5} | "
    mark = " " * cell_len(before) + "^" * max(1, cell_len(marked))
    return f"\n[dim]{number}[/dim]{escape(text)}\n[dim]      | [/dim][{color}]{mark}[/{color}]"

"""Write the generated parts of the documents anew, from the tables that they show.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`; `--check` writes
nothing and tells which documents are out of date.
"""

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from api.errors import STATUSES
from domain import errors, exam, fields
from domain.errors import AssayError
from domain.exam_document import MAX_DEPTH, MAX_VALUES, read_document
from domain.exam_schema import exam_schema
from domain.states import BATCH_MACHINE, FILE_MACHINE

DOCS = Path(__file__).resolve().parent
_BLOCK = re.compile(
    r"(?P<head><!-- generated: (?P<name>[a-z-]+) -->\n)(?P<body>.*?)(?P<tail><!-- end of (?P=name) -->)",
    re.DOTALL,
)


def diagram(mermaid: str) -> str:
    """A state machine as its document shows it."""
    return f"```mermaid\n{mermaid}\n```\n"


def error_codes() -> str:
    """Every condition with its code, its HTTP status and whether trying again may help."""
    rows = ["| code | HTTP | retried | means |", "| --- | ---: | --- | --- |"]
    for each in _conditions():
        means = (each.__doc__ or "").splitlines()[0].replace("|", "\\|")
        rows.append(f"| `{each.code}` | {_status(each)} | {'yes' if each.retryable else 'no'} | {means} |")
    return "\n".join(rows) + "\n"


def _conditions() -> Iterator[type[AssayError]]:
    """The classes of the tree, in the order of its file."""
    for each in vars(errors).values():
        if isinstance(each, type) and issubclass(each, AssayError) and each is not AssayError:
            yield each


def _status(condition: type[AssayError]) -> int:
    return next(STATUSES[each] for each in condition.__mro__ if each in STATUSES)


def broken_submissions() -> str:
    """Every kind of broken file with what is said to it."""
    return str(runpy.run_path(str(DOCS / "broken" / "submissions.py"))["table"]())


def exam_starter() -> str:
    """The exam that `assay exam new` writes."""
    return f"```yaml\n{(DOCS.parent / 'runtime' / 'starter' / 'en.yaml').read_text(encoding='utf-8')}```\n"


def exam_fields() -> str:
    """Every field of a question, with the types that have it."""
    definitions = exam_schema()["$defs"]
    types = definitions["question"]["properties"]["type"]["enum"]
    names = dict.fromkeys(name for each in types for name in definitions[each]["properties"])
    rows = ["| field | of | means |", "| --- | --- | --- |"]
    for name in names:
        having = [each for each in types if name in definitions[each]["properties"]]
        needing = [each for each in having if name in definitions[each]["required"]]
        shown = "all" if having == types else ", ".join(having)
        needed = (
            " (required)" if needing == having else f" (required of {', '.join(needing)})" if needing else ""
        )
        means = definitions[having[0]]["properties"][name].get("description", "One of the six types.")
        rows.append(f"| `{name}` | {shown}{needed} | {means} |")
    return "\n".join(rows) + "\n"


def exam_limits() -> str:
    """How much of everything one exam has."""
    limits = {
        "questions of an exam": exam.MAX_QUESTIONS,
        "criteria of an open question": exam.MAX_CRITERIA,
        "graded examples of a question": exam.MAX_EXAMPLES,
        "answers in `accept`": exam.MAX_ACCEPTED,
        "options": exam.MAX_OPTIONS,
        "points of a question or criterion": int(exam.MAX_POINTS),
        "characters of a text": fields.MAX_TEXT_LENGTH,
        "characters of a title": exam.MAX_TITLE_LENGTH,
        "characters of an id": fields.MAX_ID_LENGTH,
        "characters of a unit": exam.MAX_UNIT_LENGTH,
        "characters of a language": exam.MAX_LANGUAGE_LENGTH,
        "levels of nesting": MAX_DEPTH,
        "values of a file, texts and numbers": MAX_VALUES,
        "mistakes told at once": fields.MAX_MISTAKES,
    }
    rows = ["| limit | |", "| --- | ---: |", *(f"| {name} | {most:,} |" for name, most in limits.items())]
    return "\n".join(rows) + "\n"


def broken_exams() -> str:
    """Every kind of broken exam with what it is told."""
    parts = []
    for kind, examples in runpy.run_path(str(DOCS / "broken" / "exams.py"))["BROKEN"].items():
        rows = [f"### {kind}\n", "| written | told |", "| --- | --- |"]
        for each in examples:
            first = read_document(each.content, each.format).check()[0]
            where = f"line {first.line}" + (f", `{first.path}`" if first.path else "")
            written = " ⏎ ".join(line.strip() for line in (each.shown or each.written).strip().split("\n"))
            told = f"{first.reason}. {first.remedy}"
            rows.append(f"| {_code(written)} | {where}: {_cell(told)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _code(text: str) -> str:
    return f"`` {_cell(text)} ``" if "`" in text else f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def exam_schema_file() -> str:
    """The schema of exams as a file."""
    return json.dumps(exam_schema(), indent=2, ensure_ascii=False) + "\n"


PARTS: Mapping[str, Callable[[], str]] = {
    "batch-machine": lambda: diagram(BATCH_MACHINE.mermaid()),
    "file-machine": lambda: diagram(FILE_MACHINE.mermaid()),
    "error-codes": error_codes,
    "exam-starter": exam_starter,
    "exam-fields": exam_fields,
    "exam-limits": exam_limits,
    "broken-exams": broken_exams,
    "broken-submissions": broken_submissions,
}


#: files that are generated as a whole
FILES: Mapping[str, Callable[[], str]] = {"exam.schema.json": exam_schema_file}


def renewed(text: str) -> str:
    """The document with its generated parts as they are now; `KeyError` for a part that nobody makes."""
    return _BLOCK.sub(lambda block: block["head"] + PARTS[block["name"]]() + block["tail"], text)


def stale(folder: Path = DOCS) -> dict[Path, str]:
    """The documents whose generated parts are out of date, and what they should be."""
    found: dict[Path, str] = {}
    for path in sorted(folder.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (new := renewed(text)) != text:
            found[path] = new
    for name, write in FILES.items():
        path, new = folder / name, write()
        if not path.exists() or path.read_text(encoding="utf-8") != new:
            found[path] = new
    return found


def main(arguments: list[str]) -> int:
    """Write, or with `--check` tell, what is out of date."""
    found = stale()
    for path, text in found.items():
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(DOCS.parent)}\n")
    return int(bool(found) and "--check" in arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

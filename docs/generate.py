"""Write the generated parts of the documents anew, from the tables that they show.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`; `--check` writes
nothing and tells which documents are out of date.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from api.errors import STATUSES
from domain import errors
from domain.errors import AssayError
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


PARTS: Mapping[str, Callable[[], str]] = {
    "batch-machine": lambda: diagram(BATCH_MACHINE.mermaid()),
    "file-machine": lambda: diagram(FILE_MACHINE.mermaid()),
    "error-codes": error_codes,
}


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

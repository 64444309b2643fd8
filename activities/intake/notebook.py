"""Notebooks: the cells of an .ipynb in their order, without what the code printed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from domain.errors import UnreadableSubmission

_DAMAGED = "No notebook that can be read. Open it in Jupyter, save it and upload it again."


def read_notebook(text: str) -> str:
    """The notebook as Markdown: code in fenced blocks, a comment at its head outside, as a heading."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableSubmission(_DAMAGED, field="file") from error
    cells = document.get("cells") if isinstance(document, dict) else None
    if not isinstance(cells, list):
        raise UnreadableSubmission(_DAMAGED, field="file")
    shown = "\n\n".join(_shown(cell) for cell in cells if isinstance(cell, dict))
    if not shown.strip():
        raise UnreadableSubmission(
            "The notebook has no text and no code in it. Save it in Jupyter and upload it again.",
            field="file",
        )
    return shown


def _shown(cell: Mapping[str, Any]) -> str:
    source = _source(cell)
    if cell.get("cell_type") != "code" or not source.strip():
        return source
    return "\n".join(_fenced(source.strip("\n")))


def _source(cell: Mapping[str, Any]) -> str:
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    return source.replace("\r\n", "\n") if isinstance(source, str) else ""


def _fenced(code: str) -> Iterator[str]:
    first, _, rest = code.partition("\n")
    # "# Question 2" at the head of a cell is how code answers are labelled
    if first.startswith("#") and not first.startswith("#!"):
        yield first
        code = rest
    if code.strip():
        fence = "```" if "```" not in code else "~~~~"
        yield from (fence, code, fence)

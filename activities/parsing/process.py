"""A process that parses logs, one after another: tasks on standard input, answers on standard output.

Each is a line of JSON. A task is a `ParseTask`; it is answered by any number of
`{"position": {"bytes", "lines"}}`, and then by `{"figures": …}` or by `{"failure": …}` with code and message.
The process has no event loop that a log could block, takes no more memory than stated, gives way to others
and ends with its parent.
"""

import ctypes
import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import IO, Any, Protocol

from domain.errors import AssayError, Defect, LimitExceeded

_PR_SET_PDEATHSIG = 1
#: below whoever has deadlines: heartbeats, API, databases
_NICENESS = 10
_MESSAGE_LENGTH = 2_000


@dataclass(frozen=True)
class ParseTask:
    """Which object to parse, and where its document goes; `name` is data.

    `written_at`, RFC 3339, is when the log was handed in, for times without a year; if empty, the object's
    own time is taken.
    """

    name: str
    object_key: str
    parsed_key: str
    written_at: str = ""


@dataclass(frozen=True)
class ParsedFigures:
    """What was written; the SHA-256, in hex, is the document's."""

    parsed_sha256: str
    lines: int
    parsed_lines: int
    format: str


class BlockingObjects(Protocol):
    """The object store, as a process without an event loop needs it."""

    def chunks(self, key: str) -> Iterator[bytes]:
        """The object's bytes; raises `NotFound`."""
        ...

    def written_at(self, key: str) -> datetime:
        """When the object was stored; raises `NotFound`."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """Store an object, whole or not at all."""
        ...


def confine(parent_pid: int, memory_bytes: int) -> None:
    """Bind this process to its parent's life and to its memory, and let others go first."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # a parent that died between fork and prctl sends nothing any more
    if os.getppid() != parent_pid:
        raise SystemExit(1)
    # a terminal's Ctrl-C is the parent's to hear
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)


def serve(objects: BlockingObjects) -> None:
    """Answer tasks until the parent closes standard input."""
    # nothing that a library prints may come between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for task in sys.stdin:
        _say(answers, _answer(objects, ParseTask(**json.loads(task)), answers))


def _answer(objects: BlockingObjects, task: ParseTask, answers: IO[str]) -> dict[str, Any]:
    try:
        figures = parse_object(objects, task, lambda position: _say(answers, {"position": position}))
    except AssayError as error:
        return _failure(error)
    except MemoryError:
        return _failure(
            LimitExceeded("Parsing the log takes more memory than a parser has. Split it.", field="file")
        )
    except BrokenPipeError:
        raise  # nobody listens any more
    except Exception as error:  # noqa: BLE001  # what a hostile log makes a library raise is not to be foreseen
        return _failure(Defect(f"{type(error).__name__}: {error}"))
    return {"figures": asdict(figures)}


def parse_object(objects: BlockingObjects, task: ParseTask, tell: Any) -> ParsedFigures:
    """Parse a stored log and store its document; the same object gives the same document."""
    from activities.parsing.parser import parse
    from domain.documents import encode

    written_at = (
        datetime.fromisoformat(task.written_at) if task.written_at else objects.written_at(task.object_key)
    )
    parsed = parse(
        task.name,
        objects.chunks(task.object_key),
        written_at=written_at,
        tell=lambda position: tell(asdict(position)),
    )
    document = encode(parsed)
    objects.write(task.parsed_key, document)
    return ParsedFigures(
        parsed_sha256=hashlib.sha256(document).hexdigest(),
        lines=parsed.lines,
        parsed_lines=parsed.parsed_lines,
        format=parsed.format.value,
    )


def _failure(error: AssayError) -> dict[str, Any]:
    said = {"code": error.code, "message": error.message[:_MESSAGE_LENGTH], "field": error.field}
    return {"failure": said}


def _say(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()

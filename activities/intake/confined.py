"""The child process that reads one document: bytes on standard input, one JSON object on standard output.

Usage: python -I -m activities.intake.confined READER PARENT_PID SECONDS MEMORY_BYTES

Whatever the document does to the libraries that read it ends here: no files, no core, no more memory or time
than stated, and no life beyond the parent's.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from domain.errors import UnreadableSubmission

MAX_TEXT_LENGTH = 2 * 1024**2

_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 128


def confine(parent_pid: int, seconds: int, memory_bytes: int) -> None:
    """Bind this process to its parent's life and to its limits."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # a parent that died between fork and prctl sends nothing any more
    if os.getppid() != parent_pid:
        raise SystemExit(1)
    # the parent kills at `seconds`; these end a child whose parent hangs
    signal.alarm(seconds + 5)
    for limit, value in (
        (resource.RLIMIT_CPU, 4 * seconds),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        resource.setrlimit(limit, (value, value))


def _word(content: bytes) -> str:
    from activities.intake.word import read_word

    return read_word(content)


def _pdf(content: bytes) -> str:
    from activities.intake.pdf import read_pdf

    return read_pdf(content)


def _scan(content: bytes) -> str:
    from activities.intake.ocr import Recogniser
    from activities.intake.pdf import read_pdf

    return read_pdf(content, Recogniser().page)


def _picture(content: bytes) -> str:
    from activities.intake.ocr import Recogniser

    return Recogniser().picture(content)


READERS: dict[str, Callable[[bytes], str]] = {"word": _word, "pdf": _pdf, "scan": _scan, "picture": _picture}


def answer(reader: str, content: bytes) -> dict[str, Any]:
    """`text`, `scanned` pages, `unreadable` with the message, or `failed` with an unforeseen error's name."""
    from activities.intake.pdf import ScannedPages

    try:
        text = READERS[reader](content)
    except UnreadableSubmission as unreadable:
        return {"unreadable": unreadable.message}
    except ScannedPages as scanned:
        return {"scanned": scanned.pages}
    except MemoryError:
        return {"failed": "MemoryError"}
    except Exception as error:  # noqa: BLE001  # what a hostile file makes a library raise is not to be foreseen
        return {"failed": type(error).__name__}
    if len(text) > MAX_TEXT_LENGTH:
        return {
            "unreadable": f"The document has {len(text):,} characters of text; "
            f"at most {MAX_TEXT_LENGTH:,} are read. Upload the answers alone."
        }
    return {"text": text}


def main(arguments: list[str]) -> None:
    """Read standard input as the reader of that name does."""
    reader, parent_pid, seconds, memory_bytes = arguments
    confine(int(parent_pid), int(seconds), int(memory_bytes))
    written = json.dumps(answer(reader, sys.stdin.buffer.read()))
    sys.stdout.write(written)
    sys.stdout.flush()
    # nothing is worth taking down, and PDFium complains of open pages
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The process that parses logs for a worker: gives the parser its object store.

Usage: python -I -m runtime.parser OBJECTS_URL PARENT_PID MEMORY_BYTES
"""

import os
import sys
from collections.abc import Sequence

from activities.parsing.process import confine, serve
from db.objects.blocking import BlockingObjects

#: a window of Zstandard, a log's templates and their document, and the interpreter, several times over
MEMORY_BYTES = 1024**3


def parser_command(objects_url: str) -> Sequence[str]:
    """How a worker starts such a process."""
    return (sys.executable, "-I", "-m", __name__, objects_url, str(os.getpid()), str(MEMORY_BYTES))


def main(arguments: list[str]) -> None:
    """Serve the parent until it ends."""
    objects_url, parent_pid, memory_bytes = arguments
    confine(int(parent_pid), int(memory_bytes))
    serve(BlockingObjects.at(objects_url))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Where commands write: terminals, and pipes, which have no width to fit into."""

import os
import sys

from rich.console import Console

#: whoever reads from a pipe wants whole ids and lines
PIPE_WIDTH = 240


def terminal(*, stderr: bool = False, soft_wrap: bool = True) -> Console:
    """Standard output, or standard error; with `soft_wrap` lines are as long as they are."""
    stream = sys.stderr if stderr else sys.stdout
    fitted = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, highlight=False, soft_wrap=soft_wrap, width=None if fitted else PIPE_WIDTH)

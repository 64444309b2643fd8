"""Serves the small real model over OpenAI's protocol; ends when its standard input does.

A program of its own: the model's native threads must not share a process with the tests.
"""

import sys

from xllamacpp import CommonParams, Server  # type: ignore[import-not-found]  # an optional package

CONTEXT_TOKENS = 4096
#: two of them wait for each other in circles where a core is busy: two tokens a second instead of a hundred
THREADS = 1


def main() -> None:
    """Serve the model file that is named, on a free port of loopback; say where."""
    parameters = CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.port = 0
    parameters.cpuparams.n_threads = THREADS
    parameters.verbosity = 0
    server = Server(parameters)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()

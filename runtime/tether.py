"""Run a command that the kernel ends when its parent ends.

Usage: python -I -S tether.py SIGNAL PARENT_PID -- command argument...

Only the standard library is imported: this runs once before every embedded server, and `-I -S` keeps it at
about ten milliseconds and out of reach of the environment.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tether(death_signal: signal.Signals, parent_pid: int) -> None:
    """Ask the kernel for `death_signal` at the parent's end, and leave at once if that has already come."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        raise SystemExit(f"tether: prctl failed: {os.strerror(ctypes.get_errno())}")
    # A parent that died between fork and prctl sends nothing any more.
    if os.getppid() != parent_pid:
        raise SystemExit(f"tether: the parent {parent_pid} ended before the start")


def main(arguments: list[str]) -> None:
    """Tether this process and become the command."""
    if len(arguments) < 4 or arguments[2] != "--":
        raise SystemExit("usage: tether.py SIGNAL PARENT_PID -- command argument...")
    tether(signal.Signals[arguments[0]], int(arguments[1]))
    # Under nohup or a background shell job SIGINT is ignored, and an ignored signal survives exec.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    command = arguments[3:]
    os.execv(command[0], command)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])

"""A worker for agents that stands still, once, in front of a store: what goes on when it is let go is a zombie.

Usage: python -m tests.workflows.zombie_worker STORE

The store is `threads`, where an attempt begins; `checkpoints`, where it saves; or `submissions`, where it
proposes its assessment. Settings come from the environment.
"""

import asyncio
import os
import signal
import sys
from typing import Any

import db.postgres.checkpoints
import runtime.worker
from db.postgres.grading import PostgresSubmissions, PostgresThreads
from tests.river.mortal_worker import serve

_met: list[str] = []


def stand_still(store: str) -> None:
    """Until SIGCONT comes, once in this process."""
    if not _met:
        _met.append(store)
        os.kill(os.getpid(), signal.SIGSTOP)


class StillThreads(PostgresThreads):
    """Threads that an attempt begins late."""

    async def begin(self, *arguments: Any) -> int | None:
        """As the threads', after the standstill."""
        stand_still("threads")
        return await super().begin(*arguments)


class StillSubmissions(PostgresSubmissions):
    """Submissions that an assessment is proposed to late."""

    async def propose(self, *arguments: Any) -> None:
        """As the submissions', after the standstill."""
        stand_still("submissions")
        await super().propose(*arguments)


class StillSaver(db.postgres.checkpoints.FencedPostgresSaver):
    """A checkpointer that gets a node's work late."""

    async def aput_writes(self, *arguments: Any) -> None:
        """As the saver's, after the standstill."""
        if any(channel == "results" for channel, _ in arguments[1]):
            stand_still("checkpoints")
        await super().aput_writes(*arguments)


def main(store: str) -> None:
    """Serve, with that store in front of which to stand still."""
    from runtime.settings import Settings
    from runtime.telemetry import configure_logs
    from runtime.tether import tether

    tether(signal.SIGKILL, os.getppid())
    configure_logs(Settings().log, process="zombie-worker")
    if store == "threads":
        runtime.worker.PostgresThreads = StillThreads  # type: ignore[misc]
    elif store == "submissions":
        runtime.worker.PostgresSubmissions = StillSubmissions  # type: ignore[misc]
    else:
        db.postgres.checkpoints.FencedPostgresSaver = StillSaver  # type: ignore[misc]
    asyncio.run(serve(None))


if __name__ == "__main__":
    main(sys.argv[1])

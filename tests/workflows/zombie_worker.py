"""A worker for agents that stands still, once, in front of a store: let go, it is a zombie.

Usage: python -m tests.workflows.zombie_worker STORE

The store is `threads`, where an attempt begins; `checkpoints`, where it saves; or `submissions`, where it
proposes its assessment. What was begun there goes on, whatever Temporal says of the attempt meanwhile; how it
ended is said on standard output. Settings come from the environment.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import db.postgres.checkpoints
import runtime.worker
from db.postgres.grading import PostgresSubmissions, PostgresThreads
from domain.errors import EpochSuperseded
from runtime.settings import Settings
from runtime.telemetry import configure_logs
from runtime.tether import tether
from tests.river.mortal_worker import serve

REFUSED, TAKEN = "zombie refused", "zombie taken"

_stood: list[str] = []


async def late(store: str, work: Coroutine[Any, Any, Any]) -> Any:
    """Do the work; the first time, after a standstill until SIGCONT, and deaf to cancellation."""
    if _stood:
        return await work
    _stood.append(store)
    os.kill(os.getpid(), signal.SIGSTOP)
    doing = asyncio.ensure_future(work)
    doing.add_done_callback(_tell)
    return await asyncio.shield(doing)


def _tell(done: "asyncio.Future[Any]") -> None:
    error = done.exception()
    refused = isinstance(error, EpochSuperseded) or (_stood == ["threads"] and done.result() is None)
    sys.stdout.write(f"{REFUSED if refused else TAKEN} {error!r}\n")
    sys.stdout.flush()


class LateThreads(PostgresThreads):
    """Threads that an attempt begins late."""

    async def begin(self, *arguments: Any) -> int | None:
        """As the threads'."""
        epoch: int | None = await late("threads", super().begin(*arguments))
        return epoch


class LateSubmissions(PostgresSubmissions):
    """Submissions that an assessment is proposed to late."""

    async def propose(self, *arguments: Any) -> None:
        """As the submissions'."""
        await late("submissions", super().propose(*arguments))


class LateSaver(db.postgres.checkpoints.FencedPostgresSaver):
    """A checkpointer that gets a question's result late."""

    async def aput_writes(self, *arguments: Any) -> None:
        """As the saver's."""
        saving = super().aput_writes(*arguments)
        finished = any(channel == "results" and value for channel, value in arguments[1])
        await (late("checkpoints", saving) if finished else saving)


def main(store: str) -> None:
    """Serve, with that store in front of which to stand still."""
    # no test that is killed leaves a worker behind
    tether(signal.SIGKILL, os.getppid())
    configure_logs(Settings().log, process="zombie-worker")
    if store == "threads":
        runtime.worker.PostgresThreads = LateThreads  # type: ignore[misc]
    elif store == "submissions":
        runtime.worker.PostgresSubmissions = LateSubmissions  # type: ignore[misc]
    else:
        # the worker imports it where it is made
        db.postgres.checkpoints.FencedPostgresSaver = LateSaver  # type: ignore[misc]
    asyncio.run(serve(None))


if __name__ == "__main__":
    main(sys.argv[1])

"""How long agents' threads are kept: whole, then their last checkpoint, then nothing (G2.8)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from db.postgres.pool import Postgres, translated_errors
from domain.ports import Clock
from domain.states import BATCH_MACHINE, FileState

# Failed files keep everything, and so does what is not final: somebody may still want to go on from there.
# A thread without a file and a batch has nobody who could.
DUE_SQL = """
SELECT t.thread_id FROM agent_threads t
LEFT JOIN files f ON f.id = t.file_id LEFT JOIN batches b ON b.id = coalesce(f.batch_id, t.batch_id)
WHERE t.kept = ANY(%(kept)s) AND t.updated_at < %(before)s
  AND (b.id IS NULL OR (f.id IS NULL OR f.state <> %(failed)s)
                       AND b.status = ANY(%(final)s) AND b.updated_at < %(before)s)
ORDER BY t.updated_at LIMIT %(count)s
"""
PRUNED_SQL = "UPDATE agent_threads SET kept = %s WHERE thread_id = ANY(%s)"


class Kept(StrEnum):
    """What is left of a thread."""

    HISTORY = "history"
    LATEST = "latest"
    NOTHING = "nothing"


#: LangGraph's words for it
_STRATEGIES: Mapping[Kept, str] = MappingProxyType({Kept.LATEST: "keep_latest", Kept.NOTHING: "delete"})


@dataclass(frozen=True)
class Retention:
    """How many days after its batch has ended a thread is whole, and how many its last checkpoint is there."""

    history_days: int
    latest_days: int


class PostgresThreadRetention:
    """Prunes the threads whose time has come."""

    def __init__(self, postgres: Postgres, clock: Clock, retention: Retention) -> None:
        self._postgres = postgres
        self._clock = clock
        self._retention = retention

    async def prune(self, count: int = 100) -> int:
        """Prune at most so many threads to each degree; answers how many, zero when none is due."""
        # what goes whole need not be pruned to its last checkpoint before
        gone = await self._prune(Kept.NOTHING, self._retention.latest_days, count)
        return gone + await self._prune(Kept.LATEST, self._retention.history_days, count)

    async def _prune(self, kept: Kept, days: int, count: int) -> int:
        before = [Kept.HISTORY, Kept.LATEST] if kept is Kept.NOTHING else [Kept.HISTORY]
        due = await self._postgres.rows(
            DUE_SQL,
            {
                "kept": before,
                "before": self._clock.now() - timedelta(days=days),
                "failed": FileState.FAILED,
                "final": sorted(BATCH_MACHINE.final),
                "count": count,
            },
        )
        thread_ids = [row["thread_id"] for row in due]
        if thread_ids:
            with translated_errors():
                saver = AsyncPostgresSaver(self._postgres.pool)
                await saver.aprune(thread_ids, strategy=_STRATEGIES[kept])
            await self._postgres.run(PRUNED_SQL, [kept, thread_ids])
        return len(thread_ids)

"""The sweeper: no batch waits for a workflow that will never come, nor for word that was lost.

A crash between `complete`, or a re-run, and the workflow's start leaves a batch without one; a workflow
that is terminated by hand leaves a batch that nobody ends; a crash between a raised limit and the signal
leaves a workflow that waits. All are rare, so looking once a minute is enough.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from db.objects.store import ObjectStoreFiles
from db.postgres.batches import PostgresBatchRuns
from db.postgres.ledger_port import PostgresLedger
from db.postgres.pauses import PostgresPauses
from db.postgres.uploads import PostgresResumableUploads
from domain.batch import Batch
from domain.errors import NotFound, Unavailable
from domain.ports import Clock
from domain.states import BATCH_MACHINE, BatchState
from runtime.orchestrator import TemporalOrchestrator

if TYPE_CHECKING:  # it imports LangGraph, which takes a second
    from db.postgres.threads import PostgresThreadRetention

SWEEP_SECONDS = 60.0
THREAD_SWEEP_SECONDS = 300.0
LEDGER_SWEEP_SECONDS = 15.0
UPLOAD_SWEEP_SECONDS = 600.0
UPLOADS_AT_ONCE = 100
#: no request takes longer to make a file of what has landed
LANDING_TIME = timedelta(days=1)
#: longer than Temporal keeps a history, which could ask for a reply again
JOURNAL_DAYS = 45
#: a batch that has changed its state in this time is in good hands
QUIET_SECONDS = 60.0
WORKFLOW_CLOSED = "workflow_closed"


class BatchSweeper:
    """Starts batches that never got their workflow, and ends those whose workflow was closed from outside."""

    def __init__(
        self,
        runs: PostgresBatchRuns,
        pauses: PostgresPauses,
        orchestrator: TemporalOrchestrator,
        *,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        self._runs = runs
        self._pauses = pauses
        self._orchestrator = orchestrator
        self._quiet_seconds = quiet_seconds
        self._log = structlog.get_logger("assay.sweeper")

    async def run(self) -> None:
        """Sweep for ever; absent servers are waited for."""
        while True:
            try:
                await self.sweep_once()
            except Unavailable as error:
                self._log.info("sweeper_waits", code=error.code)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep_once(self) -> None:
        """Look at every unfinished batch that has been quiet; any number of sweepers may do so at once."""
        for batch in await self._runs.unfinished(self._quiet_seconds):
            await self._look_at(batch)
        for batch in await self._pauses.untold():
            with suppress(NotFound):
                await self._orchestrator.resume_batch(batch, batch.resumptions)

    async def _look_at(self, batch: Batch) -> None:
        try:
            if await self._orchestrator.batch_runs(batch):
                return
        except NotFound:
            # every generation has a workflow of its own, which begins in the state that a re-run enters
            if batch.state is BatchState.UPLOADED or (
                batch.generation > 1 and batch.state is BATCH_MACHINE.rerun
            ):
                self._log.warning("batch_started_late", batch_id=batch.id)
                await self._orchestrator.start_batch(batch)
                return
        self._log.warning("batch_without_workflow", batch_id=batch.id, state=batch.state)
        await self._runs.end_early(batch.id, BatchState.FAILED, WORKFLOW_CLOSED, generation=batch.generation)


class LedgerSweeper:
    """Ends holds whose time has come, and forgets replies that nobody can ask for any more."""

    def __init__(self, ledger: PostgresLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._log = structlog.get_logger("assay.sweeper")

    async def run(self) -> None:
        """Sweep for ever; an absent Postgres is waited for."""
        while True:
            try:
                await self._ledger.sweep()
                before = self._clock.now() - timedelta(days=JOURNAL_DAYS)
                await self._ledger.books.prune(before, sorted(BATCH_MACHINE.final))
            except Unavailable as error:
                self._log.info("ledger_sweeper_waits", code=error.code)
            await asyncio.sleep(LEDGER_SWEEP_SECONDS)


class UploadSweeper:
    """Removes uploads that nobody goes on with, and objects that a killed process left half-way."""

    def __init__(self, uploads: PostgresResumableUploads, objects: ObjectStoreFiles, clock: Clock) -> None:
        self._uploads = uploads
        self._objects = objects
        self._clock = clock
        self._log = structlog.get_logger("assay.sweeper")

    async def run(self) -> None:
        """Sweep for ever; absent servers are waited for."""
        while True:
            try:
                await self.sweep_once()
            except Unavailable as error:
                self._log.info("upload_sweeper_waits", code=error.code)
            await asyncio.sleep(UPLOAD_SWEEP_SECONDS)

    async def sweep_once(self) -> None:
        """End what has expired, then look for objects that no row knows; any number may do so at once."""
        while expired := await self._uploads.expired(UPLOADS_AT_ONCE):
            for upload_id in expired:
                await self._remove(await self._uploads.remove(upload_id))
        landed_before = self._clock.now() - LANDING_TIME
        async for keys in self._objects.older_than("uploads/", landed_before):
            await self._remove(sorted(set(keys) - await self._uploads.known(keys)))
        await self._objects.remove_staged("uploads", landed_before)

    async def _remove(self, keys: list[str]) -> None:
        for key in keys:
            await self._objects.delete(key)
        if keys:
            self._log.info("upload_remains_removed", objects=len(keys))


class ThreadSweeper:
    """Prunes agents' threads, so that checkpoints do not fill the disk."""

    def __init__(self, retention: "PostgresThreadRetention") -> None:
        self._retention = retention
        self._log = structlog.get_logger("assay.sweeper")

    async def run(self) -> None:
        """Sweep for ever; an absent Postgres is waited for."""
        while True:
            try:
                while pruned := await self._retention.prune():
                    self._log.info("threads_pruned", threads=pruned)
            except Unavailable as error:
                self._log.info("thread_sweeper_waits", code=error.code)
            await asyncio.sleep(THREAD_SWEEP_SECONDS)

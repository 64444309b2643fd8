"""The persisting saga's steps, each beside its opposite (station 7, G4.1).

Every step and every compensation may run any number of times. An unreachable Redis fails none of them;
an error that is not unreachability does.
"""

from dataclasses import dataclass

import structlog
from temporalio import activity

from domain.errors import AssayError, RedisUnavailable, SagaStepRefused, Unavailable
from domain.ports import Assessments, Barrier, Bell, ResultCache, Results


@dataclass
class PersistInput:
    """Whose assessment, in which generation, by which thread."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    thread_id: str
    trace_id: str = ""
    reason: str = ""


@dataclass
class RecordResult:
    """What became official."""

    score: float
    max_score: float
    needs_review: bool


@dataclass
class FailureInput:
    """A file that ends without an assessment, and why."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    code: str
    message: str
    trace_id: str = ""


@dataclass(frozen=True)
class PersistActivities:
    """The saga's activities and what they need."""

    assessments: Assessments
    results: Results
    cache: ResultCache
    barrier: Barrier
    bell: Bell

    @activity.defn
    async def record_results(self, input: PersistInput) -> RecordResult:
        """Results, submission status and event, all or nothing; this step decides."""
        if input.generation > 1:
            await self._void(input)
        recorded = await self.assessments.record(input.file_id, input.generation, input.thread_id)
        return RecordResult(**vars(recorded))

    @activity.defn
    async def erase_results(self, input: PersistInput) -> None:
        """Undo `record_results`, and say so with an event."""
        await self.assessments.erase(input.file_id, input.generation, input.thread_id, input.reason)
        await self._void(input)

    @activity.defn
    async def cache_results(self, input: PersistInput) -> None:
        """Write the results through to the cache; afterwards the entries are right or absent."""
        try:
            mark = await self.cache.mark(input.file_id)
            results = await self.results.of_submission(input.file_id)
            await self.cache.write(input.file_id, results, mark)
        except RedisUnavailable:
            return  # absent: readers go to Postgres
        except Unavailable:
            raise
        except Exception as error:
            raise refused("cache_results", error) from error

    @activity.defn
    async def evict_results(self, input: PersistInput) -> None:
        """Undo `cache_results`."""
        await self._void(input)

    @activity.defn
    async def ring_bell(self, input: PersistInput) -> None:
        """Count the file in, wake the relay, and complete saga and file."""
        try:
            await self.barrier.arrive(input.batch_id, input.file_id)
            await self.bell.ring()
        except RedisUnavailable:
            structlog.get_logger("assay.saga").info("bell_silent")  # the relay polls, Postgres counts
        except Unavailable:
            raise
        except Exception as error:
            raise refused("ring_bell", error) from error
        await self.assessments.finish(input.file_id, input.generation)

    @activity.defn
    async def ring_retraction(self, input: PersistInput) -> None:
        """Undo `ring_bell`: whoever heard of the assessment hears that it was retracted."""
        await self._ring_quietly()

    @activity.defn
    async def fail_file(self, input: FailureInput) -> None:
        """The file ends `failed` with a code, unless it has ended."""
        await self.assessments.fail(input.file_id, input.generation, input.code, input.message)
        await self._count_in(input)

    @activity.defn
    async def flag_file(self, input: FailureInput) -> None:
        """The file waits for a human, with the code that says why."""
        await self.assessments.flag(input.file_id, input.generation, input.code, input.message)
        await self._ring_quietly()

    @activity.defn
    async def cancel_file(self, input: FailureInput) -> None:
        """The file ends `cancelled`, unless it has ended."""
        await self.assessments.cancel(input.file_id, input.generation)
        await self._count_in(input)

    @activity.defn
    async def flag_saga(self, input: PersistInput) -> None:
        """The saga's file waits for a human, as a step could not be undone."""
        await self.assessments.flag_saga(input.file_id, input.generation, input.reason)
        await self._ring_quietly()

    async def _void(self, input_: PersistInput) -> None:
        """Whatever is cached of the submission, or is on its way there, is believed no more."""
        try:
            await self.cache.forget(input_.file_id)
        except RedisUnavailable:
            return  # gone with the server, or expired within the hour

    async def _count_in(self, input_: FailureInput) -> None:
        try:
            await self.barrier.arrive(input_.batch_id, input_.file_id)
        except RedisUnavailable:
            return  # rebuilt from Postgres when the barrier opens
        await self._ring_quietly()

    async def _ring_quietly(self) -> None:
        try:
            await self.bell.ring()
        except RedisUnavailable:
            return  # the relay polls


def refused(step: str, error: Exception) -> AssayError:
    """The condition of a step that met an error which is not unreachability."""
    """What a step met, as a refusal unless it is a condition of ours."""
    if isinstance(error, AssayError):
        return error
    # the type alone: a driver's message may quote the command, and with it a student's words
    return SagaStepRefused(f"{step}: {type(error).__name__}")

"""The steps of an override's saga, each beside its opposite: database, cache, notification (G4.2).

Every step and every compensation may run any number of times. An unreachable Redis fails none of them.
"""

from dataclasses import dataclass

import structlog
from temporalio import activity

from activities.persist import refused
from domain.errors import RedisUnavailable, Unavailable
from domain.overrides import Override, Overrides
from domain.ports import Bell, ReportCache, ResultCache, Results


@dataclass
class RetractInput:
    """An override that is undone, and why."""

    override: Override
    reason: str


@dataclass(frozen=True)
class OverrideActivities:
    """The saga's activities and what they need."""

    overrides: Overrides
    results: Results
    cache: ResultCache
    reports: ReportCache
    bell: Bell

    @activity.defn
    async def apply_override(self, input: Override) -> None:
        """The human's marks are the official ones; this step decides."""
        await self._void(input)
        await self.overrides.apply(input)

    @activity.defn
    async def retract_override(self, input: RetractInput) -> None:
        """Undo `apply_override`, and say so with an event."""
        await self.overrides.retract(input.override, input.reason)
        await self._void(input.override)

    @activity.defn
    async def cache_override(self, input: Override) -> None:
        """Write the results through to the cache, and drop the report; afterwards all is right or absent."""
        try:
            mark = await self.cache.mark(input.submission_id)
            results = await self.results.of_submission(input.submission_id)
            await self.cache.write(input.submission_id, results, mark)
        except RedisUnavailable:
            return  # absent: readers go to Postgres
        except Unavailable:
            raise
        except Exception as error:
            raise refused("cache_override", error) from error
        await self.reports.forget(input.batch_id)

    @activity.defn
    async def void_override(self, input: Override) -> None:
        """Undo `cache_override`."""
        await self._void(input)

    @activity.defn
    async def tell_override(self, input: Override) -> None:
        """Wake the relay, and complete the saga."""
        try:
            await self.bell.ring()
        except RedisUnavailable:
            structlog.get_logger("assay.saga").info("bell_silent")  # the relay polls
        except Unavailable:
            raise
        except Exception as error:
            raise refused("tell_override", error) from error
        await self.overrides.finish(input)

    @activity.defn
    async def tell_retraction(self, input: Override) -> None:
        """Undo `tell_override`: whoever heard of the override hears that it was retracted."""
        try:
            await self.bell.ring()
        except RedisUnavailable:
            return  # the relay polls

    @activity.defn
    async def flag_override(self, input: RetractInput) -> None:
        """The saga waits for a human, as a step could not be undone."""
        await self.overrides.flag(input.override, input.reason)

    async def _void(self, override: Override) -> None:
        await self.reports.forget(override.batch_id)
        try:
            await self.cache.forget(override.submission_id)
        except RedisUnavailable:
            return  # gone with the server, or expired within the hour

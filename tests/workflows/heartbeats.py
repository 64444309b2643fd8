"""Who listens to heartbeats: beside the activity as they are given, and at the server as they arrive."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import temporalio.client
import temporalio.worker
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
)

from runtime.resources import Resources

#: between two looks at the server
LOOK_SECONDS = 0.05


@dataclass
class Attempt:
    """What one attempt of an activity has told: the beginning, each heartbeat and the end, by the clock."""

    workflow_id: str
    number: int
    times: list[float] = field(default_factory=lambda: [time.monotonic()])
    states: list[dict[str, Any]] = field(default_factory=list)

    @property
    def longest_gap_seconds(self) -> float:
        """The longest silence."""
        return longest_gap_seconds(self.times)


def longest_gap_seconds(times: Sequence[float]) -> float:
    """The longest time between two that follow each other."""
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


class Listener(temporalio.client.Interceptor, temporalio.worker.Interceptor):
    """Hears every heartbeat of the agents' activities of a client's workers."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def heard_by(self, resources: Resources) -> Resources:
        """The same resources, whose workers are listened to."""
        settings = resources.temporal.config()
        settings["interceptors"] = [*settings["interceptors"], self]
        return replace(resources, temporal=Client(**settings))

    def of(self, workflow_id: str) -> list[Attempt]:
        """The attempts of that workflow's agent, in order."""
        return [each for each in self.attempts if each.workflow_id == workflow_id]

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002  # the SDK's name
        """Temporal's hook."""
        return _Inbound(next, self.attempts)


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next_: ActivityInboundInterceptor, attempts: list[Attempt]) -> None:
        super().__init__(next_)
        self._attempts = attempts
        self._attempt: Attempt | None = None

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        info = activity.info()
        if info.activity_type == "assess_submission":
            self._attempt = Attempt(info.workflow_id or "", info.attempt)
            self._attempts.append(self._attempt)
            outbound = _Outbound(outbound, self._attempt)
        super().init(outbound)

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002  # the SDK's name
        try:
            return await super().execute_activity(input)
        finally:
            if self._attempt is not None:
                self._attempt.times.append(time.monotonic())


class _Outbound(ActivityOutboundInterceptor):
    def __init__(self, next_: ActivityOutboundInterceptor, attempt: Attempt) -> None:
        super().__init__(next_)
        self._attempt = attempt

    def heartbeat(self, *details: Any) -> None:
        self._attempt.times.append(time.monotonic())
        self._attempt.states.append(dict(details[0]))
        super().heartbeat(*details)


@asynccontextmanager
async def watched_at_the_server(
    *handles: WorkflowHandle[Any, Any],
) -> AsyncIterator[dict[tuple[str, int], list[float]]]:
    """When the server heard of each workflow's agent, by workflow and attempt, from its start on."""
    heard: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    watching = [asyncio.create_task(_watch(handle, heard)) for handle in handles]
    try:
        yield heard
    finally:
        for each in watching:
            each.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def _watch(handle: WorkflowHandle[Any, Any], heard: dict[tuple[str, int], list[float]]) -> None:
    while True:
        try:
            described = await handle.describe()
        except RPCError:  # not started yet
            await asyncio.sleep(LOOK_SECONDS)
            continue
        for pending in described.raw_description.pending_activities:
            if pending.activity_type.name != "assess_submission" or not pending.HasField("last_started_time"):
                continue
            times = heard[handle.id, pending.attempt]
            started, beat = pending.last_started_time, pending.last_heartbeat_time
            latest = max(started.ToNanoseconds(), beat.ToNanoseconds()) / 1e9
            if not times or latest > times[-1]:
                times.append(latest)
        await asyncio.sleep(LOOK_SECONDS)

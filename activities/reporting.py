"""What an agent's activity tells beside its work: heartbeats, its state in Redis, a signal now and then."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import structlog
from temporalio import activity
from temporalio.service import RPCError

from domain.batch import AgentState
from domain.ports import StatePublisher


@asynccontextmanager
async def beside(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Do the work beside the block, until it ends."""
    ended = asyncio.Event()
    task = asyncio.create_task(work(ended))
    try:
        yield
    finally:
        # said too, as a library may lose a cancellation (`asyncio.wait_for` does before Python 3.12)
        ended.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class StateReporter:
    """Tells Temporal's heartbeat, Redis and, coalesced, the workflow where the agent is.

    Two tasks: nothing that waits for Redis or for the server may hold up a heartbeat (G2.3).
    """

    def __init__(self, states: StatePublisher, subject_id: str, interval_seconds: float) -> None:
        self._states = states
        self._subject_id = subject_id
        self._interval_seconds = interval_seconds
        self._state = AgentState(thread_id=activity.info().workflow_run_id or "", stage="starting")
        self._changed = asyncio.Event()

    def note(self, state: AgentState) -> None:
        """Hear of a durable step."""
        self._state = state
        self._changed.set()
        activity.heartbeat(vars(state))

    async def beat(self, ended: asyncio.Event) -> None:
        """Heartbeat four times in each heartbeat timeout, also while a model call is pending."""
        timeout = activity.info().heartbeat_timeout or timedelta(seconds=10)
        while not ended.is_set():
            activity.heartbeat(vars(self._state))
            await asyncio.sleep(timeout.total_seconds() / 4)

    async def tell(self, ended: asyncio.Event) -> None:
        """Show each new state in Redis, and to the workflow at most once in the interval."""
        loop = asyncio.get_running_loop()
        signal_at = loop.time() + self._interval_seconds
        signalled = self._state
        while not ended.is_set():
            if signalled is not self._state and loop.time() >= signal_at:
                signalled, signal_at = self._state, loop.time() + self._interval_seconds
                await _signal(signalled)
            wait = None if signalled is self._state else max(0.0, signal_at - loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            if self._changed.is_set():
                self._changed.clear()
                await self.show(self._state)

    async def show(self, state: AgentState) -> None:
        """Show the state in Redis."""
        try:
            await self._states.publish(activity.info().workflow_id or "", self._subject_id, state)
        except Exception as error:  # noqa: BLE001  # whatever a cache refuses, the agent goes on
            structlog.get_logger("assay.agents").error("state_refused", reason=repr(error)[:500])


async def _signal(state: AgentState) -> None:
    info = activity.info()
    handle = activity.client().get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
    try:
        await handle.signal("agent_state", state, rpc_timeout=timedelta(seconds=5))
    except RPCError as error:
        # the next interval tells it, and the result at the latest
        structlog.get_logger("assay.agents").info("state_not_signalled", reason=str(error))

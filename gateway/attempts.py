"""The calls that one attempt at an assessment makes side by side."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from domain.completion import Fence
from domain.errors import AssayError

#: few: each keeps its stack alive, and its attempt's other calls come at once
FAILURES_KEPT = 100


class Attempt:
    """Calls side by side that end together.

    The first failure ends the attempt, and its other calls would be cancelled on their way: charged as
    doubts, and made again. So a failure waits for their replies, and nothing new starts meanwhile.
    """

    def __init__(self, failure: AssayError | None = None) -> None:
        self.callers = 0
        self.failure = failure
        self._under_way = 0
        self._settled = asyncio.Event()
        self._settled.set()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """A call that may leave inside the block; raises the failure that another one met."""
        if self.failure is not None:
            raise self.failure
        self._under_way += 1
        self._settled.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._settled.set()

    async def fail(self, error: AssayError) -> None:
        """Start nothing new, and wait for what is under way."""
        self.failure = self.failure or error
        await self._settled.wait()


class Attempts:
    """The attempts whose calls are at the door now, and the last failures of those that have gone."""

    def __init__(self) -> None:
        self._attempts: dict[Fence, Attempt] = {}
        self._failures: OrderedDict[Fence, AssayError] = OrderedDict()

    @contextmanager
    def of(self, fence: Fence | None) -> Iterator[Attempt]:
        """The fence's attempt, for one of its calls; without a fence a call is alone."""
        if fence is None:
            yield Attempt()
            return
        attempt = self._attempts.setdefault(fence, Attempt(self._failures.get(fence)))
        attempt.callers += 1
        try:
            yield attempt
        finally:
            attempt.callers -= 1
            if not attempt.callers:
                del self._attempts[fence]
                self._remember(fence, attempt.failure)

    def _remember(self, fence: Fence, failure: AssayError | None) -> None:
        # its calls that wait for a slot come when the failed one has gone
        if failure is not None:
            self._failures[fence] = failure
            if len(self._failures) > FAILURES_KEPT:
                self._failures.popitem(last=False)

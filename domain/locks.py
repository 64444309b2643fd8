"""Locks between processes: leases that end by themselves, and whose numbers refuse a late write (G6.3)."""

import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from domain.errors import LeaseLost

#: a holder that says nothing for so long holds no more
LEASE_SECONDS = 30.0
WAIT_SECONDS = 30.0


def lock_name(kind: str, subject_id: str) -> str:
    """What is locked, such as `report:{batch_id}`."""
    return f"{kind}:{subject_id}"


class Lease:
    """A lock as its holder has it; `fence` is greater than every earlier holder's of the same name.

    The lock keeps others waiting; the fence is what makes a write right, as a lease may end unnoticed.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.fence = 0
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    @property
    def lost(self) -> bool:
        """Whether another may hold it by now."""
        return time.monotonic() >= self._until

    def check(self) -> None:
        """Raises `LeaseLost`."""
        if self.lost:
            raise LeaseLost(f"The lock {self.name} was lost on the way; begin again.", field=self.name)

    def extend(self, since: float) -> None:
        """It was renewed at that moment of the monotonic clock."""
        self._until = since + self._seconds

    def end(self) -> None:
        """It is held no more."""
        self._until = 0.0


class Locks(Protocol):
    """One holder at a time among all processes; without Redis, too."""

    def held(
        self, kind: str, subject_id: str, *, wait_seconds: float = WAIT_SECONDS
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold the lock for the block; raises `LockTimeout` when it does not become free in time."""
        ...

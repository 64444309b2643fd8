"""An outside of an agent, in which things happen and processes die to order."""

from collections.abc import Collection
from dataclasses import dataclass, field

from domain.batch import Pause
from domain.errors import PostgresUnavailable
from domain.external_events import HeardEvent, News
from domain.identity import WorkflowRef
from domain.states import BatchState


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Fate:
    """Where the process dies: at so many awaits of a port from now, before it took effect or after."""

    deaths: list[tuple[int, bool]]
    awaits: int = 0
    died: int = 0

    def strikes(self, *, after: bool) -> None:
        """One await of a port, on its way in or out."""
        self.awaits += not after
        if self.deaths and self.deaths[0] == (self.awaits, after):
            self.deaths.pop(0)
            self.awaits, self.died = 0, self.died + 1
            raise Killed


@dataclass
class World:
    """An outside in memory: one more thing happens with each look at it."""

    #: by look: how many events have come since the last one
    arrivals: list[int] = field(default_factory=list)
    #: looks that Postgres does not answer
    silent: set[int] = field(default_factory=set)
    pause: Pause | None = None
    workflow_id: str = "batch/batch-1/g2/file/file-1"
    limit_nanodollars: int | None = None
    fate: Fate = field(default_factory=lambda: Fate([]))
    looks: int = 0
    happened: list[HeardEvent] = field(default_factory=list)
    #: what had happened when the outside was last heard
    told: list[str] = field(default_factory=list)

    async def news(self, workflow: WorkflowRef, heard: Collection[str]) -> News | None:
        """As from Postgres: all events but those that are known."""
        assert str(workflow) == self.workflow_id
        self.fate.strikes(after=False)
        self.looks += 1
        for _ in range(self.arrivals.pop(0) if self.arrivals else 0):
            number = len(self.happened)
            self.happened.append(
                HeardEvent(f"event-{number:03}", "weather", '{"rain": true}', f"{number:03}")
            )
        if self.looks in self.silent:
            raise PostgresUnavailable("Nobody answers.")
        self.told = [each.event_id for each in self.happened]
        self.fate.strikes(after=True)
        return News(
            BatchState.PAUSED if self.pause else BatchState.SCATTERING,
            resumptions=0,
            limit_nanodollars=self.limit_nanodollars,
            changed_at="2026-01-02T03:04:05+00:00",
            pause=self.pause,
            events=tuple(each for each in self.happened if each.event_id not in heard),
        )

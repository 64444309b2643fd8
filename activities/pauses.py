"""Pause a file for want of money, and say that its batch has been resumed (B5.4)."""

from dataclasses import dataclass, field

from temporalio import activity

from domain.batch import Pause
from domain.ports import Pauses


@dataclass
class PauseInput:
    """Which file a limit has refused."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    pause: Pause = field(default_factory=Pause)
    trace_id: str = ""


@dataclass
class BatchPauseInput:
    """Which batch, as a whole, has to wait."""

    tenant_id: str
    batch_id: str
    generation: int
    pause: Pause = field(default_factory=Pause)
    trace_id: str = ""


@dataclass
class ResumedInput:
    """Which resumption has reached the batch's workflow."""

    tenant_id: str
    batch_id: str
    resumptions: int
    trace_id: str = ""


@dataclass(frozen=True)
class PauseActivities:
    """The two sides of a pause and what they need."""

    pauses: Pauses

    @activity.defn
    async def pause_file(self, input: PauseInput) -> int:
        """Pause file and batch, unless the batch has been resumed since; how often that was."""
        return await self.pauses.pause(input.batch_id, input.file_id, input.generation, input.pause)

    @activity.defn
    async def pause_batch(self, input: BatchPauseInput) -> int:
        """Pause the batch as a whole, unless it has been resumed since; how often that was."""
        return await self.pauses.pause_batch(input.batch_id, input.generation, input.pause)

    @activity.defn
    async def note_resumed(self, input: ResumedInput) -> None:
        """The workflow has heard of the resumption: nobody need tell it again."""
        await self.pauses.note_resumed(input.batch_id, input.resumptions)

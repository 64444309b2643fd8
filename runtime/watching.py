"""Following a batch in a terminal: stage, counts, rate and time left."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState, FileState
from runtime.client import ApiClient


def watch_batch(
    client: ApiClient,
    batch_id: str,
    *,
    console: Console,
    on_event: Callable[[str, dict[str, Any]], None] | None = None,
) -> str:
    """Show the batch's progress until it has ended; answers its final state."""
    tally = Tally()
    with _bar(console) as bar:
        task = bar.add_task("pending", total=None, tally=tally)
        for kind, event in client.events(batch_id):
            tally.hear(kind, event)
            if on_event is not None:
                on_event(kind, event)
            bar.update(task, description=tally.stage, completed=tally.finished, total=tally.total or None)
    return tally.stage


class Tally:
    """What the events say: the stage, and how many files are in each state."""

    def __init__(self) -> None:
        self.stage = "pending"
        self.counts: dict[str, int] = {}
        self._began = time.monotonic()
        self._finished_at_first = 0

    @property
    def total(self) -> int:
        """All files."""
        return sum(self.counts.values())

    @property
    def finished(self) -> int:
        """Files in a final state."""
        return sum(self.counts.get(state, 0) for state in FILE_MACHINE.final)

    @property
    def rate(self) -> float:
        """Files finished in a second, since the watching began."""
        seconds = time.monotonic() - self._began
        return (self.finished - self._finished_at_first) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; `None` before anything has finished."""
        return (self.total - self.finished) / self.rate if self.rate > 0 else None

    def hear(self, kind: str, event: dict[str, Any]) -> None:
        """Take in a snapshot or an event."""
        if kind == "snapshot":
            self._begin(event)
        elif kind == "UploadCompleted":
            self.counts = {FileState.UPLOADED: event["total_files"]}
        elif kind == "FileScattered":
            self._move(FileState.UPLOADED, FileState.QUEUED)
        elif kind == "StatusChanged":
            if event["machine"] == "batch":
                self.stage = event["to"]
            else:
                self._move(event["from"], event["to"])

    def _begin(self, snapshot: dict[str, Any]) -> None:
        progress = snapshot.get("progress", snapshot)
        self.stage = progress.get("stage", snapshot.get("state", self.stage))
        self.counts = dict(progress.get("counts", {}))
        self._finished_at_first = self.finished

    def _move(self, origin: str, target: str) -> None:
        # a snapshot may be newer than the events after it: what it has counted is not counted again
        if self.counts.get(origin, 0) > 0:
            self.counts[origin] -= 1
            self.counts[target] = self.counts.get(target, 0) + 1

    @property
    def ended(self) -> bool:
        """Whether the batch is in a final state."""
        return BatchState(self.stage) in BATCH_MACHINE.final


class _Counts(ProgressColumn):
    def render(self, task: Any) -> Text:
        tally: Tally = task.fields["tally"]
        shown = [f"{state} {tally.counts[state]}" for state in FileState if tally.counts.get(state)]
        return Text(" · ".join(shown))


class _Left(ProgressColumn):
    def render(self, task: Any) -> Text:
        tally: Tally = task.fields["tally"]
        left = tally.seconds_left
        if tally.ended or left is None:
            return Text(f"{tally.rate:.1f} files/s")
        return Text(f"{tally.rate:.1f} files/s, {_clock(left)} left")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        _Counts(),
        _Left(),
        TimeElapsedColumn(),
        console=console,
    )

"""Following a batch in a terminal: stage, counts, rate and time left."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

from domain.money import Money, parse_usd
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState, FileState
from runtime.client import ApiClient

_BAR_WIDTHS = range(8, 31)
#: what the columns beside the bar need: stage, files, counts, rate
_BESIDE_THE_BAR = 72
_QUIET = (FileState.UPLOADED, FileState.QUEUED, FileState.COMPLETED)


def watch_batch(
    client: ApiClient,
    batch_id: str,
    *,
    console: Console,
    on_event: Callable[[str, dict[str, Any]], None] | None = None,
) -> str:
    """Show the batch's progress until it has ended; answers its final state."""
    tally = Tally()
    said: str | None = None
    with _bar(console) as bar:
        task = bar.add_task("pending", total=None, tally=tally)
        for kind, event in client.events(batch_id):
            tally.hear(kind, event)
            if tally.paused_by(kind, event):
                way_out = how_to_go_on(batch_id, event)
                # the snapshot of a new connection tells of a pause that was told
                if kind != "snapshot" or way_out != said:
                    bar.console.print(way_out, soft_wrap=True)
                said = way_out
            if on_event is not None:
                on_event(kind, event)
            bar.update(task, description=tally.stage, completed=tally.finished, total=tally.total or None)
        tally.correct(client.get(f"/v1/batches/{batch_id}")["progress"])
        bar.update(task, description=tally.stage, completed=tally.finished, total=tally.total or None)
    return tally.stage


def exit_code(state: str) -> int:
    """What a command that has followed a batch exits with: 0 completed, 4 in part, 1 otherwise."""
    return {BatchState.COMPLETED: 0, BatchState.PARTIAL: 4}.get(BatchState(state), 1)


def how_to_go_on(batch_id: str, event: Mapping[str, Any]) -> str:
    """What refuses, by how much, and the way out; from the event of the pause, or a snapshot during it."""
    pause = event.get("pause") or event
    missing = (
        parse_usd(pause["missing_usd"]) if "missing_usd" in pause else pause.get("missing_nanodollars", 0)
    )
    short = f", ${Money(missing).usd} short for the next call" if missing else ""
    # a snapshot may be read just before its pause has a scope
    scope = f"the limit of the {pause['scope']}" if "scope" in pause else "a limit"
    return f"Paused: {scope} refuses{short}. Raise it: assay limit {batch_id} USD"


class Tally:
    """What the events say: the stage, and how many files are in each state."""

    def __init__(self) -> None:
        self.stage = "pending"
        self.counts: dict[str, int] = {}
        self._began = time.monotonic()
        self._finished_at_first: int | None = None

    @property
    def total(self) -> int:
        """All files."""
        return sum(self.counts.values())

    @property
    def finished(self) -> int:
        """Files in a final state."""
        return sum(self.counts.get(state, 0) for state in FILE_MACHINE.final)

    @property
    def seconds(self) -> float:
        """How long we have been watching."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Files finished in a second, since the watching began."""
        return (self.finished - (self._finished_at_first or 0)) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; `None` before anything has finished."""
        return (self.total - self.finished) / self.rate if self.rate > 0 else None

    def hear(self, kind: str, event: dict[str, Any]) -> None:
        """Take in a snapshot or an event."""
        if kind == "snapshot":
            # a second one comes with a new connection: the events from our place on are still to come
            if self._finished_at_first is None:
                self.correct(event)
                self._finished_at_first = self.finished
        elif kind == "UploadCompleted":
            self.counts = {FileState.UPLOADED: event["total_files"]}
        elif kind == "FileScattered":
            self._move(FileState.UPLOADED, FileState.QUEUED)
        elif kind == "StatusChanged":
            if event["machine"] == "batch":
                self.stage = event["to"]
            else:
                self._move(event["from"], event["to"])

    @staticmethod
    def paused_by(kind: str, event: Mapping[str, Any]) -> bool:
        """Whether this is the event of the batch's pause, or a snapshot during it."""
        if kind == "snapshot":
            return bool(event["stage"] == BatchState.PAUSED)
        return kind == "StatusChanged" and event["machine"] == "batch" and event["to"] == BatchState.PAUSED

    def correct(self, progress: dict[str, Any]) -> None:
        """Take over the stage and the counts."""
        self.stage = progress["stage"]
        self.counts = dict(progress["counts"])

    def _move(self, origin: str, target: str) -> None:
        # a snapshot may be newer than the events after it: what it has counted is not counted again
        if self.counts.get(origin, 0) > 0:
            self.counts[origin] -= 1
            self.counts[target] = self.counts.get(target, 0) + 1

    @property
    def ended(self) -> bool:
        """Whether the batch is in a final state."""
        return BatchState(self.stage) in BATCH_MACHINE.final


class _TallyColumn(ProgressColumn):
    """A column that keeps to its line."""

    def __init__(self, show: Callable[[Tally], str]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._show = show

    def render(self, task: Any) -> Text:
        return Text(self._show(task.fields["tally"]))


def _files(tally: Tally) -> str:
    return f"{tally.finished}/{tally.total} file{'s' * (tally.total != 1)}"


def _counts(tally: Tally) -> str:
    """What is neither simply done nor waiting."""
    shown = [state for state in FileState if state not in _QUIET and tally.counts.get(state)]
    return ", ".join(f"{tally.counts[state]} {state.replace('_', ' ')}" for state in shown)


def _rate(tally: Tally) -> str:
    left = tally.seconds_left
    rate = f"{tally.rate:.1f} files/s"
    if tally.ended:
        return f"{rate} in {_clock(tally.seconds)}" if tally.rate else ""
    return rate if left is None else f"{rate}, {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(console: Console) -> Progress:
    width = min(max(console.width - _BESIDE_THE_BAR, _BAR_WIDTHS.start), _BAR_WIDTHS.stop - 1)
    return Progress(
        TextColumn("{task.description:<10}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=width),
        _TallyColumn(_files),
        _TallyColumn(_counts),
        _TallyColumn(_rate),
        console=console,
    )

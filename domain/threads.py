"""What an agent's thread was: its checkpoints, their states, and what differs between two of them (G2.6)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from domain.errors import InvalidInput

#: the most files that one request forks: each is looked up, and refused before anything has changed
MAX_FORKED = 10_000


@dataclass(frozen=True)
class ForkPlace:
    """Where threads are taken up again, by exactly one of: a checkpoint, a step, the node to run next."""

    checkpoint_id: str | None = None
    step: int | None = None
    node: str | None = None

    def __post_init__(self) -> None:
        stated = [each for each in (self.checkpoint_id, self.step, self.node) if each is not None]
        if len(stated) != 1:
            raise InvalidInput("Say where to fork by one of checkpoint_id, step and node.", field="step")

    def __str__(self) -> str:
        if self.checkpoint_id is not None:
            return f"checkpoint {self.checkpoint_id}"
        return f"checkpoint of step {self.step}" if self.node is None else f"checkpoint before {self.node}"


@dataclass(frozen=True)
class SavedCheckpoint:
    """One checkpoint of a file's thread; `nodes` have led to it, `next_nodes` would follow.

    No `nodes` where the checkpoint before it is pruned. The size is of what was stored with this one alone.
    """

    checkpoint_id: str
    thread_id: str
    generation: int
    step: int
    nodes: tuple[str, ...]
    next_nodes: tuple[str, ...]
    created_at: datetime
    data_size_bytes: int
    is_delta: bool
    is_compressed: bool
    base_checkpoint_id: str | None
    #: what its thread began as a copy of, if it is a fork's
    forked_thread_id: str | None = None
    forked_checkpoint_id: str | None = None


@dataclass(frozen=True)
class PendingWrite:
    """What a task had written already when the step that follows the checkpoint was not finished."""

    task_id: str
    channel: str
    value: Any


@dataclass(frozen=True)
class SavedState:
    """A checkpoint's values by channel, as saved; `unreadable` says by channel why one is missing."""

    values: Mapping[str, Any]
    pending: tuple[PendingWrite, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StateChange:
    """One difference: of a whole channel, or of one key of it, such as a question's result."""

    channel: str
    key: str | None
    change: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None


def changes_between(before: SavedState, after: SavedState) -> list[StateChange]:
    """What was added, removed and changed, by channel and key, in the order of their names."""
    return [
        change
        for channel in sorted({*before.values, *after.values})
        for change in _channel_changes(channel, before.values, after.values)
    ]


def _channel_changes(
    channel: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[StateChange]:
    old, new = before.get(channel, {}), after.get(channel, {})
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _change(channel, key, old, new, key)
    else:
        yield from _change(channel, None, before, after, channel)


def _change(
    channel: str, key: str | None, before: Mapping[str, Any], after: Mapping[str, Any], name: str
) -> Iterator[StateChange]:
    if name not in before:
        yield StateChange(channel, key, "added", after=after[name])
    elif name not in after:
        yield StateChange(channel, key, "removed", before=before[name])
    elif before[name] != after[name]:
        yield StateChange(channel, key, "changed", before[name], after[name])

"""The state machines of batch and file: one table of legal moves each.

Everything else about states is derived from these tables: the checks in SQL, the diagrams in
`docs/architecture.md` and `assay states`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from domain.errors import IllegalTransition


class BatchState(StrEnum):
    """Where a batch is (B5.1)."""

    PENDING = "pending"
    UPLOADED = "uploaded"
    SCATTERING = "scattering"
    SCATTERED = "scattered"
    GATHERING = "gathering"
    GATHERED = "gathered"
    DIAGNOSING = "diagnosing"
    PAUSED = "paused"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FileState(StrEnum):
    """Where a file is, within its generation (B5.2)."""

    UPLOADED = "uploaded"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    NEEDS_INTERVENTION = "needs_intervention"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


State = TypeVar("State", bound=StrEnum)


@dataclass(frozen=True)
class StateMachine(Generic[State]):
    """A table of legal moves; `final` states are left only through `rerun`, a new generation."""

    name: str
    initial: State
    moves: Mapping[State, frozenset[State]]
    final: frozenset[State]
    rerun: State

    def allows(self, origin: State, target: State) -> bool:
        """Whether the table has the move; a re-run is no ordinary move."""
        return target in self.moves[origin]

    def check(self, origin: State, target: State) -> None:
        """Raise `IllegalTransition` unless the table has the move."""
        if not self.allows(origin, target):
            legal = ", ".join(sorted(self.moves[origin])) or "none, it is final"
            raise IllegalTransition(
                f"A {self.name} that is {origin} cannot become {target}; legal from here: {legal}."
            )

    def origins_of(self, target: State) -> list[State]:
        """The states from which the target can be reached in one move, in declared order."""
        return [origin for origin, targets in self.moves.items() if target in targets]

    def mermaid(self) -> str:
        """The machine as a Mermaid state diagram."""
        lines = ["stateDiagram-v2", f"    [*] --> {self.initial}"]
        for origin, targets in self.moves.items():
            lines += [f"    {origin} --> {target}" for target in type(origin) if target in targets]
        lines += [
            f"    {state} --> {self.rerun}: re-run" for state in type(self.initial) if state in self.final
        ]
        lines += [f"    {state} --> [*]" for state in type(self.initial) if state in self.final]
        return "\n".join(lines)


def _table(moves: Mapping[State, Iterable[State]], states: type[State]) -> dict[State, frozenset[State]]:
    return {state: frozenset(moves.get(state, ())) for state in states}


_B = BatchState
_RUNNING_BATCH = (_B.SCATTERING, _B.SCATTERED, _B.GATHERING, _B.GATHERED, _B.DIAGNOSING)
_FINAL_BATCH = frozenset({_B.COMPLETED, _B.PARTIAL, _B.FAILED, _B.CANCELLED})
_ENDS_EARLY = (_B.PAUSED, _B.PARTIAL, _B.FAILED, _B.CANCELLED)

BATCH_MACHINE = StateMachine(
    name="batch",
    initial=_B.PENDING,
    moves=_table(
        {
            _B.PENDING: (_B.UPLOADED, _B.CANCELLED),
            _B.UPLOADED: (_B.SCATTERING, _B.FAILED, _B.CANCELLED),
            _B.SCATTERING: (_B.SCATTERED, *_ENDS_EARLY),
            _B.SCATTERED: (_B.GATHERING, *_ENDS_EARLY),
            _B.GATHERING: (_B.GATHERED, *_ENDS_EARLY),
            _B.GATHERED: (_B.DIAGNOSING, _B.COMPLETED, *_ENDS_EARLY),
            _B.DIAGNOSING: (_B.COMPLETED, *_ENDS_EARLY),
            # a pause ends in the state that it came from
            _B.PAUSED: (*_RUNNING_BATCH, _B.PARTIAL, _B.FAILED, _B.CANCELLED),
        },
        BatchState,
    ),
    final=_FINAL_BATCH,
    rerun=_B.SCATTERING,
)

_F = FileState

FILE_MACHINE = StateMachine(
    name="file",
    initial=_F.UPLOADED,
    moves=_table(
        {
            _F.UPLOADED: (_F.QUEUED, _F.CANCELLED),
            _F.QUEUED: (_F.RUNNING, _F.FAILED, _F.CANCELLED),
            _F.RUNNING: (
                _F.NEEDS_INTERVENTION,
                _F.PAUSED,
                _F.COMPLETED,
                _F.FAILED,
                _F.CANCELLED,
            ),
            _F.NEEDS_INTERVENTION: (_F.RUNNING, _F.FAILED, _F.CANCELLED),
            _F.PAUSED: (_F.RUNNING, _F.FAILED, _F.CANCELLED),
        },
        FileState,
    ),
    final=frozenset({_F.COMPLETED, _F.FAILED, _F.CANCELLED}),
    rerun=_F.QUEUED,
)

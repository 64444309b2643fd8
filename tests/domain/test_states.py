"""The tables of states, compared with the specification's words (B5.1, B5.2)."""

from itertools import pairwise
from typing import Any

import pytest

from domain.errors import IllegalTransition
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState, FileState, StateMachine

MACHINES = [BATCH_MACHINE, FILE_MACHINE]
RUNNING = ["scattering", "scattered", "gathering", "gathered", "diagnosing"]
ENDS = ["partial", "failed", "cancelled"]


def moves(machine: StateMachine[Any]) -> set[tuple[str, str]]:
    return {(str(origin), str(target)) for origin, targets in machine.moves.items() for target in targets}


def chain(*states: str) -> set[tuple[str, str]]:
    return set(pairwise(states))


def test_a_batch_moves_as_specified() -> None:
    specified = chain("pending", "uploaded", *RUNNING, "completed")
    # grading skips `diagnosing`
    specified |= {("gathered", "completed")}
    # from any running state `paused` and back, and to the final states
    specified |= {(state, "paused") for state in RUNNING} | {("paused", state) for state in RUNNING}
    specified |= {(state, end) for state in [*RUNNING, "paused"] for end in ENDS}
    # before it runs: withdrawn by its owner, or never started
    specified |= {("pending", "cancelled"), ("uploaded", "cancelled"), ("uploaded", "failed")}
    assert moves(BATCH_MACHINE) == specified


def test_a_file_moves_as_specified() -> None:
    specified = chain("uploaded", "queued", "running")
    specified |= {("running", end) for end in ("completed", "failed", "cancelled")}
    specified |= {("queued", "failed"), ("queued", "cancelled")}
    for waiting in ("needs_intervention", "paused"):
        specified |= {("running", waiting), (waiting, "running")}
        # what waits for somebody may be given up
        specified |= {(waiting, "failed"), (waiting, "cancelled")}
    # withdrawn with its batch
    specified |= {("uploaded", "cancelled")}
    assert moves(FILE_MACHINE) == specified


def test_the_final_states_are_the_specified_ones() -> None:
    assert BATCH_MACHINE.final == {"completed", *ENDS}
    assert FILE_MACHINE.final == {"completed", "failed", "cancelled"}
    assert (BATCH_MACHINE.rerun, FILE_MACHINE.rerun) == (BatchState.SCATTERING, FileState.QUEUED)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
class TestEveryMachine:
    def test_final_states_and_no_others_have_no_moves(self, machine: StateMachine[Any]) -> None:
        assert {state for state, targets in machine.moves.items() if not targets} == machine.final

    def test_every_state_has_a_row_and_is_reached_from_the_initial_one(
        self, machine: StateMachine[Any]
    ) -> None:
        assert set(machine.moves) == set(type(machine.initial))
        reached, fresh = {machine.initial}, {machine.initial}
        while fresh:
            fresh = {target for state in fresh for target in machine.moves[state]} - reached
            reached |= fresh
        assert reached == set(type(machine.initial))

    def test_from_every_state_an_end_is_reached(self, machine: StateMachine[Any]) -> None:
        ending = set(machine.final)
        while more := {s for s, targets in machine.moves.items() if targets & ending} - ending:
            ending |= more
        assert ending == set(type(machine.initial))

    def test_no_state_moves_to_itself_and_none_back_to_the_initial_one(
        self, machine: StateMachine[Any]
    ) -> None:
        assert all(state not in targets for state, targets in machine.moves.items())
        assert machine.origins_of(machine.initial) == []

    def test_check_refuses_exactly_what_the_table_does_not_have(self, machine: StateMachine[Any]) -> None:
        for origin in type(machine.initial):
            for target in type(machine.initial):
                if target in machine.moves[origin]:
                    machine.check(origin, target)
                else:
                    with pytest.raises(IllegalTransition, match=f"{origin} cannot become {target}"):
                        machine.check(origin, target)

    def test_origins_are_the_table_read_backwards(self, machine: StateMachine[Any]) -> None:
        backwards = {(o, t) for t in type(machine.initial) for o in machine.origins_of(t)}
        assert backwards == {(o, t) for o, targets in machine.moves.items() for t in targets}

    def test_the_diagram_has_every_move_once(self, machine: StateMachine[Any]) -> None:
        lines = [line.strip() for line in machine.mermaid().splitlines()]
        assert len(lines) == len(set(lines))
        for origin, target in moves(machine):
            assert f"{origin} --> {target}" in lines
        assert f"[*] --> {machine.initial}" in lines
        for state in machine.final:
            assert f"{state} --> [*]" in lines
            assert f"{state} --> {machine.rerun}: re-run" in lines

"""Ids are derived from identity, and read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.identity import (
    LogicalStep,
    WorkflowRef,
    batch_workflow_id,
    file_workflow_id,
    is_segment,
    object_key,
    saga_id,
    window_workflow_id,
)

SEGMENT = st.text("abcXYZ0189_.-", min_size=1, max_size=12)
STEP = st.builds(LogicalStep, SEGMENT, st.integers(1, 10**6), SEGMENT, SEGMENT, SEGMENT)


@given(step=STEP)
def test_a_step_is_read_back_as_it_was_written(step: LogicalStep) -> None:
    assert LogicalStep.parse(str(step)) == step
    assert step.call(2) == f"{step}/2"


@given(one=STEP, other=STEP)
def test_different_steps_have_different_texts(one: LogicalStep, other: LogicalStep) -> None:
    assert (one == other) == (str(one) == str(other))


@given(text=st.text("ag019/._-٣ \n", max_size=20) | st.text(max_size=20))
def test_what_is_read_is_what_would_be_written(text: str) -> None:
    try:
        step = LogicalStep.parse(text)
    except ValueError:
        return
    assert str(step) == text
    assert all(map(is_segment, text.split("/")))


@pytest.mark.parametrize(
    "text",
    ["", "f/g1/q/c", "f/g1/q/c/r/1", "f/1/q/c/r", "f/g01/q/c/r", "f/g/q/c/r", "f/g-1/q/c/r", "/g1/q/c/r",
     "f/g1//c/r", "f/g٣/q/c/r", "f/g1/q/c/r\n", "f /g1/q/c/r"],
)  # fmt: skip
def test_what_is_no_step_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the contract names no more
        LogicalStep.parse(text)


@pytest.mark.parametrize("text", ["a", "q1", "Q_1.b-2", "0"])
def test_segments_stand_between_slashes(text: str) -> None:
    assert is_segment(text)


@pytest.mark.parametrize("text", ["", " ", "a/b", "a b", "a\n", "\na", "é", "题", "a\0"])
def test_what_would_break_an_id_is_no_segment(text: str) -> None:
    assert not is_segment(text)


def test_ids_are_told_apart() -> None:
    made = [
        batch_workflow_id("b", 1),
        batch_workflow_id("b", 2),
        window_workflow_id("b", 1, 0),
        window_workflow_id("b", 2, 0),
        file_workflow_id("b", "f", 1),
        file_workflow_id("b", "f", 2),
        object_key("t", "b", "f", "0a"),
        saga_id("f", 1),
        saga_id("f", 2),
    ]
    assert made == [
        "batch/b",
        "batch/b/g2",
        "batch/b/g1/window/0",
        "batch/b/g2/window/0",
        "batch/b/file/f",
        "batch/b/g2/file/f",
        "t/b/f/0a",
        "f/g1/persist",
        "f/g2/persist",
    ]


GENERATIONS = st.integers(1, 10**9 - 1)


@given(
    ref=st.builds(WorkflowRef, SEGMENT, st.none() | SEGMENT, GENERATIONS)
    | st.builds(WorkflowRef, SEGMENT, generation=GENERATIONS, diagnosis=st.just(True))
)
def test_a_workflows_id_is_read_back_as_it_was_written(ref: WorkflowRef) -> None:
    assert WorkflowRef.parse(str(ref)) == ref


@given(
    text=st.text("batch/fileg01._\n٣", max_size=20) | st.from_regex(r"batch/a/g[0-9]*/?(file/b|diagnosis)?")
)
def test_what_is_read_as_a_workflow_is_what_would_be_written(text: str) -> None:
    try:
        ref = WorkflowRef.parse(text)
    except ValueError:
        return
    assert str(ref) == text


@pytest.mark.parametrize(
    "id_",
    [
        "batch/b/g1",
        "batch/b/g2/window/0",
        "batch/b/g0",
        "batch/b/file/",
        "file/f",
        "batch/b/file/f/diagnosis",
    ],
)
def test_what_is_no_batchs_or_files_workflow_is_refused(id_: str) -> None:
    with pytest.raises(ValueError, match=id_):
        WorkflowRef.parse(id_)

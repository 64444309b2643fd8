"""Property 34: every file ends once, whatever fails."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from hypothesis import strategies as st

from db.postgres.batches import outcome_of
from domain.batch import Batch
from domain.errors import NotFound
from domain.states import FILE_MACHINE
from gateway.scripted import Rule, Script
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, open_batch
from tests.properties.drawing import drawn
from tests.workflows.plant import (
    WatchedModel,
    all_ended,
    answers_to,
    cognition,
    exam_of,
    file_events,
    files_of,
    names,
    orchestration,
    rules_for,
    running,
    start,
    with_worker_settings,
)

LARGE = 60
CANCELLED_BATCHES = 10
SMALL = 4


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a file, and the code it fails with, if it does."""

    rules: tuple[Rule, ...] = ()
    readable: bool = True
    code: str | None = None


FAULTS = st.one_of(
    st.just(Fault()),
    st.integers(1, 2).map(lambda n: Fault((Rule("q1", fail="model_unavailable", times=n),))),
    st.just(Fault((Rule("q2", fail="invalid_json", times=1),))),
    st.just(Fault((Rule("q2", fail="invalid_json"),), code="model_reply_invalid")),
    st.just(Fault((Rule("q1", fail="bad_quote", times=1),))),
    st.just(Fault((Rule("q1", fail="bad_quote"), Rule("q2", fail="model_unavailable", times=1)))),
    st.just(Fault(readable=False, code="unreadable_submission")),
    st.sampled_from([1.0, 3.0]).map(lambda s: Fault((Rule("q1", hang_seconds=s, times=1),))),
)
#: model calls that have begun when the worker is replaced, or the batch cancelled
MOMENTS = st.integers(0, 30)


async def test_every_file_ends_in_exactly_one_final_state(
    resources: Resources, example: Callable[[], None]
) -> None:
    """
    **功能: assay, 属性 34: 文件终态唯一**
    **验证: 需求 B5, B10**

    Under failing models, unreadable files, a worker that is replaced, and batches that are cancelled.
    """
    resources = with_worker_settings(resources, shutdown_seconds=0)
    faults = drawn(FAULTS, LARGE + CANCELLED_BATCHES * SMALL)
    moments = drawn(MOMENTS, 1 + CANCELLED_BATCHES)
    large = await _open(resources, faults[:LARGE], max_concurrent=20)
    small = [
        await _open(resources, faults[first : first + SMALL], max_concurrent=2)
        for first in range(LARGE, len(faults), SMALL)
    ]
    expected = dict(
        zip(
            [file.id for each in (large, *small) for file in await files_of(resources, each)],
            faults,
            strict=True,
        )
    )
    rules = [rule for file_id, fault in expected.items() for rule in rules_for(file_id, *fault.rules)]
    model = WatchedModel(Script(latency_seconds=0.02, rules=tuple(rules)))
    async with running(orchestration(resources)):
        async with running(cognition(resources, model)):
            await start(resources, large, *small)
            cancelling = [
                asyncio.create_task(_cancel(resources, batch, model, moment))
                for batch, moment in zip(small, moments[1:], strict=True)
            ]
            await _calls_begun(model, moments[0])
        async with running(cognition(resources, model)):
            await asyncio.gather(*cancelling)
            ended, *cancelled = await all_ended(resources, large, *small)
    for file_id, state in (await _final_states(resources, ended)).items():
        assert state == ("failed" if expected[file_id].code else "completed"), expected[file_id]
        example()
    codes = {file.id: file.failure_code for file in await files_of(resources, ended)}
    assert codes == {file_id: expected[file_id].code for file_id in codes}
    for batch in cancelled:
        for _ in await _final_states(resources, batch):
            example()


async def _open(resources: Resources, faults: list[Fault], *, max_concurrent: int) -> Batch:
    content = a_submission(answers_to(2))
    return await open_batch(
        resources,
        {
            name: content if fault.readable else b"{"
            for name, fault in zip(names(len(faults)), faults, strict=True)
        },
        exam=exam_of(2),
        max_concurrent=max_concurrent,
    )


async def _calls_begun(model: WatchedModel, calls: int) -> None:
    async with asyncio.timeout(150):
        while model.begun.total() < calls:
            await asyncio.sleep(0.01)


async def _cancel(resources: Resources, batch: Batch, model: WatchedModel, moment: int) -> None:
    await _calls_begun(model, moment)
    with suppress(NotFound):  # it has ended already
        await services(resources).orchestrator.cancel_batch(batch)


async def _final_states(resources: Resources, batch: Batch) -> dict[str, str]:
    """Each file's final state, after checking that there is one, told once, and that the counts agree."""
    told: defaultdict[str, list[str]] = defaultdict(list)
    for file_id, kind, data in await file_events(resources, batch):
        if kind == "StatusChanged":
            assert not told[file_id] or told[file_id][-1] == data["from"], (
                "each move starts where the last ended"
            )
            told[file_id].append(data["to"])
    states = {file.id: str(file.state) for file in await files_of(resources, batch)}
    for file_id, state in states.items():
        ends = [each for each in told[file_id] if each in FILE_MACHINE.final]
        assert ends == [state], (file_id, told[file_id])
    counts = (await services(resources).batches.progress(batch.id)).counts
    assert counts.finished == counts.total == batch.total_files
    assert Counter(states.values()) == {name: n for name, n in vars(counts).items() if n}
    if batch.state != "cancelled":
        assert batch.state == outcome_of(counts)
        assert not counts.cancelled
    return states

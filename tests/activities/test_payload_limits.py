"""A payload over the limit ends what made it, with a code and a name, and is never tried again (X10)."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowFailureError, WorkflowQueryFailedError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.failures import FailureInterceptor
from api.errors import status_of
from domain.errors import PayloadTooLarge
from runtime.payloads import MAX_PAYLOAD_BYTES
from runtime.resources import Resources
from workflows.saga import details_of, failure_of

LARGE = 3 * 1024**2


@dataclass
class Essay:
    title: str
    text: str


@dataclass
class Wish:
    """What a workflow of these tests shall make too large."""

    what: str
    bytes_: int = LARGE


attempts: list[str] = []


@activity.defn
async def write_essay(wish: Wish) -> Essay:
    """An essay of so many bytes."""
    attempts.append(wish.what)
    return Essay("On light", "x" * wish.bytes_)


@activity.defn
async def read_essay(essay: Essay) -> int:
    """How long it is."""
    return len(essay.text)


@activity.defn
async def beat(wish: Wish) -> None:
    """Heartbeat with so many bytes, then wait to be stopped."""
    attempts.append(wish.what)
    activity.heartbeat("x" * wish.bytes_)
    await asyncio.sleep(30)


@workflow.defn
class Writer:
    """Makes one payload too large, as it is told."""

    def __init__(self) -> None:
        self._heard: list[str] = []

    @workflow.run
    async def run(self, wish: Wish) -> Any:
        """What was wished for."""
        options: dict[str, Any] = {"start_to_close_timeout": timedelta(seconds=60)}
        if wish.what == "activity result":
            return (await workflow.execute_activity(write_essay, wish, **options)).title
        if wish.what == "activity input":
            essay = Essay("On light", "x" * wish.bytes_)
            return await workflow.execute_activity(read_essay, essay, **options)
        if wish.what == "heartbeat":
            return await workflow.execute_activity(
                beat, wish, heartbeat_timeout=timedelta(seconds=5), **options
            )
        if wish.what == "result":
            return {"title": "On light", "text": "x" * wish.bytes_}
        await workflow.wait_condition(lambda: bool(self._heard))
        return self._heard

    @workflow.signal
    def hear(self, essay: Essay) -> None:
        """Be told of an essay."""
        self._heard.append(essay.title)

    @workflow.query
    def recite(self) -> Essay:
        """Something too large."""
        return Essay("On light", "x" * LARGE)


@pytest.fixture
async def queue(session_resources: Resources) -> AsyncIterator[str]:
    name = f"payloads-{secrets.token_hex(4)}"
    attempts.clear()
    async with Worker(
        session_resources.temporal,
        task_queue=name,
        workflows=[Writer],
        activities=[write_essay, read_essay, beat],
        interceptors=[FailureInterceptor()],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_heartbeat_throttle_interval=timedelta(milliseconds=100),
        graceful_shutdown_timeout=timedelta(seconds=1),
    ):
        yield name


async def outcome(resources: Resources, queue: str, wish: Wish) -> Any:
    return await resources.temporal.execute_workflow(
        Writer.run, wish, id=f"{queue}-{wish.what}", task_queue=queue, execution_timeout=timedelta(seconds=30)
    )


@pytest.mark.parametrize(
    ("what", "field"),
    [
        ("activity result", "Essay.text"),
        ("activity input", "Essay.text"),
        ("result", "dict.text"),
        ("heartbeat", "str"),
    ],
)
async def test_a_workflow_that_meets_one_ends_at_once_with_its_code(
    session_resources: Resources, queue: str, what: str, field: str
) -> None:
    with pytest.raises(WorkflowFailureError) as failed:
        await outcome(session_resources, queue, Wish(what))
    code, message = failure_of(failed.value.cause)
    assert code == PayloadTooLarge.code
    assert f"{MAX_PAYLOAD_BYTES:,}" in message
    assert details_of(failed.value.cause)["field"] == field
    assert len(attempts) <= 1, "it is not tried again"


async def test_what_is_under_the_limit_passes(session_resources: Resources, queue: str) -> None:
    wish = Wish("activity result", MAX_PAYLOAD_BYTES - 1024)
    assert await outcome(session_resources, queue, wish) == "On light"


async def test_a_start_and_a_signal_are_refused_before_they_are_sent(
    session_resources: Resources, queue: str
) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        await session_resources.temporal.start_workflow(
            Writer.run, Wish("x" * LARGE), id=f"{queue}-start", task_queue=queue
        )
    assert (refused.value.field, status_of(type(refused.value))) == ("Wish.what", 413)
    handle = await session_resources.temporal.start_workflow(
        Writer.run, Wish("signal"), id=f"{queue}-signal", task_queue=queue
    )
    with pytest.raises(PayloadTooLarge, match=r"'text'.*Pass a reference"):
        await handle.signal(Writer.hear, Essay("On light", "x" * LARGE))
    await handle.signal(Writer.hear, Essay("On shade", "x"))
    assert await handle.result() == ["On shade"]


async def test_a_query_over_the_limit_fails_and_not_its_workflow(
    session_resources: Resources, queue: str
) -> None:
    handle = await session_resources.temporal.start_workflow(
        Writer.run, Wish("signal"), id=f"{queue}-query", task_queue=queue
    )
    with pytest.raises(WorkflowQueryFailedError, match="MAX_PAYLOAD_BYTES"):
        await handle.query(Writer.recite)
    await handle.signal(Writer.hear, Essay("On shade", "x"))
    assert await handle.result() == ["On shade"]

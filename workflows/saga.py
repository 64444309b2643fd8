"""Sagas: steps in order, each beside its compensation; on failure undone, last first."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, is_cancelled_exception

from workflows.options import (
    FILE_STEP_TIMEOUT,
    PROMPT_RETRY,
    PROMPT_TIMEOUT,
    STEP_DEADLINE,
    STEP_RETRY,
    STEP_TIMEOUT,
)

Input = TypeVar("Input")
Result = TypeVar("Result")


class Saga:
    """Remembers how to undo what was begun."""

    def __init__(self) -> None:
        self._compensations: list[Callable[[], Awaitable[object]]] = []

    async def step(self, action: Awaitable[Result], *, undo: Callable[[], Awaitable[object]]) -> Result:
        """Run a step; a step that fails may have taken effect, so it is undone too."""
        self._compensations.append(undo)
        return await action

    async def compensate(self) -> None:
        """Undo every step that was begun, last first."""
        while self._compensations:
            await self._compensations[-1]()
            self._compensations.pop()


def durably(
    action: Callable[..., Awaitable[Result]], argument: object, *, timeout: timedelta = STEP_TIMEOUT
) -> Awaitable[Result]:
    """Run a step as a normal activity, tried again until the world answers; `timeout` is one try's."""
    return workflow.execute_activity_method(
        action,
        argument,
        start_to_close_timeout=timeout,
        schedule_to_close_timeout=STEP_DEADLINE,
        retry_policy=STEP_RETRY,
    )


def file_step(action: Callable[..., Awaitable[Result]], argument: object) -> Awaitable[Result]:
    """Run a quick step of one file durably."""
    return durably(action, argument, timeout=FILE_STEP_TIMEOUT)


async def promptly(action: Callable[..., Awaitable[Result]], argument: object) -> Result:
    """Run a step as a local activity, which saves two round trips to the server, else durably."""
    try:
        return await workflow.execute_local_activity_method(
            action,
            argument,
            start_to_close_timeout=PROMPT_TIMEOUT,
            schedule_to_close_timeout=PROMPT_TIMEOUT,
            retry_policy=PROMPT_RETRY,
        )
    except FailureError as error:
        if is_refusal(error) or is_cancelled_exception(error):
            raise
        return await file_step(action, argument)


def is_refusal(error: FailureError) -> bool:
    """Whether trying again is of no use."""
    # the failure of a local activity comes bare, that of a normal one inside an ActivityError
    cause = error.cause if isinstance(error, ActivityError) else error
    return isinstance(cause, ApplicationError) and cause.non_retryable


def failure_of(error: BaseException) -> tuple[str, str]:
    """The code and the message of the condition behind an activity's or a child's failure."""
    cause: BaseException = error
    while not isinstance(cause, ApplicationError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ApplicationError):
        return cause.type or "defect", cause.message
    # a time-out or a termination: Temporal's own words
    return _snake(type(cause).__name__), str(cause)


def details_of(error: BaseException) -> Mapping[str, Any]:
    """What the condition behind a failure states beside its message."""
    cause = error.cause if isinstance(error, ActivityError) else error
    details = cause.details if isinstance(cause, ApplicationError) else ()
    return details[0] if details and isinstance(details[0], dict) else {}


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")

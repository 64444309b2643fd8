"""Every condition reaches the workflows with its code and its decision whether to try again."""

import asyncio
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory, CancelledError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.failures import FailureInterceptor, to_application_error
from domain.errors import AssayError, Defect


def conditions(root: type[AssayError] = AssayError) -> list[type[AssayError]]:
    """The tree, root first; the domain's alone, as tests and the runtime may have their own."""
    children = [each for each in root.__subclasses__() if each.__module__ == "domain.errors"]
    return [root, *(each for child in children for each in conditions(child))]


class Failing(ActivityInboundInterceptor):
    """The end of the chain: an activity that fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def execute_activity(self, input: ExecuteActivityInput) -> None:  # noqa: A002  # Temporal's name
        """Raise what was given."""
        raise self.error


async def failure(error: BaseException) -> BaseException:
    """What a worker sees of an activity that raises this."""
    chain = FailureInterceptor().intercept_activity(Failing(error))
    call = ExecuteActivityInput(fn=failure, args=[], executor=None, headers={})

    async def run() -> None:
        await chain.execute_activity(call)

    try:
        await ActivityEnvironment().run(run)
    except BaseException as raised:  # noqa: BLE001  # also a cancellation
        return raised
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("condition", conditions(), ids=lambda each: each.code)
async def test_every_condition_is_translated_as_its_class_decides(condition: type[AssayError]) -> None:
    translated = await failure(condition("It happened.", field="q1"))
    assert isinstance(translated, ApplicationError)
    assert translated.type == condition.code
    assert translated.message == "It happened."
    assert translated.non_retryable is not condition.retryable
    assert list(translated.details) == [condition("It happened.", field="q1").facts()]
    assert translated.details[0]["field"] == "q1"
    seconds = condition.retry_after_seconds
    assert translated.next_retry_delay == (None if seconds is None else timedelta(seconds=seconds))
    benign = translated.category is ApplicationErrorCategory.BENIGN
    assert benign == condition.expected


def test_every_condition_has_a_code_of_its_own() -> None:
    codes = [each.code for each in conditions()]
    assert len(codes) == len(set(codes))


def test_a_condition_without_a_field_has_no_details() -> None:
    assert list(to_application_error(AssayError("It happened.")).details) == []


async def test_an_error_that_no_class_describes_is_a_defect_and_tried_again() -> None:
    translated = await failure(KeyError("q7"))
    assert isinstance(translated, ApplicationError)
    assert translated.type == Defect.code
    assert translated.message == "KeyError: 'q7'"
    assert not translated.non_retryable


async def test_a_defects_message_is_cut() -> None:
    translated = await failure(ValueError("x" * 1_500))
    assert isinstance(translated, ApplicationError)
    assert len(translated.message) == 1000


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), CancelledError("by request"), ApplicationError("own")]
)
async def test_what_temporal_understands_passes_unchanged(error: BaseException) -> None:
    assert await failure(error) is error

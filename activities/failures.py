"""The translator from domain errors to Temporal's, in one interceptor; the other one is `api/errors.py`."""

import asyncio
from datetime import timedelta
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory, FailureError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from domain.errors import AssayError, Defect

#: the names under which an activity's input carries its context into every log line
_CONTEXT = ("trace_id", "tenant_id", "batch_id", "file_id")

#: a failure is a payload, too, in the history of whoever waits for it
_MESSAGE_LENGTH = 10_000


def to_application_error(error: AssayError) -> ApplicationError:
    """The error as workflows see it: its code as type, retryable as its class decides."""
    return ApplicationError(
        error.message[:_MESSAGE_LENGTH],
        *([facts] if (facts := error.facts()) else []),
        type=error.code,
        non_retryable=not error.retryable,
        next_retry_delay=(
            timedelta(seconds=error.retry_after_seconds) if error.retry_after_seconds is not None else None
        ),
        category=ApplicationErrorCategory.BENIGN if error.expected else ApplicationErrorCategory.UNSPECIFIED,
    )


class FailureInterceptor(Interceptor):
    """Gives every activity its log context and its errors their codes."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """Temporal's hook."""
        return _Translating(super().intercept_activity(next))


class _Translating(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        with bound_contextvars(**_context(input), activity=info.activity_type, attempt=info.attempt):
            try:
                return await self.next.execute_activity(input)
            except AssayError as error:
                log = structlog.get_logger("assay.activities")
                (log.info if error.expected else log.error)(
                    "activity_failed", code=error.code, reason=str(error)
                )
                raise to_application_error(error) from error
            except (FailureError, asyncio.CancelledError):
                raise
            except Exception as error:
                # an error that no class describes: said loudly, and tried again as often as the policy allows
                structlog.get_logger("assay.activities").exception("activity_defect")
                raise ApplicationError(f"{type(error).__name__}: {error}"[:1000], type=Defect.code) from error


def _context(input_: ExecuteActivityInput) -> dict[str, str]:
    argument = input_.args[0] if input_.args else None
    found = {name: getattr(argument, name, "") for name in _CONTEXT}
    return {name: value for name, value in found.items() if value}

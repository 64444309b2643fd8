"""Signals from workflow to workflow: by id, not by run, as a reset gives a workflow another run."""

from collections.abc import Awaitable

from temporalio import workflow
from temporalio.exceptions import ApplicationError
from temporalio.workflow import ParentInfo


async def tell(parent: ParentInfo | None, signal: str, argument: object) -> None:
    """Signal the parent; a workflow that was started alone has nobody to tell."""
    if parent is not None:
        handle = workflow.get_external_workflow_handle(parent.workflow_id)
        await unless_ended(handle.signal(signal, argument))


async def unless_ended(signal: Awaitable[None]) -> None:
    """Send the signal; a workflow that has ended in the meantime need not hear it."""
    try:
        await signal
    except ApplicationError as error:
        if error.type != "ExternalWorkflowExecutionNotFound":
            raise

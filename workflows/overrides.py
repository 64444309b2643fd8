"""OverrideWorkflow: a human's marks as a saga: database, cache, notification (G4.2)."""

from dataclasses import dataclass

from temporalio import workflow
from temporalio.exceptions import FailureError

with workflow.unsafe.imports_passed_through():
    from activities.overrides import OverrideActivities, RetractInput
    from domain.errors import SagaCompleted
    from domain.overrides import Override

from workflows.attributes import NEEDS_INTERVENTION, STAGE
from workflows.saga import Saga, failure_of, file_step, promptly


@dataclass
class OverrideResult:
    """How the saga ended: `completed`, or `compensated` with the code of the failure."""

    status: str
    code: str | None = None


@workflow.defn
class OverrideWorkflow:
    """Overrides one mark, or leaves everything as it was."""

    def __init__(self) -> None:
        self._retries = 0

    @workflow.run
    async def run(self, input: Override) -> OverrideResult:
        """Apply, cache, tell; a failure undoes what was done, last first."""
        saga, code = Saga(), None
        retraction = RetractInput(input, "")
        try:
            await saga.step(
                file_step(OverrideActivities.apply_override, input),
                undo=lambda: file_step(OverrideActivities.retract_override, retraction),
            )
            await saga.step(
                promptly(OverrideActivities.cache_override, input),
                undo=lambda: file_step(OverrideActivities.void_override, input),
            )
            await saga.step(
                promptly(OverrideActivities.tell_override, input),
                undo=lambda: file_step(OverrideActivities.tell_retraction, input),
            )
        except FailureError as error:
            retraction.reason = ": ".join(failure_of(error))
            if await self._is_undone(saga, retraction):
                code = failure_of(error)[0]
        result = OverrideResult("completed" if code is None else "compensated", code)
        workflow.upsert_search_attributes([STAGE.value_set(result.status)])
        return result

    @workflow.signal
    def retry(self) -> None:
        """A human has seen to what the saga waits for."""
        self._retries += 1

    async def _is_undone(self, saga: Saga, retraction: RetractInput) -> bool:
        """Undo the steps, as a file's saga does; `False` where the last one had completed it."""
        while True:
            retries = self._retries
            try:
                await saga.compensate()
            except FailureError as error:
                code, message = failure_of(error)
                if code == SagaCompleted.code:
                    return False
                reason = f"{retraction.reason}; then, undoing it: {code}: {message}"
                await file_step(OverrideActivities.flag_override, RetractInput(retraction.override, reason))
                workflow.upsert_search_attributes([NEEDS_INTERVENTION.value_set(True)])
                await workflow.wait_condition(lambda: self._retries > retries)  # noqa: B023  # awaited here
                workflow.upsert_search_attributes([NEEDS_INTERVENTION.value_set(False)])
            else:
                return True

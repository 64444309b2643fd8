"""Between two steps of a graph: what has happened outside comes in, and into its state (G2.2).

Agents never see Temporal: what must reach them stands in Postgres, and is read at the step's beginning.
What a step has heard is saved with the step, under the event's id. A step that is repeated after a crash
hears the same events again, and the state has each of them once.
"""

from collections.abc import Mapping
from typing import Any

import structlog
from langgraph.types import Command

# pydantic reads no TypedDict of `typing` before Python 3.12
from typing_extensions import TypedDict

from domain.batch import Pause
from domain.errors import BudgetExhausted, Unavailable
from domain.external_events import News, Outside
from domain.identity import WorkflowRef

#: of the events that a graph has heard; all of them are in its state
EVENTS_SHOWN = 20


class Heard(TypedDict):
    """An external event in a state; `data` is JSON, `None` where it is too long to be repeated here."""

    event_id: str
    type: str
    data: str | None
    received_at: str


class BatchSeen(TypedDict, total=False):
    """How the batch stood when the graph last looked: a pause and a raised limit show here."""

    state: str
    resumptions: int
    limit_nanodollars: int | None
    changed_at: str


def merge_events(known: dict[str, Heard], new: dict[str, Heard]) -> dict[str, Heard]:
    """The events by their keys; one that is heard again is the same event."""
    return {**new, **known}


def newest_events(values: Mapping[str, Any]) -> list[str]:
    """The ids of the newest events that a state has, oldest first."""
    heard: Mapping[str, Heard] = values.get("external_events", {})
    ordered = sorted(heard.values(), key=lambda each: each["received_at"])
    return [each["event_id"] for each in ordered[-EVENTS_SHOWN:]]


class Boundary:
    """Hears for one run of a graph what has happened outside; without an outside, nothing."""

    def __init__(self, outside: Outside | None = None, workflow: WorkflowRef | None = None) -> None:
        self._outside = outside
        self._workflow = workflow
        #: the pause for which the run is to end after this step: its calls would only be refused (B5.4)
        self.stopped_by: Pause | None = None

    async def hear(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], Pause | None]:
        """What the state has not heard yet, as an update of it; and the pause that the batch is in."""
        if self._outside is None or self._workflow is None:
            return {}, None
        known: Mapping[str, Heard] = state.get("external_events", {})
        # a fork begins with what another generation has heard, under ids of its own
        prefix = f"g{self._workflow.generation}/"
        ids = [each["event_id"] for key, each in known.items() if key.startswith(prefix)]
        try:
            news = await self._outside.news(self._workflow, ids)
        except Unavailable as error:
            # the next step asks again; whether the run can go on is for the saving of this one to say
            structlog.get_logger("assay.agents").info("news_not_read", code=error.code)
            return {}, None
        return ({}, None) if news is None else (_update(news, prefix, state.get("batch", {})), news.pause)

    def stop(self, pause: Pause, update: Mapping[str, Any], node: str) -> Command[Any]:
        """Let the run end after this step, as the batch is paused; the next one begins with that node."""
        self.stopped_by = pause
        return Command(update=update, goto=node)


def refusal_of(pause: Pause) -> BudgetExhausted:
    """The condition with which a run ends that a pause has stopped."""
    return BudgetExhausted(
        f"The batch is paused: the limit of the {pause.scope} has refused a call.",
        scope=pause.scope,
        missing_nanodollars=pause.missing_nanodollars,
    )


def _update(news: News, prefix: str, known: Mapping[str, Any]) -> dict[str, Any]:
    events = {
        f"{prefix}{each.event_id}": Heard(
            event_id=each.event_id, type=each.type, data=each.data, received_at=each.received_at
        )
        for each in news.events
    }
    batch = BatchSeen(
        state=news.batch_state.value,
        resumptions=news.resumptions,
        limit_nanodollars=news.limit_nanodollars,
        changed_at=news.changed_at,
    )
    return ({"external_events": events} if events else {}) | ({"batch": batch} if batch != known else {})

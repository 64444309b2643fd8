"""What a workflow has heard from outside: each event once, the newest kept (G6.2)."""

from collections import deque

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from domain.external_events import MAX_EVENTS, ExternalEvent

#: events with all their data: together less than one payload may have
_KEPT = 20
#: bare messages are not counted as stored ones are
_REMEMBERED = 2 * MAX_EVENTS


class ReceivedEvents:
    """The events that a workflow has heard, by their ids."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._kept: deque[ExternalEvent] = deque(maxlen=_KEPT)

    def take(self, event: ExternalEvent) -> bool:
        """Keep the event, unless it was heard before; answers whether it is new."""
        if event.event_id in self._ids:
            return False
        self._ids[event.event_id] = None
        if len(self._ids) > _REMEMBERED:
            del self._ids[next(iter(self._ids))]
        self._kept.append(event)
        return True

    def newest(self) -> list[ExternalEvent]:
        """The newest events, oldest first."""
        return list(self._kept)

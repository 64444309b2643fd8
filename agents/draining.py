"""Stops a graph between two steps, when its worker shuts down."""

from collections.abc import Callable

from langgraph.runtime import RunControl


class Draining(RunControl):
    """Asks whether to drain at the moment when the graph wants to know: between two steps."""

    __slots__ = ("_asked",)

    def __init__(self, asked: Callable[[], bool]) -> None:
        super().__init__()
        self._asked = asked

    @property
    def drain_requested(self) -> bool:
        """Whether the graph should stop now."""
        if self._asked():
            self.request_drain()
        return super().drain_requested

"""What an operator sets of a batch's run; free of Temporal, so that settings are read without it."""

from dataclasses import dataclass
from datetime import timedelta

#: files, and so children, of one window: at 10 to 14 events each, its history stays under 7,500
#: of the 51,200 that Temporal takes (B3.1, X11)
WINDOW_FILES = 500


@dataclass
class Timings:
    """What an operator may set; it travels in the input, so that a running batch keeps its own."""

    #: a worker's death is noticed after this long
    heartbeat_timeout_seconds: float = 10.0
    #: the workflow's copy of the agent's state is never older (G2.2)
    state_interval_seconds: float = 30.0
    #: how long a dead worker's workflow task is waited for
    task_timeout_seconds: float = 10.0

    @property
    def heartbeat_timeout(self) -> timedelta:
        """As Temporal takes it."""
        return timedelta(seconds=self.heartbeat_timeout_seconds)

    @property
    def task_timeout(self) -> timedelta:
        """As Temporal takes it."""
        return timedelta(seconds=self.task_timeout_seconds)

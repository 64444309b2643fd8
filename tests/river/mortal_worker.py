"""A worker for agents that gives itself a signal, once, at one moment of a call's payment.

Usage: python -m tests.river.mortal_worker [MOMENT NUMBER SIGNAL MARKER]

The moment is `before` or `after` one of the ledger's steps, such as `after-settle`: the step's transaction is
not begun, or it is committed. The marker is a file that tells which call it was; where it exists, another
process has had its moment. Settings come from the environment.
"""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from domain.completion import Fence
from domain.ledger import (
    DoubtRule,
    Hold,
    JournalEntry,
    LedgerCall,
    Replayed,
    Settlement,
    Underway,
)
from runtime.resources import connect_temporal, open_resources
from runtime.settings import Settings
from runtime.telemetry import configure_logs
from runtime.tether import tether
from runtime.worker import cognition_worker, serving


@dataclass
class Fate:
    """Which signal comes, and when."""

    moment: str
    #: the signal comes when the moment is reached for this time, from one on
    number: int
    signal: signal.Signals
    marker: Path
    reached: int = field(default=0, init=False)

    def meet(self, moment: str, call: LedgerCall) -> None:
        """Give this process its signal if this is the moment, and nobody had it before."""
        if moment != self.moment:
            return
        self.reached += 1
        if self.reached == self.number and self._mark(call):
            os.kill(os.getpid(), self.signal)

    def _mark(self, call: LedgerCall) -> bool:
        try:
            with self.marker.open("x") as file:
                file.write(call.key.step)
        except FileExistsError:
            return False
        return True


class MortalLedger(PostgresLedger):
    """The ledger of a process that has a fate."""

    def __init__(self, ledger: PostgresLedger, postgres: Postgres, fate: Fate) -> None:
        super().__init__(ledger.writer, ledger.books, postgres)
        self._fate = fate

    async def begin(
        self, call: LedgerCall, *, dispatch: bool = False, fence: Fence | None = None
    ) -> Hold | Replayed | Underway:
        """As the ledger's."""
        self._fate.meet("before-begin", call)
        began = await super().begin(call, dispatch=dispatch, fence=fence)
        self._fate.meet("after-begin", call)
        return began

    async def settle(self, hold: Hold, settlement: Settlement) -> JournalEntry:
        """As the ledger's."""
        self._fate.meet("before-settle", hold.call)
        entry = await super().settle(hold, settlement)
        self._fate.meet("after-settle", hold.call)
        return entry

    async def cancel(self, hold: Hold, reason: str) -> None:
        """As the ledger's."""
        self._fate.meet("before-cancel", hold.call)
        await super().cancel(hold, reason)
        self._fate.meet("after-cancel", hold.call)

    async def doubt(self, hold: Hold, reason: str, rule: DoubtRule | None = None) -> None:
        """As the ledger's."""
        self._fate.meet("before-doubt", hold.call)
        await super().doubt(hold, reason, rule)
        self._fate.meet("after-doubt", hold.call)


async def serve(fate: Fate | None) -> None:
    """Assess until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings()
    temporal = await connect_temporal(settings, name="mortal-worker", lazy=False)
    async with open_resources(settings, name="mortal-worker", temporal=temporal) as opened:
        resources = opened
        if fate is not None:
            resources = replace(opened, ledger=MortalLedger(opened.ledger, opened.postgres, fate))
        async with serving(resources, [cognition_worker(resources)], relay=False):
            await stop.wait()


def main(arguments: list[str]) -> None:
    """Serve with the fate that the command line tells, if any."""
    # no test that is killed leaves a worker behind
    tether(signal.SIGKILL, os.getppid())
    configure_logs(Settings().log, process="mortal-worker")
    fate = None
    if arguments:
        moment, number, name, marker = arguments
        fate = Fate(moment, int(number), signal.Signals[name], Path(marker))
    asyncio.run(serve(fate))


if __name__ == "__main__":
    main(sys.argv[1:])

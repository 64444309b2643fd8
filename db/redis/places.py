"""Who waits in this process for a place of a limit of calls at once: a place given back wakes the first one."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

#: more limits than a process sees in the moment between a refusal and its wait
_UNCLAIMED_KEPT = 10_000


class PlaceLines:
    """A line for each key of places, first come first woken; whoever is woken asks again like anybody else."""

    def __init__(self) -> None:
        self._lines: dict[str, OrderedDict[asyncio.Future[None], None]] = {}
        #: places given back while nobody stood in line: who was refused just before need not wait for its own
        self._unclaimed: OrderedDict[str, None] = OrderedDict()

    async def wait(self, keys: Sequence[str], seconds: float) -> None:
        """Come back when one of them has a place again, at the latest after so long."""
        if self._claim(keys):
            return
        woken = asyncio.get_running_loop().create_future()
        for key in keys:
            self._lines.setdefault(key, OrderedDict())[woken] = None
        try:
            await asyncio.wait([woken], timeout=seconds)
        except asyncio.CancelledError:
            if woken.done():
                self._pass_on(keys)
            raise
        finally:
            for key in keys:
                self._leave(key, woken)

    def freed(self, key: str) -> None:
        """A place was given back."""
        if not self.wake(key):
            self._unclaimed[key] = None
            if len(self._unclaimed) > _UNCLAIMED_KEPT:
                self._unclaimed.popitem(last=False)

    def wake(self, key: str) -> bool:
        """There is room: the first in line is woken; answers whether there was one."""
        for woken in self._lines.get(key, ()):
            if not woken.done():
                woken.set_result(None)
                return True
        return False

    def _claim(self, keys: Sequence[str]) -> bool:
        for key in keys:
            if key in self._unclaimed:
                del self._unclaimed[key]
                return True
        return False

    def _pass_on(self, keys: Sequence[str]) -> None:
        """Who was woken has gone: the place is the next one's."""
        for key in keys:
            self.wake(key)

    def _leave(self, key: str, woken: "asyncio.Future[None]") -> None:
        line = self._lines[key]
        del line[woken]
        if not line:
            del self._lines[key]

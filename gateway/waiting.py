"""What a call waits for, and how long: one deadline from the moment of its arrival on (L10)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from time import monotonic

import structlog

from domain.errors import AssayError, ModelUnavailable, RateLimited
from domain.gateway import RateLimit
from domain.ledger import FactKind
from gateway.context import Context

#: other attempts whose call one call waits for; each is as long as its reply may take
MOST_WAITS = 60
#: between two looks at a limit that calls under way have filled
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 5.0
#: between two looks at a call that another attempt has under way
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.1, 1.0
#: between two tries for a place that another process may give back; this one's own come at once
FIRST_TRY_SECONDS, LONGEST_TRY_SECONDS = 0.05, 1.0


async def sleep_until(moment: datetime) -> None:
    """Wait for that moment."""
    await asyncio.sleep(max(0.0, (moment - datetime.now(UTC)).total_seconds()))


class Later(Exception):
    """The call cannot go on now; `condition` is what its caller hears if it does not wait."""

    def __init__(
        self,
        condition: AssayError,
        reason: str,
        seconds: float = 0.0,
        *,
        passed_over: Iterable[str] = (),
        retry: bool = False,
    ) -> None:
        super().__init__(reason)
        self.condition = condition
        self.reason = reason
        #: until it is worth another try
        self.seconds = seconds
        #: models that this call does not ask again
        self.passed_over = frozenset(passed_over)
        #: whether an upstream that refused this very call is asked again
        self.retry = retry


def full_places(refusal: RateLimited) -> tuple[RateLimit, ...]:
    """The limits of calls at once that refuse; none where a rate needs longer than they are looked at."""
    if (refusal.retry_after_seconds or 0.0) > LONGEST_TRY_SECONDS:
        return ()
    return tuple(each.limit for each in refusal.states if each.limit.unit == "calls" and each.left < 1)


class Tries:
    """How long one call waits for a place before it tries again: not long at first."""

    def __init__(self) -> None:
        self._next_seconds = FIRST_TRY_SECONDS

    def next(self) -> float:
        """The seconds until the next try, unless a place is free sooner."""
        seconds = self._next_seconds
        self._next_seconds = min(2 * seconds, LONGEST_TRY_SECONDS)
        return seconds


class UpstreamFull(Later):
    """Every upstream takes as many calls as it may; `freed` waits for a place, at most so long."""

    def __init__(self, condition: AssayError, freed: Callable[[float], Awaitable[None]]) -> None:
        super().__init__(condition, "upstream_full")
        self.freed = freed


class NoRoom(Later):
    """A limit of money is full for as long as calls under way hold their worst case."""

    def __init__(self, condition: AssayError, most_seconds: float) -> None:
        super().__init__(condition, condition.code)
        self.most_seconds = most_seconds


class UnderwayElsewhere(Later):
    """Another attempt has dispatched the call; its reply comes until then, or never."""

    def __init__(self, key: str, until: datetime) -> None:
        message = f"{key}: other attempts are at this call again and again."
        super().__init__(ModelUnavailable(message), "underway")
        self.key = key
        self.until = until


class Waits:
    """The waits of one call; told as facts at its end, one for each reason."""

    def __init__(self, context: Context, wait_until: Callable[[datetime], Awaitable[None]]) -> None:
        self._context = context
        self._wait_until = wait_until
        self._waited: dict[tuple[FactKind, str], tuple[int, float]] = {}
        self._deadlines: set[datetime] = set()
        self._look_seconds = FIRST_LOOK_SECONDS
        self._next_seconds = FIRST_WAIT_SECONDS
        self._tries = Tries()
        self._in_line_seconds = 0.0

    async def wait(self, later: Later) -> None:
        """Wait until it is worth another try; raises the condition where that would be too long."""
        began = monotonic()
        try:
            match later:
                case UnderwayElsewhere():
                    await self._look_again(later)
                case NoRoom():
                    await self._stand_in_line(later)
                case UpstreamFull():
                    await self._wait_for_place(later)
                case _ if later.seconds:
                    await self._keep_off(later)
        finally:
            self._note(later, monotonic() - began)

    @property
    def facts(self) -> Iterable[tuple[FactKind, dict[str, str | int]]]:
        """What was waited for, how long and how often."""
        for (kind, reason), (rounds, seconds) in self._waited.items():
            yield kind, {"reason": reason, "waited_ms": round(seconds * 1000), "rounds": rounds}

    async def _look_again(self, underway: UnderwayElsewhere) -> None:
        """The reply may come sooner than the last moment for it, so it is looked for again and again."""
        if underway.until not in self._deadlines:
            self._deadlines.add(underway.until)
            self._look_seconds = FIRST_LOOK_SECONDS
            structlog.get_logger("assay.gateway").info(
                "call_underway", key=underway.key, until=underway.until.isoformat()
            )
        if len(self._deadlines) > MOST_WAITS:
            raise underway.condition
        next_look = datetime.now(UTC) + timedelta(seconds=self._look_seconds)
        self._look_seconds = min(2 * self._look_seconds, LONGEST_LOOK_SECONDS)
        await self._wait_until(min(next_look, underway.until))

    async def _stand_in_line(self, full: NoRoom) -> None:
        # a hold is the worst case, several times the cost: ten at once may be refused what one may have
        left = self._most_seconds(full) - self._in_line_seconds
        if left <= 0:
            raise full.condition
        seconds = min(self._next(), left)
        self._in_line_seconds += seconds
        await asyncio.sleep(seconds)

    def _most_seconds(self, full: NoRoom) -> float:
        if self._context.caller is None:
            return full.most_seconds
        patience = self._context.request.patience
        return patience.max_wait_timeout_s if patience.wait_on_rate_limit else 0.0

    async def _keep_off(self, later: Later) -> None:
        patience = self._context.request.patience
        most = patience.retry_budget_s if later.retry else patience.max_wait_timeout_s
        # an upstream that asks for no wait at all, again and again, gets longer ones
        seconds = max(later.seconds, self._next())
        if not patience.wait_on_rate_limit or monotonic() + seconds > self._context.arrived + most:
            raise later.condition
        await asyncio.sleep(seconds)

    async def _wait_for_place(self, full: UpstreamFull) -> None:
        patience = self._context.request.patience
        left = self._context.arrived + patience.max_wait_timeout_s - monotonic()
        if not patience.wait_on_rate_limit or left <= 0:
            raise full.condition
        await full.freed(min(self._tries.next(), left))

    def _next(self) -> float:
        seconds = self._next_seconds
        self._next_seconds = min(2 * seconds, LONGEST_WAIT_SECONDS)
        return seconds

    def _note(self, later: Later, seconds: float) -> None:
        kind = FactKind.RETRIED if later.retry else FactKind.WAITED
        rounds, before = self._waited.get((kind, later.reason), (0, 0.0))
        self._waited[kind, later.reason] = (rounds + 1, before + seconds)

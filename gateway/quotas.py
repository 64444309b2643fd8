"""The step `check_quota`: waits for the caller's rate limits, or refuses, before anything is held or sent."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic

from domain.errors import AssayError, ModelUnavailable, RateLimited, Unavailable
from domain.gateway import Permit, Quotas, RateLimit, RateLimits
from domain.ledger import FactKind, LedgerFact
from gateway.context import Context, QuotaChecked
from gateway.waiting import Tries, full_places

#: a place that nobody gives back, for its process was killed, is free again after so long; a living process
#: renews its own, however long a call lasts
LEASE_SECONDS = 45.0
#: a tenant's limits are read again after so long
LIMITS_SECONDS = 60.0
LIMITS_KEPT = 10_000


async def no_limits(tenant_id: str) -> Sequence[RateLimit]:
    """No tenant is limited."""
    return ()


class QuotaStep:
    """Grants a call its place under the rate limits, and refuses it when a budget is spent.

    `limits_of` answers the limits of a tenant for its agents, who have no caller; they are kept a minute.
    `record` hears of every call that waited, and how that ended (L10).
    """

    def __init__(
        self,
        limits: RateLimits,
        quotas: Quotas | None,
        *,
        record: Callable[[LedgerFact], Awaitable[None]],
        limits_of: Callable[[str], Awaitable[Sequence[RateLimit]]] = no_limits,
        lease_seconds: float = LEASE_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._limits = limits
        self._quotas = quotas
        self._record = record
        self._limits_of = limits_of
        self._lease_seconds = lease_seconds
        self._sleep = sleep
        self._now = now
        self._known: OrderedDict[str, tuple[Sequence[RateLimit], float]] = OrderedDict()

    @asynccontextmanager
    async def checked(self, context: Context, tokens: int) -> AsyncIterator[QuotaChecked]:
        """What the call was granted; its place is given back at the end of the block, whatever ends it.

        `tokens` is the most that it may use: what goes in, and what may come out. Raises `RateLimited`,
        `LimitExceeded` for a call that no wait would let through, and `BudgetExhausted`.
        """
        permit = await self._permit(context, tokens)
        checked = QuotaChecked(permit, permit.states)
        try:
            if self._quotas is not None:
                await self._quotas.check(context.payer)
            yield checked
        except AssayError as error:
            # what was refused used nothing; nobody knows what became of a doubt
            doubtful = isinstance(error, ModelUnavailable) and error.in_doubt
            await self.release(context, checked, None if doubtful else 0)
            raise
        finally:
            await self.release(context, checked)

    async def give_back(self, context: Context) -> None:
        """End the grant of an answered call: it used what its reply says, or nothing as a replay."""
        if context.quota is not None and context.settled is not None:
            usage = context.settled.entry.reply.usage
            used = 0 if context.replayed else usage.tokens_in + usage.tokens_out
            await self.release(context, context.quota, used)

    async def release(self, context: Context, checked: QuotaChecked, tokens_used: int | None = None) -> None:
        """Give the place back, and the tokens that were not used; only the first time. Never raises."""
        if checked.permit is not None:
            await self._limits.release(context.payer.tenant_id, checked.permit, tokens_used=tokens_used)

    async def _permit(self, context: Context, tokens: int) -> Permit:
        """Ask until it is granted, or until the next wait would pass the one deadline (L10)."""
        limits, began, rounds, refusal = await self._limits_for(context), self._now(), 0, None
        tries = Tries()
        while True:
            try:
                permit = await self._acquire(context, limits, tokens)
            except RateLimited as error:
                refusal = error
                if not self._may_wait(context, error):
                    await self._say(context, error, rounds, began, "refused")
                    raise
                rounds += 1
                await self._wait(context, error, tries)
            else:
                await self._say_granted(context, permit, refusal, rounds, began)
                return permit

    async def _acquire(self, context: Context, limits: Sequence[RateLimit], tokens: int) -> Permit:
        return await self._limits.acquire(
            context.payer.tenant_id, limits, tokens=tokens, lease_seconds=self._lease_seconds
        )

    def _may_wait(self, context: Context, refusal: RateLimited) -> bool:
        """Whether the rate lets the call pass in time; a place may be given back any moment until then."""
        if not context.request.patience.wait_on_rate_limit:
            return False
        if full_places(refusal):
            return self._seconds_left(context) > 0
        return (refusal.retry_after_seconds or 0.0) <= self._seconds_left(context)

    async def _wait(self, context: Context, refusal: RateLimited, tries: Tries) -> None:
        if full := full_places(refusal):
            seconds = min(tries.next(), self._seconds_left(context))
            await self._limits.freed(context.payer.tenant_id, full, within_seconds=seconds)
        else:
            await self._sleep(refusal.retry_after_seconds or 0.0)

    def _seconds_left(self, context: Context) -> float:
        return context.arrived + context.request.patience.max_wait_timeout_s - self._now()

    async def _limits_for(self, context: Context) -> Sequence[RateLimit]:
        if context.caller is not None:
            return context.caller.limits
        tenant_id = context.payer.tenant_id
        limits, read_at = self._known.get(tenant_id, ((), float("-inf")))
        if self._now() - read_at > LIMITS_SECONDS:
            limits = await self._limits_of(tenant_id)
            self._known[tenant_id] = (limits, self._now())
            if len(self._known) > LIMITS_KEPT:
                self._known.popitem(last=False)
        return limits

    async def _say_granted(
        self, context: Context, permit: Permit, refusal: RateLimited | None, rounds: int, began: float
    ) -> None:
        try:
            await self._say(context, refusal, rounds, began, "answered")
        except BaseException:
            # nobody else knows of the permit yet, which would be renewed for ever
            await self._limits.release(context.payer.tenant_id, permit, tokens_used=0)
            raise

    async def _say(
        self, context: Context, refusal: RateLimited | None, rounds: int, began: float, outcome: str
    ) -> None:
        """A fact of the wait; one that never was is none, or who is refused would fill the disk."""
        if refusal is None or not rounds:
            return
        waited_ms = round((self._now() - began) * 1000)
        data = {"reason": refusal.limit, "waited_ms": waited_ms, "rounds": rounds, "outcome": outcome}
        fact = LedgerFact(
            FactKind.WAITED, context.payer, context.key.id, None, context.request.trace_id, data
        )
        with suppress(Unavailable):  # facts that may be lost
            await self._record(fact)

"""The step `check_quota`: waits for the caller's rate limits, or refuses, before anything is held or sent."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic

from domain.completion import Payer
from domain.errors import RateLimited, Unavailable
from domain.gateway import Permit, Quotas, RateLimit, RateLimits
from domain.ledger import CallKey, FactKind, LedgerFact
from gateway.context import Context, QuotaChecked

#: a place that nobody gives back is free again after so long; no call with all its retries lasts longer
LEASE_SECONDS = 900.0
#: limits of a tenant are read again after so long
LIMITS_SECONDS = 60.0
LIMITS_KEPT = 1_000


async def no_limits(payer: Payer) -> Sequence[RateLimit]:
    """No tenant is limited."""
    return ()


@dataclass
class _Wait:
    """What one call has waited for, so far."""

    began: float
    rounds: int = 0
    limit: str = ""


class QuotaStep:
    """Grants a call its place under the rate limits, and refuses it when a budget is spent.

    `limits_of` answers the limits of a payer without a caller, which is an agent's tenant; they are kept a
    minute. `record` hears of every wait (L10).
    """

    def __init__(
        self,
        limits: RateLimits,
        quotas: Quotas | None,
        *,
        record: Callable[[LedgerFact], Awaitable[None]],
        limits_of: Callable[[Payer], Awaitable[Sequence[RateLimit]]] = no_limits,
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
        self._known: OrderedDict[Payer, tuple[Sequence[RateLimit], float]] = OrderedDict()

    @asynccontextmanager
    async def checked(self, context: Context, tokens: int) -> AsyncIterator[QuotaChecked]:
        """What the call was granted; its place is given back at the end of the block, whatever ends it.

        `tokens` is the most that it may use: what goes in, and what may come out. Raises `RateLimited`,
        `LimitExceeded` for a call that no wait would let through, and `BudgetExhausted`.
        """
        payer = _payer(context)
        limits = await self._limits_for(context, payer)
        permit = await self._permit(context, payer, limits, tokens)
        checked = QuotaChecked(permit, permit.states)
        try:
            if self._quotas is not None:
                await self._quotas.check(payer)
            yield checked
        except BaseException:
            # whatever it did use is in the ledger; the rate of a call that failed is given back
            await asyncio.shield(self.release(context, checked, tokens_used=0))
            raise
        else:
            await asyncio.shield(self.release(context, checked))

    async def release(self, context: Context, checked: QuotaChecked, tokens_used: int | None = None) -> None:
        """Give the place back, and the tokens that were not used; the first time only. Never raises."""
        if checked.permit is not None:
            await self._limits.release(
                _payer(context).tenant_id, checked.permit, tokens_used=tokens_used
            )

    async def _limits_for(self, context: Context, payer: Payer) -> Sequence[RateLimit]:
        if context.caller is not None:
            return context.caller.limits
        limits, read_at = self._known.get(payer, ((), float("-inf")))
        if self._now() - read_at > LIMITS_SECONDS:
            limits = await self._limits_of(payer)
            self._known[payer] = (limits, self._now())
            if len(self._known) > LIMITS_KEPT:
                self._known.popitem(last=False)
        return limits

    async def _permit(
        self, context: Context, payer: Payer, limits: Sequence[RateLimit], tokens: int
    ) -> Permit:
        """Ask until it is granted, or the next wait would pass the one deadline (L10)."""
        patience = context.request.patience
        deadline = context.arrived + patience.max_wait_timeout_s
        wait = _Wait(self._now())
        while True:
            try:
                permit = await self._limits.acquire(
                    payer.tenant_id, limits, tokens=tokens, lease_seconds=self._lease_seconds
                )
            except RateLimited as refusal:
                seconds = refusal.retry_after_seconds or 0.0
                wait.limit = refusal.limit
                if not patience.wait_on_rate_limit or self._now() + seconds > deadline:
                    await self._say(context, payer, wait, "refused")
                    raise
                wait.rounds += 1
                await self._sleep(seconds)
            else:
                await self._say(context, payer, wait, "granted")
                return permit

    async def _say(self, context: Context, payer: Payer, wait: _Wait, outcome: str) -> None:
        if not wait.rounds:
            return
        request = context.request
        key = CallKey(payer.tenant_id, str(request.step), request.step.generation, request.call_number)
        waited_ms = round((self._now() - wait.began) * 1000)
        data = {"reason": wait.limit, "waited_ms": waited_ms, "rounds": wait.rounds, "outcome": outcome}
        with suppress(Unavailable):
            await self._record(
                LedgerFact(FactKind.WAITED, payer, key.id, trace_id=request.trace_id, data=data)
            )


def _payer(context: Context) -> Payer:
    return context.request.payer if context.authenticated is None else context.authenticated.payer

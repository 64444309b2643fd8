"""Rates and concurrency of all processes together; each process's share alone while Redis is gone (G3.4).

All limits of one tenant are decided by one script, on keys with the tenant's tag, which a cluster keeps
together. An upstream's limits are everybody's and have a tag of their own: a second script decides them, and
the first one's grant is given back where it refuses.

A grant lasts for a short lease, which one task for the whole process renews until it is given back: a call may
last as long as it likes, and what a dead process had is free soon. What Redis has forgotten, being emptied or
restarted, is there again with the next renewal.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import structlog

from db.redis.buckets import ACQUIRE, RELEASE, RENEW, SERVER_TIME, Buckets, Share, Verdict, written
from db.redis.connection import GONE_OR_REFUSED, RedisLink, Script
from db.redis.places import PlaceLines
from domain.errors import LimitExceeded, RateLimited
from domain.gateway import LimitState, Permit, RateLimit

UPSTREAM = "upstream/"
_ALONE = "alone/"
#: permits that could not be given back while Redis was gone; older ones end with their lease
_OWED_LIMIT = 10_000
#: more calls than a process has under way; the oldest would end with its lease
_OPEN_LIMIT = 100_000
#: so much is renewed at once, lest others wait behind it
_RENEWED_AT_ONCE = 1_000
#: while Redis is away, what is granted waits so long for its renewal
_RENEW_AGAIN_SECONDS = 1.0
_ACQUIRE, _RELEASE = Script.of(SERVER_TIME + ACQUIRE), Script.of(SERVER_TIME + RELEASE)


def limit_key(home: str, limit: RateLimit) -> str:
    """Where a limit's bucket or its places are."""
    return f"rate:{{{home}}}:{limit.subject}:{limit.unit}"


def permit_key(home: str, permit_id: str) -> str:
    """What says that a permit was not given back yet."""
    return f"rate:{{{home}}}:permit:{permit_id}"


class _Granted(NamedTuple):
    """A permit that was not given back yet."""

    tenant_id: str
    permit: Permit
    lease: int


class RedisRateLimits:
    """Token buckets for requests and tokens, leases for calls at once; the port `RateLimits`.

    `processes` is among how many the limits are shared out while Redis is gone.
    """

    def __init__(self, link: RedisLink, *, processes: int = 1) -> None:
        self._link = link
        self._processes = processes
        self._alone = Buckets()
        self._renew = link.client.register_script(SERVER_TIME + RENEW)
        #: granted and not given back yet; a second release asks nobody
        self._open: OrderedDict[str, _Granted] = OrderedDict()
        self._lines = PlaceLines()
        self._renewing: asyncio.Task[None] | None = None
        self._renewal: asyncio.Future[None] | None = None
        self._renew_now = asyncio.Event()
        self._pause_seconds = float("inf")
        self._closed = False
        self._owed: OrderedDict[str, tuple[str, Permit, int | None]] = OrderedDict()
        self._state = "limits_shared"
        self._background: set[asyncio.Future[Any]] = set()

    async def acquire(
        self, tenant_id: str, limits: Sequence[RateLimit], *, tokens: int, lease_seconds: float
    ) -> Permit:
        """Take one request, so many tokens and one place of all of them, or of none.

        Raises `RateLimited` with the longest wait among those that refuse, and `LimitExceeded` for more
        tokens than a limit ever has at once.
        """
        if not limits:
            return Permit("")
        for limit in limits:
            _check_size(limit, tokens)
        lease = max(1, round(lease_seconds * 1000))
        permit_id = secrets.token_hex(12)
        try:
            permit = await self._take(permit_id, tenant_id, limits, tokens, lease)
        except asyncio.CancelledError:
            # a caller that goes away meanwhile must not leave its place taken (X3)
            taken = Permit(permit_id, tuple(limits), tokens)
            self._spawn(self._give_back(tenant_id, taken, 0, undone=True))
            raise
        self._keep(_Granted(tenant_id, permit, lease))
        self._wake_the_next(tenant_id, permit)
        return permit

    async def release(self, tenant_id: str, permit: Permit, *, tokens_used: int | None = None) -> None:
        """Give the place back, and the tokens that were not used; the first time only. Never raises."""
        if permit.id in self._open:
            del self._open[permit.id]
            try:
                await self._return(tenant_id, permit, tokens_used)
            except asyncio.CancelledError:
                # once more, by whoever stays: what was given back is not given back again
                self._spawn(self._return(tenant_id, permit, tokens_used))
                raise

    async def freed(self, tenant_id: str, full: Sequence[RateLimit], *, within_seconds: float) -> None:
        """Wait until this process gives a place of these limits back, at most so long; then ask again.

        A place wakes one of those who wait for it; other processes' places wake nobody.
        """
        await self._lines.wait(_place_keys(tenant_id, full), within_seconds)

    async def close(self) -> None:
        """Renew no more, and wait for what is being given back."""
        self._closed = True
        self._renew_now.set()
        if self._renewing is not None:
            await asyncio.wait([self._renewing])
        if self._background:
            await asyncio.wait(set(self._background))

    # --- keeping ---

    def _keep(self, granted: _Granted) -> None:
        """Have the grant renewed until it is given back, by the one task of this process."""
        self._open[granted.permit.id] = granted
        if len(self._open) > _OPEN_LIMIT:
            self._open.popitem(last=False)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._keep_renewing())
        elif granted.lease / 3_000 < self._pause_seconds:
            self._renew_now.set()

    async def _keep_renewing(self) -> None:
        renewed = True
        while self._open and not self._closed:
            shortest = min(each.lease for each in self._open.values())
            self._pause_seconds = shortest / 3_000 if renewed else _RENEW_AGAIN_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds):
                    await self._renew_now.wait()
            self._renew_now.clear()
            renewed = await self._renew_all()

    async def _renew_all(self) -> bool:
        """Let all that is granted last for its lease from now on; answers whether Redis knows of it."""
        granted = list(self._open)
        try:
            for first in range(0, len(granted), _RENEWED_AT_ONCE):
                some = granted[first : first + _RENEWED_AT_ONCE]
                self._renewal = asyncio.ensure_future(self._renew_some(some))
                await self._renewal
        except GONE_OR_REFUSED:
            return False
        finally:
            self._renewal = None
        return True

    async def _renew_some(self, permit_ids: Sequence[str]) -> None:
        # meanwhile some were given back
        granted = [self._open[each] for each in permit_ids if each in self._open]
        for tenant_id, permit, lease in granted:
            if _is_alone(permit):
                self._alone.renew(permit.id, self._shares_alone(tenant_id, permit), lease, _now())
        await self._renew_shared([each for each in granted if not _is_alone(each.permit)])

    async def _renew_shared(self, granted: Sequence[_Granted]) -> None:
        if not granted:
            return
        with self._link.use() as client:
            async with client.pipeline(transaction=False) as pipeline:
                for tenant_id, permit, lease in granted:
                    for home, own in _by_home(tenant_id, permit.limits).items():
                        keys = [permit_key(home, permit.id), *_place_keys(tenant_id, own)]
                        await self._renew(keys, [permit.id, lease], pipeline)
                await pipeline.execute()

    def _wake_the_next(self, tenant_id: str, permit: Permit) -> None:
        """There is more room than this permit took, perhaps in other processes: the next one hears of it."""
        roomy = [each.limit for each in permit.states if each.limit.unit == "calls" and each.left > 0]
        for key in _place_keys(tenant_id, roomy):
            self._lines.wake(key)

    # --- taking ---

    async def _take(
        self, permit_id: str, tenant_id: str, limits: Sequence[RateLimit], tokens: int, lease: int
    ) -> Permit:
        permit = Permit(permit_id, (), tokens)
        for home, own in _by_home(tenant_id, limits).items():
            wanted = Permit(permit.id, own, tokens)
            try:
                states = await self._take_at(home, wanted, lease)
            except GONE_OR_REFUSED:
                # it may have been done all the same
                self._owe(tenant_id, Permit(permit.id, (*permit.limits, *own), tokens), 0)
                self._note("limits_alone")
                return self._take_alone(tenant_id, limits, tokens, lease)
            except RateLimited:
                await self._give_back(tenant_id, permit, 0, undone=True)
                raise
            permit = Permit(permit.id, (*permit.limits, *own), tokens, (*permit.states, *states))
        self._note("limits_shared")
        if self._owed:
            self._spawn(self._pay())
        return permit

    async def _take_at(self, home: str, permit: Permit, lease: int) -> tuple[LimitState, ...]:
        shares = [_share(home, limit, permit.tokens) for limit in permit.limits]
        arguments: list[str | int] = [permit.id, written(shares), lease]
        granted, answers = await self._link.run(_ACQUIRE, _keys(home, permit, shares), arguments)
        return _states(permit.limits, granted, [Verdict(*each) for each in answers])

    def _take_alone(self, tenant_id: str, limits: Sequence[RateLimit], tokens: int, lease: int) -> Permit:
        permit = Permit(f"{_ALONE}{secrets.token_hex(12)}", tuple(limits), tokens)
        shares = self._shares_alone(tenant_id, permit)
        granted, verdicts = self._alone.acquire(permit.id, shares, lease, _now())
        return Permit(permit.id, permit.limits, tokens, _states(permit.limits, granted, verdicts))

    def _shares_alone(self, tenant_id: str, permit: Permit) -> list[Share]:
        """This process's part of each limit; a call that is larger than the part takes all of it."""
        shares = [_share(_home(tenant_id, limit), limit, permit.tokens) for limit in permit.limits]
        parts = [max(1, share.capacity // self._processes) for share in shares]
        return [
            share._replace(capacity=part, amount=min(share.amount, part))
            for share, part in zip(shares, parts, strict=True)
        ]

    # --- giving back ---

    async def _return(self, tenant_id: str, permit: Permit, tokens_used: int | None) -> None:
        # a renewal that is under way would put the place there again
        if self._renewal is not None:
            await asyncio.wait([self._renewal])
        await self._give_back(tenant_id, permit, tokens_used)

    async def _give_back(
        self, tenant_id: str, permit: Permit, tokens_used: int | None, *, undone: bool = False
    ) -> None:
        try:
            await self._put_back(tenant_id, permit, tokens_used, undone=undone)
        finally:
            for key in _place_keys(tenant_id, permit.limits):
                self._lines.freed(key)

    async def _put_back(
        self, tenant_id: str, permit: Permit, tokens_used: int | None, *, undone: bool
    ) -> None:
        if _is_alone(permit):
            shares = self._shares_alone(tenant_id, permit)
            back = [_back(each, permit, tokens_used, undone=undone) for each in shares]
            self._alone.release(permit.id, back, _now())
            return
        try:
            await self._give_back_at_homes(tenant_id, permit, tokens_used, undone=undone)
        except GONE_OR_REFUSED:
            self._owe(tenant_id, permit, tokens_used)

    async def _give_back_at_homes(
        self, tenant_id: str, permit: Permit, tokens_used: int | None, *, undone: bool = False
    ) -> None:
        for home, own in _by_home(tenant_id, permit.limits).items():
            shares = [_share(home, limit, permit.tokens) for limit in own]
            given = [_back(each, permit, tokens_used, undone=undone) for each in shares]
            back = [each for each in given if each.amount]
            arguments = [permit.id, written(back)]
            if not await self._link.run(_RELEASE, _keys(home, permit, back), arguments):
                # then the others are forgotten, too
                self._renew_now.set()

    def _owe(self, tenant_id: str, permit: Permit, tokens_used: int | None) -> None:
        self._owed[permit.id] = (tenant_id, permit, tokens_used)
        if len(self._owed) > _OWED_LIMIT:
            self._owed.popitem(last=False)

    async def _pay(self) -> None:
        """Give back what could not be given back while Redis was gone."""
        owed, self._owed = self._owed, OrderedDict()
        for tenant_id, permit, tokens_used in owed.values():
            await self._give_back(tenant_id, permit, tokens_used)

    def _note(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._renew_now.set()
            structlog.get_logger("assay.limits").warning(state)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Future[Any]":
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Future[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # its caller, where there is one, hears of it


def _home(tenant_id: str, limit: RateLimit) -> str:
    return limit.subject if limit.subject.startswith(UPSTREAM) else tenant_id


def _by_home(tenant_id: str, limits: Sequence[RateLimit]) -> dict[str, tuple[RateLimit, ...]]:
    homes: dict[str, tuple[RateLimit, ...]] = {}
    for limit in limits:
        home = _home(tenant_id, limit)
        homes[home] = (*homes.get(home, ()), limit)
    return homes


def _is_alone(permit: Permit) -> bool:
    return permit.id.startswith(_ALONE)


def _place_keys(tenant_id: str, limits: Sequence[RateLimit]) -> list[str]:
    """The keys of the limits of calls at once among them."""
    return [limit_key(_home(tenant_id, each), each) for each in limits if each.unit == "calls"]


def _share(home: str, limit: RateLimit, tokens: int) -> Share:
    amount = tokens if limit.unit == "tokens" else 1
    return Share(limit_key(home, limit), limit.unit, limit.capacity, amount)


def _back(share: Share, permit: Permit, tokens_used: int | None, *, undone: bool) -> Share:
    """What of a share is given back: a request was made, and counts, unless nothing was."""
    if share.unit == "requests":
        return share._replace(amount=int(undone))
    if share.unit == "tokens":
        return share._replace(amount=0 if tokens_used is None else share.amount - tokens_used)
    return share


def _keys(home: str, permit: Permit, shares: Sequence[Share]) -> list[str]:
    return [permit_key(home, permit.id), *(each.key for each in shares)]


def _states(
    limits: Sequence[RateLimit], granted: object, verdicts: Sequence[Verdict]
) -> tuple[LimitState, ...]:
    if not granted:
        raise _refusal(limits, verdicts)
    return _standing(limits, verdicts)


def _standing(limits: Sequence[RateLimit], verdicts: Sequence[Verdict]) -> tuple[LimitState, ...]:
    return tuple(
        LimitState(limit, max(0, each.left), each.reset / 1000)
        for limit, each in zip(limits, verdicts, strict=True)
    )


def _refusal(limits: Sequence[RateLimit], verdicts: Sequence[Verdict]) -> RateLimited:
    limit, verdict = max(zip(limits, verdicts, strict=True), key=lambda each: each[1].wait)
    per = "at once" if limit.unit == "calls" else "a minute"
    seconds = verdict.wait / 1000
    return RateLimited(
        f"{limit.subject} allows {limit.capacity:,} {limit.unit} {per}. Come again in {seconds:.1f} s.",
        limit=f"{limit.subject} {limit.unit}",
        retry_after_seconds=seconds,
        states=_standing(limits, verdicts),
    )


def _check_size(limit: RateLimit, tokens: int) -> None:
    if limit.unit == "tokens" and tokens > limit.capacity:
        raise LimitExceeded(
            f"This call may use {tokens:,} tokens, and {limit.subject} allows {limit.capacity:,} a minute, "
            "however long it waits. Ask for fewer with `max_tokens`, send less, or have the limit raised.",
            field="max_tokens",
        )


def _now() -> int:
    return time.monotonic_ns() // 1_000_000

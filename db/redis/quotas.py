"""Copies of balances in Redis: written after the commit, in the order of their versions (O1).

Postgres is the authority. A copy is quick to read and may be late; whoever refuses because of one asks
Postgres first, and whoever is let through by one is decided by the ledger's hold.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import structlog
from redis.exceptions import ResponseError

from db.redis.connection import GONE_OR_REFUSED, RedisLink, Script
from domain.completion import Payer
from domain.errors import BudgetExhausted, RedisUnavailable, Unavailable
from domain.gateway import QuotaCopy
from domain.ledger import Account, AccountBalance, Scope, accounts_of
from domain.money import Money
from domain.ports import Clock

#: so old days vanish; what is used meanwhile is written anew
COPY_SECONDS = 2 * 24 * 3600
#: accounts that may wait to be written; with more the oldest are given up, and repaired later
WAITING_LIMIT = 10_000
WRITE_LIMIT = 500
#: what one write waits for the next: a hot account changes a thousand times a second
GATHER_SECONDS = 0.02
AWAY_SECONDS = 0.5
#: how long one process may take to copy an account, and how often another looks meanwhile
WARMING_SECONDS = 2.0
_LOOK_SECONDS, _LOOKS = 0.02, 25
#: no zone's day begins elsewhere than at a quarter of an hour
_QUARTER = 900
_TODAY_SECONDS = 60.0
_TENANTS_KEPT = 10_000
#: others' keys are passed by, so many at most for one page
_SCANNED_KEYS, _SCANS = 1_000, 10

# A copy is one text, its version first: read by the hundred, hashes took five times as long.
# KEYS: copies of one tenant, which a cluster keeps together. ARGV: the time to live, and for each copy its text,
# its version and the version that is known to be wrong. MGET and SET take what is no text for a missing one.
_WRITE = Script.of("""
local written, known = 0, redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
    local text, newer, wrong = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
    local version = known[i] and string.match(known[i], '^%d+')
    if not version or tonumber(version) < tonumber(newer) or version == wrong then
        redis.call('SET', KEYS[i], text, 'PX', ARGV[1])
        written = written + 1
    end
end
return written
""")
_PREFIX = "quota:{"
_UNLIMITED = "-"
_KEY = re.compile(r"quota:\{(.*?)\}:(api_key|batch|profile|tenant_day):(.*)", re.DOTALL)

Answer = TypeVar("Answer")
Key = TypeVar("Key", bound=Hashable)


class Books(Protocol):
    """Where balances are certain."""

    async def quota(self, payer: Payer) -> Sequence[AccountBalance]:
        """The payer's accounts today."""
        ...

    async def today(self, tenant_id: str) -> date:
        """The tenant's day."""
        ...


def copy_key(account: Account) -> str:
    """Where an account's copy is."""
    return f"{_PREFIX}{account.tenant_id}}}:{account.scope}:{account.subject}"


def copy_of(balance: AccountBalance) -> QuotaCopy:
    """A balance as it is copied."""
    limit = None if balance.limit is None else int(balance.limit)
    held, spent = int(balance.held), int(balance.spent)
    return QuotaCopy(balance.account, limit, held, spent, balance.requests, balance.tokens, balance.version)


@dataclass
class _Waiting:
    """A balance that is to be copied, and since when the account's copy is late."""

    balance: AccountBalance
    since: float


class RedisQuotas:
    """The port `Quotas`, with the writer of its copies; `run` is its task.

    `synced` hears how many seconds after its commit a copy was written, or waits already; `dropped` of each
    one given up; `raced` of each that was wanted while it was being made.
    """

    def __init__(
        self,
        link: RedisLink,
        books: Books,
        clock: Clock,
        *,
        synced: Callable[[float], None] = lambda _: None,
        dropped: Callable[[], None] = lambda: None,
        raced: Callable[[], None] = lambda: None,
        waiting_limit: int = WAITING_LIMIT,
    ) -> None:
        self._link = link
        self._books = books
        self._clock = clock
        self._synced, self._dropped, self._raced = synced, dropped, raced
        self._waiting_limit = waiting_limit
        self._waiting: OrderedDict[Account, _Waiting] = OrderedDict()
        self._wake = asyncio.Event()
        self._beginning: dict[str, asyncio.Future[date]] = {}
        self._warming: dict[Payer, asyncio.Future[list[QuotaCopy]]] = {}
        self._looking: dict[Payer, asyncio.Future[Sequence[QuotaCopy]]] = {}
        self._asking: dict[Payer, asyncio.Future[list[AccountBalance]]] = {}
        self._days: OrderedDict[str, tuple[date, float, float]] = OrderedDict()

    # --- readers ---

    async def read(self, payer: Payer) -> Sequence[QuotaCopy]:
        """The payer's accounts today, from Postgres where Redis is gone or lacks one."""
        try:
            return await self._read(payer)
        except GONE_OR_REFUSED:
            return [copy_of(each) for each in await self._asked(payer)]

    async def check(self, payer: Payer) -> None:
        """Raise `BudgetExhausted` if more is spent than a limit allows, once Postgres says so, too.

        What is spent to the last nano-dollar is the hold's to decide: a call that costs nothing may go. While
        Redis or Postgres is gone everything is.
        """
        try:
            # a look that began a moment ago will do: copies are late by more than that
            copies = await _once(self._looking, payer, lambda: self._read(payer), lambda: self._joined(payer))
            if not any(map(_overspent, copies)):
                return
            balances = await self._asked(payer)
            await self._repair(copies, balances)
        except (Unavailable, *GONE_OR_REFUSED):
            return
        for balance in balances:
            if _overspent(copy_of(balance)):
                raise _refusal(balance)

    def _joined(self, payer: Payer) -> None:
        if payer in self._warming:
            self._raced()

    async def copies(self, accounts: Sequence[Account]) -> list[QuotaCopy | None]:
        """The copies as they are, `None` for a missing one; raises `RedisUnavailable`."""
        tenants: dict[str, list[Account]] = {}
        for account in accounts:
            tenants.setdefault(account.tenant_id, []).append(account)
        asked = [self._link.ask("MGET", *map(copy_key, own)) for own in tenants.values()]
        found = await asyncio.gather(*asked)
        listed = [account for own in tenants.values() for account in own]
        texts = dict(zip(listed, (text for each in found for text in each), strict=True))
        return [_read_copy(account, texts[account]) for account in accounts]

    async def page(self, cursor: int, count: int) -> tuple[int, list[Account]]:
        """About so many of the accounts that have a copy, and where to go on; 0 is the beginning and the end."""
        accounts: list[Account] = []
        with self._link.use() as client:
            for _ in range(_SCANS):
                cursor, keys = await client.scan(cursor, match=f"{_PREFIX}*", count=_SCANNED_KEYS)
                accounts += [account for key in keys if (account := _account(str(key)))]
                if not int(cursor) or len(accounts) >= count:
                    break
        return int(cursor), accounts

    async def _read(self, payer: Payer) -> Sequence[QuotaCopy]:
        accounts = accounts_of(payer, await self._today(payer.tenant_id))
        found = await self._all(accounts)
        if found is not None:
            return found
        return await _once(self._warming, payer, lambda: self._warm(payer, accounts), self._raced)

    async def _all(self, accounts: Sequence[Account]) -> list[QuotaCopy] | None:
        found = [each for each in await self.copies(accounts) if each is not None]
        return found if len(found) == len(accounts) else None

    async def _today(self, tenant_id: str) -> date:
        """The tenant's day, asked for at most once a minute, and again where a day may begin."""
        quarter, now = self._clock.now().timestamp() // _QUARTER, time.monotonic()
        day, known_quarter, until = self._days.get(tenant_id, (date.min, 0.0, 0.0))
        if quarter != known_quarter or now > until:
            day = await _once(self._beginning, tenant_id, lambda: self._books.today(tenant_id))
            self._days[tenant_id] = (day, quarter, now + _TODAY_SECONDS)
            if len(self._days) > _TENANTS_KEPT:
                self._days.popitem(last=False)
        return day

    # --- copying what is missing ---

    async def _warm(self, payer: Payer, accounts: Sequence[Account]) -> list[QuotaCopy]:
        """Copy the payer's accounts, unless another process is at it already."""
        claim = f"{_PREFIX}{payer.tenant_id}}}:warming:{payer.api_key_id}:{payer.batch_id}:{payer.profile}"
        with self._link.use() as client:
            mine = await client.set(claim, str(uuid4()), nx=True, px=round(WARMING_SECONDS * 1000))
        if not mine:
            self._raced()
            if (found := await self._wait_for(accounts)) is not None:
                return found
        elif (made := await self._all(accounts)) is not None:
            # by whoever had the claim while this one looked
            await self._give_up(claim)
            return made
        balances = list(await self._books.quota(payer))
        with suppress(*GONE_OR_REFUSED):
            await self.write(balances)
            await self._give_up(claim)
        return [copy_of(each) for each in balances]

    async def _give_up(self, claim: str) -> None:
        with self._link.use() as client:
            await client.delete(claim)

    async def _wait_for(self, accounts: Sequence[Account]) -> list[QuotaCopy] | None:
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK_SECONDS)
            if (found := await self._all(accounts)) is not None:
                return found
        return None

    async def _asked(self, payer: Payer) -> list[AccountBalance]:
        async def ask() -> list[AccountBalance]:
            return list(await self._books.quota(payer))

        return await _once(self._asking, payer, ask)

    # --- writing ---

    def push(self, balances: Iterable[AccountBalance]) -> None:
        """Copy these soon: the ledger calls it after a commit, and waits for nothing."""
        now = time.monotonic()
        for balance in balances:
            self._queue(balance, now)
        while len(self._waiting) > self._waiting_limit:
            self._waiting.popitem(last=False)
            self._dropped()
        self._wake.set()

    async def run(self) -> None:
        """Write what was pushed, until cancelled; an absent Redis is waited for."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
            except RedisUnavailable as error:
                structlog.get_logger("assay.quotas").info("copies_wait", reason=type(error).__name__)
                await asyncio.sleep(AWAY_SECONDS)
                self._wake.set()
            await asyncio.sleep(GATHER_SECONDS)

    async def flush(self) -> None:
        """Write everything that waits; what waits for an absent Redis waits on. Raises `RedisUnavailable`."""
        while self._waiting:
            taken = [
                self._waiting.popitem(last=False)[1] for _ in range(min(WRITE_LIMIT, len(self._waiting)))
            ]
            try:
                await self.write([each.balance for each in taken])
            except ResponseError as error:
                # full: trying again would be the same, and the reconciler comes by
                structlog.get_logger("assay.quotas").warning("copies_refused", reason=str(error)[:200])
            except BaseException:
                for each in taken:
                    self._queue(each.balance, each.since)
                raise
            finally:
                self._synced(time.monotonic() - min(each.since for each in taken))

    async def close(self) -> None:
        """Write what still waits, if that is possible."""
        with suppress(RedisUnavailable):
            await self.flush()

    async def write(
        self, balances: Sequence[AccountBalance], wrong: Mapping[Account, int] | None = None
    ) -> int:
        """Copy what is newer than its copy, or replaces exactly the `wrong` version; answers how many.

        Raises `RedisUnavailable`.
        """
        wrong = wrong or {}
        tenants: dict[str, list[AccountBalance]] = {}
        for balance in balances:
            tenants.setdefault(balance.account.tenant_id, []).append(balance)
        written = [self._write(own, wrong) for own in tenants.values()]
        return sum(await asyncio.gather(*written))

    def _write(
        self, balances: Sequence[AccountBalance], wrong: Mapping[Account, int]
    ) -> Coroutine[Any, Any, int]:
        """Those of one tenant."""
        arguments: list[str | int] = [COPY_SECONDS * 1000]
        for each in balances:
            arguments += [_text(each), each.version, wrong.get(each.account, "")]
        return self._link.run(_WRITE, [copy_key(each.account) for each in balances], arguments)

    def _queue(self, balance: AccountBalance, since: float) -> None:
        known = self._waiting.get(balance.account)
        if known is None:
            self._waiting[balance.account] = _Waiting(balance, since)
            return
        known.since = min(known.since, since)
        if known.balance.version < balance.version:
            known.balance = balance

    async def _repair(self, copies: Sequence[QuotaCopy], balances: Sequence[AccountBalance]) -> None:
        """Upwards only: a copy that is newer than this answer may have been written since it was given."""
        known = {each.account: each for each in copies}
        stale = [each for each in balances if known.get(each.account) != copy_of(each)]
        # a limit can change while nothing was ever held: that is no newer version
        await self.write(stale, {each.account: each.version for each in stale})


async def _once(
    under_way: "dict[Key, asyncio.Future[Answer]]",
    key: Key,
    work: Callable[[], Coroutine[Any, Any, Answer]],
    joined: Callable[[], None] = lambda: None,
) -> Answer:
    """One at a time for each key; whoever comes meanwhile gets the same answer (O7)."""
    if (task := under_way.get(key)) is None:
        task = under_way[key] = asyncio.ensure_future(work())
        task.add_done_callback(lambda done: _forget(under_way, key, done))
    else:
        joined()
    return await asyncio.shield(task)


def _forget(under_way: "dict[Key, asyncio.Future[Answer]]", key: Key, task: "asyncio.Future[Answer]") -> None:
    del under_way[key]
    if not task.cancelled():
        task.exception()  # whoever still waits hears of it


def _overspent(copy: QuotaCopy) -> bool:
    return copy.limit is not None and copy.spent > copy.limit


def _refusal(balance: AccountBalance) -> BudgetExhausted:
    account, limit = balance.account, balance.limit or Money(0)
    return BudgetExhausted(
        f"The limit of {account.scope} {account.subject} is {limit} USD, and {balance.spent} USD are spent. "
        "Raise the limit.",
        scope=account.scope,
        missing_nanodollars=int(balance.spent) - int(limit),
    )


def _text(balance: AccountBalance) -> str:
    copy = copy_of(balance)
    limit = _UNLIMITED if copy.limit is None else copy.limit
    return f"{copy.version} {limit} {copy.held} {copy.spent} {copy.requests} {copy.tokens}"


def _read_copy(account: Account, text: str | None) -> QuotaCopy | None:
    try:
        version, limit, *amounts = (text or "").split(" ")
        held, spent, requests, tokens = map(int, amounts)
        known = None if limit == _UNLIMITED else int(limit)
        return QuotaCopy(account, known, held, spent, requests, tokens, int(version))
    except ValueError:
        return None  # missing, or not written by us


def _account(key: str) -> Account | None:
    parts = _KEY.fullmatch(key)
    return None if parts is None else Account(parts[1], Scope(parts[2]), parts[3])

"""The reconciler: no copy of a balance stays wrong, whatever became of Redis or of Postgres.

What changed lately is compared every few seconds. Beside that all copies are gone through, page by page: a
restored old Redis has versions that are too low, a restored Postgres leaves copies that are too new, and
neither changes any account. Postgres is right in both cases.
"""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import structlog
from redis.exceptions import ResponseError

from db.postgres.ledger import PostgresLedgerBooks
from db.postgres.quotas import PostgresQuotaAudit
from db.redis.quotas import COPY_SECONDS, RedisQuotas, copy_of
from domain.errors import Unavailable
from domain.gateway import QuotaCopy
from domain.ledger import Account, AccountBalance
from domain.ports import Clock
from gateway.figures import GatewayFigures

RECONCILE_SECONDS = 5.0
#: a change is dated by the beginning of its transaction, and clocks differ a little
OVERLAP_SECONDS = 30.0
CHANGED_LIMIT = 1_000
PAGE_SIZE = 500
#: a copy that is only late comes in this time; one that is still the same after it was missed
LATE_SECONDS = 0.25
#: once in so many rounds commits are looked at; those of the last minutes, for they cannot change
ORPHAN_ROUNDS = 12
ORPHAN_SECONDS = 600.0


class QuotaReconciler:
    """Compares copies with Postgres and repairs them; any number of reconcilers may do so at once."""

    def __init__(
        self,
        quotas: RedisQuotas,
        books: PostgresLedgerBooks,
        audit: PostgresQuotaAudit,
        figures: GatewayFigures,
        clock: Clock,
        *,
        late_seconds: float = LATE_SECONDS,
    ) -> None:
        self._quotas = quotas
        self._books = books
        self._audit = audit
        self._figures = figures
        self._clock = clock
        self._late_seconds = late_seconds
        self._since: datetime | None = None
        self._cursor = 0
        self._rounds = 0
        self._log = structlog.get_logger("assay.reconciler")

    async def run(self) -> None:
        """Reconcile for ever; absent servers are waited for."""
        while True:
            try:
                await self.reconcile_once()
                if self._rounds % ORPHAN_ROUNDS == 1:
                    await self.count_orphans()
            except (Unavailable, ResponseError) as error:
                self._log.info("reconciler_waits", reason=type(error).__name__)
            await asyncio.sleep(RECONCILE_SECONDS)

    async def reconcile_once(self) -> int:
        """Repair what changed lately and one page of all copies; answers how many were wrong."""
        self._rounds += 1
        began = self._clock.now()
        since = self._since or began - timedelta(seconds=COPY_SECONDS)
        changed = [each.account for each in await self._books.changed_since(since, CHANGED_LIMIT)]
        cursor, copied = await self._quotas.page(self._cursor, PAGE_SIZE)
        repaired = await self._repair({*changed, *copied})
        # only now: what a failure left undone is looked at again
        self._since, self._cursor = began - timedelta(seconds=OVERLAP_SECONDS), cursor
        return repaired

    async def reconcile_all(self) -> int:
        """Repair every copy there is; answers how many were wrong."""
        self._cursor = 0
        repaired = await self.reconcile_once()
        while self._cursor:
            repaired += await self.reconcile_once()
        return repaired

    async def count_orphans(self) -> None:
        """Count commits of the last minutes that lack their hold or their reply."""
        since = self._clock.now() - timedelta(seconds=ORPHAN_SECONDS)
        self._figures.orphans_counted(await self._audit.orphans(since))

    async def _repair(self, accounts: Iterable[Account]) -> int:
        """Replace what differs at two looks; what is only on its way changes between them."""
        suspects = await self._wrong(sorted(accounts))
        if suspects:
            await asyncio.sleep(self._late_seconds)
        found = await self._wrong(list(suspects))
        stuck = {account: now for account, now in found.items() if now[0] == suspects[account][0]}
        await self._quotas.write(
            [balance for _, balance in stuck.values()],
            {account: copy.version for account, (copy, _) in stuck.items() if copy is not None},
        )
        worst = max((_difference(copy, balance) for copy, balance in stuck.values()), default=0)
        self._figures.compared(worst, len(stuck))
        if worst:
            self._log.warning("copies_repaired", count=len(stuck), difference=worst)
        return len(stuck)

    async def _wrong(
        self, accounts: Sequence[Account]
    ) -> dict[Account, tuple[QuotaCopy | None, AccountBalance]]:
        """The copies that are not as Postgres has it, which is read after them: no copy is rightly newer."""
        if not accounts:
            return {}
        copies = await self._quotas.copies(accounts)
        balances = await self._audit.balances(accounts)
        return {
            account: (copy, balances[account])
            for account, copy in zip(accounts, copies, strict=True)
            if copy != copy_of(balances[account])
        }


def _difference(copy: QuotaCopy | None, balance: AccountBalance) -> int:
    """The greatest one, in nano-dollars, requests or tokens; a missing copy is not wrong, only missing."""
    if copy is None:
        return 0
    right = copy_of(balance)
    pairs = zip(_amounts(copy), _amounts(right), strict=True)
    return max(abs(one - other) for one, other in pairs)


def _amounts(copy: QuotaCopy) -> tuple[int, ...]:
    return copy.held, copy.spent, copy.requests, copy.tokens

"""What copies of balances are compared with, and whether every commit has what it needs."""

from collections.abc import Iterable
from datetime import datetime

from db.postgres.ledger import QUOTA_SQL, batch_ids, columns_of
from db.postgres.pool import Postgres
from domain.ledger import Account, AccountBalance, Scope
from domain.money import Money

ORPHANS_SQL = """
SELECT count(*) AS orphans FROM ledger_events e
LEFT JOIN ledger_holds h ON h.call_id = e.call_id AND h.attempt = e.attempt
WHERE e.event_type = 'commit' AND e.occurred_at >= %s
  AND (h.call_id IS NULL
       OR h.journaled AND NOT EXISTS (SELECT FROM ledger_journal j
                                      WHERE j.call_id = h.call_id AND j.request_hash = h.request_hash))
"""


class PostgresQuotaAudit:
    """The authority on balances, by account."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def balances(self, accounts: Iterable[Account]) -> dict[Account, AccountBalance]:
        """How these accounts stand, by one query; zeros and version 0 for those that are not there."""
        wanted = set(accounts)
        parameters = {**columns_of(wanted), "batches": batch_ids(wanted)}
        found: dict[Account, AccountBalance] = {}
        for row in await self._postgres.rows(QUOTA_SQL, parameters):
            account = Account(row["tenant_id"], Scope(row["scope"]), row["subject"])
            limit = None if row["limit_now"] is None else Money(row["limit_now"])
            held, spent = Money(row["held_nanodollars"]), Money(row["spent_nanodollars"])
            found[account] = AccountBalance(
                account, limit, held, spent, row["requests"], row["tokens"], row["version"]
            )
        return found

    async def orphans(self, since: datetime) -> int:
        """How many commits since then have no hold, or lack the reply that was journaled with them."""
        row = await self._postgres.row(ORPHANS_SQL, [since])
        assert row is not None
        return int(row["orphans"])

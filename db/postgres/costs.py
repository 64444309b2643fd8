"""What a tenant has spent, a page at a time: the ledger's books with the totals that lists need."""

from collections.abc import Sequence
from datetime import date

from db.postgres.ledger import BALANCES_SQL, PostgresLedgerBooks
from db.postgres.pool import Postgres
from db.postgres.tenants import balance_of
from domain.ledger import Account, AccountBalance, DaySpend, LedgerEvent, Scope
from domain.money import Money

PAGE_OF_BALANCES_SQL = BALANCES_SQL + "OFFSET %(skipped)s"
COUNT_BALANCES_SQL = """
SELECT count(*) AS total FROM ledger_accounts
WHERE tenant_id = %(tenant_id)s
  AND (%(scope)s::text IS NULL OR scope = %(scope)s) AND (%(subject)s::text IS NULL OR subject = %(subject)s)
"""
COUNT_EVENTS_SQL = """
SELECT count(*) AS total FROM ledger_events
WHERE tenant_id = %s AND day BETWEEN %s AND %s AND (%s::text IS NULL OR batch_id = %s)
"""


class PostgresCosts:
    """Balances, events and days of one tenant at a time."""

    def __init__(self, postgres: Postgres, books: PostgresLedgerBooks) -> None:
        self._postgres = postgres
        self._books = books

    async def today(self, tenant_id: str) -> date:
        """The tenant's day."""
        return await self._books.today(tenant_id)

    async def spend_today(self, tenant_id: str, *, scope: str = "all", profile: str | None = None) -> Money:
        """What was spent today, in all or of one profile; raises `InvalidInput`."""
        return await self._books.spend_today(tenant_id, scope=scope, profile=profile)

    async def days(self, tenant_id: str, first: date, last: date) -> list[DaySpend]:
        """The days on which anything was held or spent, newest first."""
        return await self._books.days(tenant_id, first, last)

    async def balances(
        self, tenant_id: str, page: int, page_size: int, *, scope: Scope | None, subject: str | None
    ) -> tuple[list[AccountBalance], int]:
        """One page of accounts, and how many there are."""
        chosen = {"tenant_id": tenant_id, "scope": scope, "subject": subject}
        bounds = {"count": page_size, "skipped": (page - 1) * page_size}
        rows = await self._postgres.rows(PAGE_OF_BALANCES_SQL, {**chosen, **bounds})
        accounts = [(Account(row["tenant_id"], Scope(row["scope"]), row["subject"]), row) for row in rows]
        # a day's limit stands with its tenant
        balances = [
            balance_of(account, {**row, "limit_nanodollars": row["limit_now"]}) for account, row in accounts
        ]
        return balances, await self._count(COUNT_BALANCES_SQL, chosen)

    async def statement(
        self, tenant_id: str, page: int, page_size: int, *, first: date, last: date, batch_id: str | None
    ) -> tuple[list[LedgerEvent], int]:
        """One page of the events of these days, newest first, and how many there are."""
        skipped = (page - 1) * page_size
        events = await self._books.statement(
            tenant_id, first, last, batch_id=batch_id, count=page_size, skipped=skipped
        )
        return events, await self._count(COUNT_EVENTS_SQL, [tenant_id, first, last, batch_id, batch_id])

    async def _count(self, statement: str, parameters: dict[str, str | None] | Sequence[object]) -> int:
        row = await self._postgres.row(statement, parameters)
        return 0 if row is None else int(row["total"])

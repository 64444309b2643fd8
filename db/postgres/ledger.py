"""What the ledger's tables hold: the SQL of the writer's transaction and of every reader, with their mappers."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from psycopg.rows import DictRow

from db.postgres.ledger_rows import json_of
from db.postgres.pool import Connection, Postgres
from domain.book import AccountRow, Accounts, Book, HoldRow, Sweep
from domain.completion import CompletionReply, Fence, FinishReason, Payer, Usage
from domain.errors import InvalidInput
from domain.ledger import (
    MIN_RETENTION_DAYS,
    Account,
    AccountBalance,
    DaySpend,
    DoubtRule,
    EventStatus,
    EventType,
    HoldState,
    JournalEntry,
    LedgerCall,
    LedgerEvent,
    Mode,
    Scope,
    TenantBudget,
    Timing,
    Underway,
    accounts_of,
)
from domain.money import ZERO, Money
from domain.ports import Clock

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# --- the writer's transaction ----------------------------------------------------------------------------

TENANTS_SQL = """
SELECT tenant_id, time_zone, call_limit_nanodollars, day_limit_nanodollars, mode
FROM ledger_tenants WHERE tenant_id = ANY(%s)
"""
# a batch's limit is read under its lock: a change of it waits, and its trigger then finds this row
OPEN_ACCOUNTS_SQL = """
WITH wanted AS (
    SELECT * FROM unnest(%(tenants)s::text[], %(scopes)s::text[], %(subjects)s::text[])
        AS w (tenant_id, scope, subject)
), limits AS (
    SELECT b.tenant_id, b.id::text AS subject, b.limit_nanodollars FROM batches b
    WHERE b.id = ANY(%(batches)s::uuid[]) ORDER BY b.id FOR SHARE
)
INSERT INTO ledger_accounts (tenant_id, scope, subject, limit_nanodollars)
SELECT w.tenant_id, w.scope, w.subject, l.limit_nanodollars
FROM wanted w LEFT JOIN limits l ON w.scope = 'batch' AND l.tenant_id = w.tenant_id AND l.subject = w.subject
ORDER BY 1, 2, 3
ON CONFLICT DO NOTHING
"""
# every process locks in this order, so that none waits for one that waits for it
LOCK_ACCOUNTS_SQL = """
SELECT tenant_id, scope, subject, limit_nanodollars, held_nanodollars, spent_nanodollars, requests, tokens, version
FROM ledger_accounts
WHERE (tenant_id, scope, subject) IN
      (SELECT * FROM unnest(%(tenants)s::text[], %(scopes)s::text[], %(subjects)s::text[]))
ORDER BY tenant_id, scope, subject FOR UPDATE
"""
LOCK_HOLDS_SQL = """
SELECT * FROM ledger_holds WHERE call_id = ANY(%s::uuid[]) ORDER BY call_id, attempt FOR UPDATE
"""
JOURNAL_SQL = "SELECT * FROM ledger_journal WHERE call_id = ANY(%s::uuid[])"
# as `fenced_thread` does: a newer attempt's epoch waits until this transaction has ended
FENCES_SQL = """
SELECT thread_id, epoch FROM agent_threads WHERE thread_id = ANY(%s::text[]) ORDER BY thread_id FOR SHARE
"""
KNOWN_EVENTS_SQL = "SELECT * FROM ledger_events WHERE event_id = ANY(%s::uuid[])"


# --- readers ---------------------------------------------------------------------------------------------

BALANCES_SQL = """
SELECT a.*, CASE a.scope WHEN 'tenant_day' THEN t.day_limit_nanodollars ELSE a.limit_nanodollars END AS limit_now
FROM ledger_accounts a LEFT JOIN ledger_tenants t USING (tenant_id)
WHERE a.tenant_id = %(tenant_id)s
  AND (%(scope)s::text IS NULL OR a.scope = %(scope)s) AND (%(subject)s::text IS NULL OR a.subject = %(subject)s)
ORDER BY a.scope, a.subject DESC LIMIT %(count)s
"""
# every account of one payer, also those that nothing was held in yet; of the days, only today's is kept
QUOTA_SQL = """
SELECT w.tenant_id, w.scope, w.subject, coalesce(t.time_zone, 'UTC') AS time_zone,
       CASE w.scope WHEN 'tenant_day' THEN t.day_limit_nanodollars
                    ELSE coalesce(a.limit_nanodollars, b.limit_nanodollars) END AS limit_now,
       coalesce(a.held_nanodollars, 0) AS held_nanodollars, coalesce(a.spent_nanodollars, 0) AS spent_nanodollars,
       coalesce(a.requests, 0) AS requests, coalesce(a.tokens, 0) AS tokens, coalesce(a.version, 0) AS version
FROM unnest(%(tenants)s::text[], %(scopes)s::text[], %(subjects)s::text[]) AS w (tenant_id, scope, subject)
LEFT JOIN ledger_accounts a USING (tenant_id, scope, subject)
LEFT JOIN ledger_tenants t USING (tenant_id)
LEFT JOIN batches b ON w.scope = 'batch' AND b.id = ANY(%(batches)s::uuid[]) AND b.tenant_id = w.tenant_id
ORDER BY w.scope, w.subject
"""
CHANGED_SQL = """
SELECT a.*, CASE a.scope WHEN 'tenant_day' THEN t.day_limit_nanodollars ELSE a.limit_nanodollars END AS limit_now
FROM ledger_accounts a LEFT JOIN ledger_tenants t USING (tenant_id)
WHERE a.updated_at >= %s ORDER BY a.updated_at DESC LIMIT %s
"""
CLIENT_CALLS_SQL = """
SELECT client_call_id FROM ledger_holds
WHERE api_key_id = %s AND request_hash = %s AND client_call_id <> '' AND updated_at >= %s
GROUP BY client_call_id ORDER BY max(updated_at) DESC LIMIT %s
"""
# whether a call that was under way still is; what else became of it is the writer's to say
UNDERWAY_SQL = """
SELECT h.due_at FROM ledger_holds h
WHERE h.call_id = %(call_id)s AND h.request_hash = %(request_hash)s AND h.state = 'dispatched' AND h.due_at > %(now)s
  AND NOT EXISTS (SELECT FROM ledger_holds o
                  WHERE o.call_id = h.call_id AND o.request_hash = h.request_hash AND o.journaled)
  AND (%(thread_id)s::text IS NULL
       OR EXISTS (SELECT FROM agent_threads WHERE thread_id = %(thread_id)s AND epoch = %(epoch)s))
ORDER BY h.attempt LIMIT 1
"""
STATEMENT_SQL = """
SELECT * FROM ledger_events
WHERE tenant_id = %(tenant_id)s AND day BETWEEN %(first)s AND %(last)s
  AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)
ORDER BY occurred_at DESC, event_id LIMIT %(count)s OFFSET %(skipped)s
"""
SPEND_OF_DAY_SQL = """
SELECT spent_nanodollars FROM ledger_accounts WHERE tenant_id = %s AND scope = 'tenant_day' AND subject = %s::date::text
"""
SPEND_OF_PROFILE_SQL = """
SELECT coalesce(sum(cost_actual_nanodollars), 0)::bigint AS spent_nanodollars
FROM ledger_events WHERE tenant_id = %s AND day = %s AND profile = %s
"""
DAYS_SQL = """
SELECT subject::date AS day, spent_nanodollars, held_nanodollars, requests, tokens FROM ledger_accounts
WHERE tenant_id = %s AND scope = 'tenant_day' AND subject BETWEEN %s AND %s ORDER BY subject DESC
"""
IN_DOUBT_SQL = """
SELECT coalesce(sum(open_nanodollars), 0)::bigint AS amount FROM ledger_holds WHERE batch_id = %s AND state = 'in_doubt'
"""
MODES_SQL = """
SELECT mode FROM ledger_accounts
WHERE tenant_id = %(tenant_id)s
  AND ((scope = 'api_key' AND subject = %(api_key_id)s) OR (scope = 'batch' AND subject = %(batch_id)s))
UNION ALL SELECT mode FROM ledger_tenants WHERE tenant_id = %(tenant_id)s
"""
PRECHECK_SQL = """
SELECT (SELECT bool_or(a.spent_nanodollars + a.held_nanodollars + %(estimated)s > CASE a.scope
                   WHEN 'tenant_day' THEN t.day_limit_nanodollars ELSE a.limit_nanodollars END)
        FROM ledger_accounts a LEFT JOIN ledger_tenants t USING (tenant_id)
        WHERE (a.tenant_id, a.scope, a.subject) IN
              (SELECT * FROM unnest(%(tenants)s::text[], %(scopes)s::text[], %(subjects)s::text[]))) AS passed,
       (SELECT call_limit_nanodollars < %(estimated)s FROM ledger_tenants WHERE tenant_id = %(tenant_id)s) AS too_dear,
       (SELECT count(*) FROM ledger_holds WHERE call_id = %(call_id)s) AS known,
       (SELECT epoch FROM agent_threads WHERE thread_id = %(thread_id)s) AS epoch
"""
SET_TENANT_SQL = """
INSERT INTO ledger_tenants (tenant_id, time_zone, call_limit_nanodollars, day_limit_nanodollars, mode)
VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (tenant_id) DO UPDATE
SET time_zone = EXCLUDED.time_zone, call_limit_nanodollars = EXCLUDED.call_limit_nanodollars,
    day_limit_nanodollars = EXCLUDED.day_limit_nanodollars, mode = EXCLUDED.mode
"""
# its copies elsewhere must see that the day's limit is another one
TOUCH_DAYS_SQL = """
UPDATE ledger_accounts SET version = version + 1, updated_at = now()
WHERE tenant_id = %s AND scope = 'tenant_day' AND subject >= %s::date::text
"""
SET_BATCH_LIMIT_SQL = """
UPDATE batches SET limit_nanodollars = %s
WHERE tenant_id = %s AND id::text = %s AND limit_nanodollars IS DISTINCT FROM %s::bigint
"""
SET_LIMIT_SQL = """
INSERT INTO ledger_accounts (tenant_id, scope, subject, limit_nanodollars, mode) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (tenant_id, scope, subject) DO UPDATE
SET limit_nanodollars = EXCLUDED.limit_nanodollars, mode = EXCLUDED.mode,
    version = ledger_accounts.version + 1, updated_at = now()
"""
DUE_SQL = """
SELECT call_id, attempt, tenant_id, api_key_id, batch_id, profile FROM ledger_holds
WHERE state IN ('held', 'dispatched', 'in_doubt') AND due_at <= %s ORDER BY due_at LIMIT %s
"""
# a running batch may be older than any retention: its replies stay for as long as it can ask for them
PRUNE_SQL = """
WITH old AS (
    SELECT j.call_id, j.request_hash FROM ledger_journal j
    WHERE j.created_at < %(before)s
      AND NOT EXISTS (SELECT FROM batches b WHERE b.id::text = j.batch_id
                      AND (b.status <> ALL(%(final)s::text[]) OR b.updated_at >= %(before)s))
    ORDER BY j.created_at LIMIT %(count)s FOR UPDATE SKIP LOCKED
), forgotten AS (
    UPDATE ledger_holds h SET journaled = false FROM old
    WHERE h.call_id = old.call_id AND h.request_hash = old.request_hash AND h.journaled
)
DELETE FROM ledger_journal j USING old WHERE j.call_id = old.call_id AND j.request_hash = old.request_hash
"""

# --- verification: the fold once more, in SQL, against everything that was derived from the events ---------

MOVEMENTS = """
WITH moved AS (
    SELECT e.tenant_id, a.scope, a.subject, a.held, a.spent, a.requests, a.tokens
    FROM (SELECT *, CASE event_type WHEN 'precheck_hold' THEN 1 ELSE -1 END * cost_estimated_nanodollars AS change,
                 (event_type = 'commit')::integer AS request,
                 coalesce((usage ->> 'tokens_in')::bigint, 0) + coalesce((usage ->> 'tokens_out')::bigint, 0) AS token
          FROM ledger_events) e
    CROSS JOIN LATERAL (VALUES
        ('api_key', e.api_key_id, e.change, e.cost_actual_nanodollars, e.request, e.token),
        ('batch', e.batch_id, e.change, e.cost_actual_nanodollars, e.request, e.token),
        ('profile', e.profile, e.change, e.cost_actual_nanodollars, e.request, e.token),
        ('tenant_day', e.day::text, CASE WHEN e.day = e.hold_day THEN e.change ELSE 0 END,
         e.cost_actual_nanodollars, e.request, e.token),
        ('tenant_day', CASE WHEN e.day = e.hold_day THEN '' ELSE e.hold_day::text END, e.change, 0, 0, 0)
    ) AS a (scope, subject, held, spent, requests, tokens)
    WHERE a.subject <> ''
), folded AS (
    SELECT tenant_id, scope, subject, sum(held) AS held, sum(spent) AS spent, sum(requests) AS requests,
           sum(tokens) AS tokens
    FROM moved GROUP BY 1, 2, 3
)
"""
VERIFY_ACCOUNTS_SQL = (
    MOVEMENTS
    + """
SELECT tenant_id || ' ' || scope || ' ' || subject AS what,
       format('held %%s, spent %%s, requests %%s, tokens %%s', a.held_nanodollars, a.spent_nanodollars, a.requests, a.tokens) AS stored,
       format('held %%s, spent %%s, requests %%s, tokens %%s', f.held, f.spent, f.requests, f.tokens) AS folded
FROM folded f FULL JOIN ledger_accounts a USING (tenant_id, scope, subject)
WHERE (coalesce(a.held_nanodollars, 0), coalesce(a.spent_nanodollars, 0), coalesce(a.requests, 0), coalesce(a.tokens, 0))
      IS DISTINCT FROM (coalesce(f.held, 0), coalesce(f.spent, 0), coalesce(f.requests, 0), coalesce(f.tokens, 0))
"""
)
VERIFY_HOLDS_SQL = """
SELECT h.call_id || ' dispatch ' || h.attempt AS what,
       format('open %%s, charged %%s, %%s', h.open_nanodollars, h.charged_nanodollars, h.state) AS stored,
       format('open %%s, charged %%s, %%s commits', coalesce(e.open, 0), coalesce(e.charged, 0), coalesce(e.commits, 0)) AS folded
FROM ledger_holds h
FULL JOIN (
    SELECT call_id, attempt, sum(cost_actual_nanodollars) AS charged,
           sum(CASE event_type WHEN 'precheck_hold' THEN 1 ELSE -1 END * cost_estimated_nanodollars) AS open,
           count(*) FILTER (WHERE event_type = 'commit') AS commits
    FROM ledger_events GROUP BY 1, 2
) e USING (call_id, attempt)
WHERE (h.open_nanodollars, h.charged_nanodollars, (h.state = 'committed')::integer)
      IS DISTINCT FROM (e.open, e.charged, e.commits)
"""
VERIFY_OPEN_HOLDS_SQL = """
SELECT a.tenant_id || ' ' || a.scope || ' ' || a.subject AS what, 'held ' || a.held_nanodollars AS stored,
       'open holds ' || coalesce(h.open, 0) AS folded
FROM ledger_accounts a
LEFT JOIN (
    SELECT h.tenant_id, s.scope, s.subject, sum(h.open_nanodollars) AS open
    FROM ledger_holds h CROSS JOIN LATERAL (VALUES
        ('api_key', h.api_key_id), ('batch', h.batch_id), ('profile', h.profile), ('tenant_day', h.day::text)
    ) AS s (scope, subject)
    WHERE h.state IN ('held', 'dispatched', 'in_doubt') GROUP BY 1, 2, 3
) h USING (tenant_id, scope, subject)
WHERE a.held_nanodollars <> coalesce(h.open, 0)
"""
VERIFY_JOURNAL_SQL = """
SELECT call_id || ' ' || request_hash AS what, 'a journaled reply: ' || (j.call_id IS NOT NULL)::text AS stored,
       coalesce(h.commits, 0) || ' commits' AS folded
FROM ledger_journal j
FULL JOIN (
    SELECT call_id, request_hash, count(*) AS commits, max(attempt) AS attempt, max(charged_nanodollars) AS charged
    FROM ledger_holds WHERE journaled AND state = 'committed' GROUP BY 1, 2
) h USING (call_id, request_hash)
WHERE h.commits IS DISTINCT FROM 1 OR j.attempt IS DISTINCT FROM h.attempt
"""
COUNT_EVENTS_SQL = "SELECT count(*) AS events FROM ledger_events"


class PostgresLedgerBooks:
    """What the ledger says: balances, statements, days, limits and whether it all adds up."""

    def __init__(self, postgres: Postgres, clock: Clock) -> None:
        self._postgres = postgres
        self._clock = clock

    # --- what was spent ---

    async def today(self, tenant_id: str) -> date:
        """The tenant's day."""
        rows = await self._postgres.rows(TENANTS_SQL, [[tenant_id]])
        return day_in(rows[0]["time_zone"] if rows else "UTC", self._clock.now())

    async def spend_today(self, tenant_id: str, *, scope: str = "all", profile: str | None = None) -> Money:
        """What was spent today in the tenant's time zone, in all or of one profile."""
        if (scope == "all") != (profile is None) or scope not in ("all", Scope.PROFILE):
            raise InvalidInput("scope: state all, or profile together with its name.", field="scope")
        sql, more = (SPEND_OF_DAY_SQL, []) if profile is None else (SPEND_OF_PROFILE_SQL, [profile])
        row = await self._postgres.row(sql, [tenant_id, await self.today(tenant_id), *more])
        return ZERO if row is None else Money(row["spent_nanodollars"])

    async def days(self, tenant_id: str, first: date, last: date) -> list[DaySpend]:
        """The tenant's days on which anything was held or spent, newest first."""
        rows = await self._postgres.rows(DAYS_SQL, [tenant_id, first.isoformat(), last.isoformat()])
        return [
            DaySpend(
                row["day"],
                Money(row["spent_nanodollars"]),
                Money(row["held_nanodollars"]),
                row["requests"],
                row["tokens"],
            )
            for row in rows
        ]

    async def balances(
        self,
        tenant_id: str,
        scope: Scope | None = None,
        subject: str | None = None,
        count: int = 100,
    ) -> list[AccountBalance]:
        """The tenant's accounts, at most `count`."""
        parameters = {"tenant_id": tenant_id, "scope": scope, "subject": subject, "count": count}
        return [_balance(row) for row in await self._postgres.rows(BALANCES_SQL, parameters)]

    async def quota(self, payer: Payer) -> list[AccountBalance]:
        """The payer's accounts today, by one query; zeros and version 0 where nothing was held yet."""
        now = self._clock.now()
        # the tenant's zone is known with the answer: one of these three is its day
        days = [now.astimezone(UTC).date() + timedelta(days=each) for each in (-1, 0, 1)]
        wanted = {account for day in days for account in accounts_of(payer, day)}
        parameters: dict[str, Any] = {**columns_of(wanted), "batches": batch_ids(wanted)}
        rows = await self._postgres.rows(QUOTA_SQL, parameters)
        return [_balance(row) for row in rows if _is_of_today(row, now)]

    async def changed_since(self, moment: datetime, count: int) -> list[AccountBalance]:
        """At most `count` accounts that changed since then, newest first.

        A change is dated by the beginning of its transaction: look back some seconds further than last time.
        """
        return [_balance(row) for row in await self._postgres.rows(CHANGED_SQL, [moment, count])]

    async def client_calls(
        self, api_key_id: str, request_hash: str, since: datetime, count: int = 100
    ) -> list[str]:
        """The calls that a key's client made with this request, by their own ids, newest first."""
        rows = await self._postgres.rows(CLIENT_CALLS_SQL, [api_key_id, request_hash, since, count])
        return [row["client_call_id"] for row in rows]

    async def underway(self, call: LedgerCall, fence: Fence | None) -> Underway | None:
        """Until when a call that was under way still is; `None` when the writer must be asked."""
        parameters = {
            "call_id": call.key.id,
            "request_hash": call.request_hash,
            "now": self._clock.now(),
            "thread_id": fence.thread_id if fence else None,
            "epoch": fence.epoch if fence else None,
        }
        row = await self._postgres.row(UNDERWAY_SQL, parameters)
        return None if row is None else Underway(row["due_at"])

    async def statement(
        self,
        tenant_id: str,
        first: date,
        last: date,
        *,
        batch_id: str | None = None,
        count: int = 100,
        skipped: int = 0,
    ) -> list[LedgerEvent]:
        """The tenant's events of these days, newest first."""
        parameters = {
            "tenant_id": tenant_id,
            "first": first,
            "last": last,
            "batch_id": batch_id,
            "count": count,
            "skipped": skipped,
        }
        return [event_of(row) for row in await self._postgres.rows(STATEMENT_SQL, parameters)]

    async def in_doubt(self, batch_id: str) -> Money:
        """What of a batch is charged at its hold and not settled yet; above zero it is `settling`."""
        row = await self._postgres.row(IN_DOUBT_SQL, [batch_id])
        return ZERO if row is None else Money(row["amount"])

    # --- what may be spent ---

    async def set_tenant(self, tenant_id: str, budget: TenantBudget) -> None:
        """State the tenant's time zone, limits and mode; they hold for the next call."""
        try:
            ZoneInfo(budget.time_zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise InvalidInput(
                f"time_zone: {budget.time_zone!r} is no IANA time zone.", field="time_zone"
            ) from error
        limits = [_plain(budget.call_limit), _plain(budget.daily_limit)]
        today = day_in(budget.time_zone, self._clock.now())
        async with self._postgres.transaction() as connection:
            await connection.execute(SET_TENANT_SQL, [tenant_id, budget.time_zone, *limits, budget.mode])
            await connection.execute(TOUCH_DAYS_SQL, [tenant_id, today])

    async def set_limit(self, account: Account, limit: Money | None, mode: Mode | None = None) -> None:
        """State the limit and the mode of a key, batch or profile; a tenant's day is `set_tenant`'s."""
        if account.scope not in (Scope.API_KEY, Scope.BATCH, Scope.PROFILE):
            raise InvalidInput(f"scope: {account.scope} has no account with a limit.", field="scope")
        amount = _plain(limit)
        async with self._postgres.transaction() as connection:
            if account.scope is Scope.BATCH:
                await connection.execute(
                    SET_BATCH_LIMIT_SQL, [amount, account.tenant_id, account.subject, amount]
                )
            await connection.execute(SET_LIMIT_SQL, [*account, amount, mode])

    async def modes(self, payer: Payer) -> list[Mode | None]:
        """What key, batch and tenant have set, for `chosen_mode`."""
        rows = await self._postgres.rows(MODES_SQL, vars(payer))
        return [row["mode"] and Mode(row["mode"]) for row in rows]

    # --- upkeep ---

    async def due(self, count: int) -> list[Sweep]:
        """Holds whose time has come, oldest first."""
        rows = await self._postgres.rows(DUE_SQL, [self._clock.now(), count])
        return [Sweep(row["call_id"], row["attempt"], payer_of(row)) for row in rows]

    async def prune(self, before: datetime, final_states: Iterable[str], count: int = 1000) -> int:
        """Forget replies older than `before`, of batches that ended before it; answers how many.

        Refuses a moment less than `MIN_RETENTION_DAYS` ago: Temporal could still ask for them.
        """
        if (self._clock.now() - before).days < MIN_RETENTION_DAYS:
            raise InvalidInput(f"before: the journal is kept for {MIN_RETENTION_DAYS} days.", field="before")
        parameters = {"before": before, "final": list(final_states), "count": count}
        return await self._postgres.run(PRUNE_SQL, parameters)

    async def verify(self, worst: int = 100) -> tuple[int, list[dict[str, str]]]:
        """How many events there are, and at most `worst` things that are not what the events say.

        One snapshot; the sums are made by Postgres, which spills to disk, and only differences come here.
        """
        async with self._postgres.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            await connection.execute("SET LOCAL statement_timeout = 0")
            cursor = await connection.execute(COUNT_EVENTS_SQL)
            counted = await cursor.fetchone()
            wrong = [each async for each in _differences(connection, worst)]
        return (counted["events"] if counted else 0), wrong


async def _differences(connection: Connection, worst: int) -> Any:
    left = worst
    checks = (VERIFY_ACCOUNTS_SQL, VERIFY_OPEN_HOLDS_SQL, VERIFY_HOLDS_SQL, VERIFY_JOURNAL_SQL)
    for sql in checks:
        async with connection.cursor(name="differences") as cursor:
            # the statements double their percent signs for psycopg, with or without parameters
            await cursor.execute(sql, [])
            for row in await cursor.fetchmany(left):
                left -= 1
                yield dict(row)
        if not left:
            return


def _plain(amount: Money | None) -> int | None:
    return None if amount is None else int(amount)


# --- mappers ---------------------------------------------------------------------------------------------


def day_in(time_zone: str, now: datetime) -> date:
    """The day of a moment in a time zone."""
    return now.astimezone(ZoneInfo(time_zone)).date()


def columns_of(accounts: Iterable[Account]) -> dict[str, list[str]]:
    """Accounts as the arrays that the statements take."""
    listed = sorted(accounts)
    return {
        "tenants": [account.tenant_id for account in listed],
        "scopes": [str(account.scope) for account in listed],
        "subjects": [account.subject for account in listed],
    }


def budget_of(row: DictRow) -> TenantBudget:
    """A tenant's settings."""
    return TenantBudget(
        row["time_zone"],
        _money(row["call_limit_nanodollars"]),
        _money(row["day_limit_nanodollars"]),
        row["mode"] and Mode(row["mode"]),
    )


def accounts_in(rows: Iterable[DictRow], budgets: Mapping[str, TenantBudget]) -> Accounts:
    """Accounts as the book has them; a day's limit is its tenant's."""
    accounts = Accounts()
    for row in rows:
        account = Account(row["tenant_id"], Scope(row["scope"]), row["subject"])
        limit = row["limit_nanodollars"]
        if account.scope is Scope.TENANT_DAY:
            limit = _plain(budgets[account.tenant_id].daily_limit) if account.tenant_id in budgets else None
        accounts[account] = AccountRow(
            limit=limit,
            held=row["held_nanodollars"],
            spent=row["spent_nanodollars"],
            requests=row["requests"],
            tokens=row["tokens"],
            version=row["version"],
        )
    return accounts


def payer_of(row: DictRow) -> Payer:
    """Who pays."""
    return Payer(row["tenant_id"], row["batch_id"], row["api_key_id"], row["profile"])


def hold_of(row: DictRow) -> HoldRow:
    """A hold as the book has it."""
    return HoldRow(
        call_id=row["call_id"],
        attempt=row["attempt"],
        request_hash=row["request_hash"],
        payer=payer_of(row),
        file_id=row["file_id"],
        trace_id=row["trace_id"],
        provider=row["provider"],
        model=row["model"],
        state=HoldState(row["state"]),
        estimated=row["estimated_nanodollars"],
        likely=row["likely_nanodollars"],
        open=row["open_nanodollars"],
        charged=row["charged_nanodollars"],
        doubt_rule=DoubtRule(row["doubt_rule"]),
        rates=json_of(row["rates"]),
        token=row["token"],
        journaled=row["journaled"],
        reply_seconds=row["reply_seconds"],
        day=row["day"],
        due_at=row["due_at"],
        client_call_id=row["client_call_id"],
    )


def entry_of(row: DictRow) -> JournalEntry:
    """A journaled reply."""
    usage = row["usage"]
    tokens = Usage(usage.get("tokens_in", 0), usage.get("tokens_out", 0), usage.get("tokens_cached", 0))
    reply = CompletionReply(
        text=row["reply"],
        usage=tokens,
        model=row["model"],
        advisory=row["advisory"],
        finish_reason=FinishReason(row["finish_reason"]),
        choices=row["choices"],
    )
    return JournalEntry(
        reply, row["provider"], Money(row["actual_nanodollars"]), row["attempt"], row["created_at"]
    )


def event_of(row: DictRow) -> LedgerEvent:
    """A written event."""
    return LedgerEvent(
        event_id=row["event_id"],
        event_type=EventType(row["event_type"]),
        call_id=row["call_id"],
        attempt=row["attempt"],
        payer=payer_of(row),
        estimated=Money(row["cost_estimated_nanodollars"]),
        actual=Money(row["cost_actual_nanodollars"]),
        day=row["day"],
        hold_day=row["hold_day"],
        occurred_at=row["occurred_at"],
        status=EventStatus(row["status"]),
        provider=row["provider"],
        model=row["model"],
        trace_id=row["trace_id"],
        file_id=row["file_id"],
        usage=row["usage"],
        rates=json_of(row["rates"]),
        timing=Timing(row["ttft_ms"], row["total_ms"]),
        reference=row["reference"],
    )


def _money(amount: int | None) -> Money | None:
    return None if amount is None else Money(amount)


def _is_of_today(row: DictRow, now: datetime) -> bool:
    today = day_in(row["time_zone"], now).isoformat()
    return bool(row["scope"] != Scope.TENANT_DAY or row["subject"] == today)


def balances_of(book: Book) -> list[AccountBalance]:
    """The accounts that a written book changed, as they now stand."""
    balances = []
    for account in book.changed_accounts:
        row = book.accounts[account]
        limit, held, spent = _money(row.limit), Money(row.held), Money(row.spent)
        # it was read under its lock and written once since then
        version = row.version + 1
        balances.append(AccountBalance(account, limit, held, spent, row.requests, row.tokens, version))
    return balances


def _balance(row: DictRow) -> AccountBalance:
    return AccountBalance(
        Account(row["tenant_id"], Scope(row["scope"]), row["subject"]),
        _money(row["limit_now"]),
        Money(row["held_nanodollars"]),
        Money(row["spent_nanodollars"]),
        row["requests"],
        row["tokens"],
        row["version"],
    )


def batch_ids(accounts: Iterable[Account]) -> list[UUID]:
    """The batches among the accounts; a subject that is no id of ours has no limit to be read."""
    return [
        UUID(each.subject) for each in accounts if each.scope is Scope.BATCH and _UUID.fullmatch(each.subject)
    ]

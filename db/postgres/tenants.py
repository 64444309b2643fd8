"""Tenants, their profiles, their API keys, and the idempotency keys of their requests."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from psycopg.rows import DictRow

from db.bunches import Bunches
from db.postgres.ledger import SET_LIMIT_SQL, SET_TENANT_SQL
from db.postgres.pool import Connection, Postgres
from domain.errors import Conflict, IdempotencyMismatch, NotFound, Unauthenticated
from domain.gateway import Caller
from domain.keys import (
    KEY_SCOPES,
    ApiKey,
    KeyChanges,
    KeyTerms,
    MadeKey,
    Revocation,
    Tenant,
    TenantChanges,
    TenantTerms,
    check_profile,
    check_tenant_id,
    new_secret,
    prefix_of,
    rate_limits,
    unknown_profile,
)
from domain.ledger import Account, AccountBalance, Mode, Scope
from domain.money import Money
from domain.ports import Claim

# --- keys ------------------------------------------------------------------------------------------------

# asked at every request, of those that have come: a key that is revoked opens nothing from then on
AUTHENTICATE_SQL = """
SELECT k.sha256, k.id, k.tenant_id, k.scopes, k.profile, k.models, k.default_max_tokens,
       k.requests_per_minute, k.tokens_per_minute, k.max_concurrent,
       t.requests_per_minute AS all_requests_per_minute, t.tokens_per_minute AS all_tokens_per_minute,
       t.max_concurrent AS all_max_concurrent
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.sha256 = ANY(%s) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
"""
ENSURE_TENANT_SQL = "INSERT INTO tenants (id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING"
ENSURE_KEY_SQL = """
INSERT INTO api_keys (tenant_id, name, prefix, sha256, scopes)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT (sha256) DO NOTHING
"""
CREATE_KEY_SQL = """
INSERT INTO api_keys (id, tenant_id, prefix, sha256, scopes, name, profile, models, default_max_tokens,
                      requests_per_minute, tokens_per_minute, max_concurrent, expires_at)
VALUES (%(id)s, %(tenant_id)s, %(prefix)s, %(sha256)s, %(scopes)s, %(name)s, %(profile)s, %(models)s,
        %(default_max_tokens)s, %(requests_per_minute)s, %(tokens_per_minute)s, %(max_concurrent)s, %(expires_at)s)
ON CONFLICT (id) DO NOTHING
"""
KEYS_SQL = """
SELECT k.id, k.tenant_id, k.prefix, k.scopes, k.name, k.profile, k.models, k.default_max_tokens,
       k.requests_per_minute, k.tokens_per_minute, k.max_concurrent, k.expires_at, k.created_at, k.revoked_at,
       a.limit_nanodollars, a.mode, a.held_nanodollars, a.spent_nanodollars, a.requests, a.tokens, a.version
FROM api_keys k
LEFT JOIN ledger_accounts a ON (a.tenant_id, a.scope, a.subject) = (k.tenant_id, 'api_key', k.id::text)
WHERE k.tenant_id = %(tenant_id)s
"""
KEY_SQL = KEYS_SQL + "AND k.id = %(key_id)s"
# By itself: who waited for the lock must read anew, in another statement. In one statement the key would be new
# and its account as it was before the wait, and a limit set meanwhile would be undone.
LOCK_KEY_SQL = "SELECT FROM api_keys WHERE tenant_id = %(tenant_id)s AND id = %(key_id)s FOR NO KEY UPDATE"
LIST_KEYS_SQL = KEYS_SQL + "ORDER BY k.created_at DESC, k.id LIMIT %(count)s OFFSET %(skipped)s"
COUNT_KEYS_SQL = "SELECT count(*) AS total FROM api_keys WHERE tenant_id = %s"
CHANGE_KEY_SQL = """
UPDATE api_keys
SET name = %(name)s, profile = %(profile)s, models = %(models)s, default_max_tokens = %(default_max_tokens)s,
    requests_per_minute = %(requests_per_minute)s, tokens_per_minute = %(tokens_per_minute)s,
    max_concurrent = %(max_concurrent)s, expires_at = %(expires_at)s
WHERE id = %(id)s
"""
REVOKE_KEY_SQL = """
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE tenant_id = %(tenant_id)s AND id = %(key_id)s
"""
ADMINS_LEFT_SQL = """
SELECT count(*) AS admins FROM api_keys
WHERE tenant_id = %s AND 'admin' = ANY(scopes) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""

# --- tenants and profiles --------------------------------------------------------------------------------

TENANTS_SQL = """
SELECT t.id, t.name, t.created_at, t.requests_per_minute, t.tokens_per_minute, t.max_concurrent,
       coalesce(l.time_zone, 'UTC') AS time_zone, l.call_limit_nanodollars, l.day_limit_nanodollars, l.mode
FROM tenants t LEFT JOIN ledger_tenants l ON l.tenant_id = t.id
"""
TENANT_SQL = TENANTS_SQL + "WHERE t.id = %s"
# by itself, as for a key; weaker than FOR UPDATE: whoever inserts a row that refers to the tenant does not wait
LOCK_TENANT_SQL = "SELECT FROM tenants WHERE id = %s FOR NO KEY UPDATE"
LIST_TENANTS_SQL = TENANTS_SQL + "ORDER BY t.id LIMIT %s OFFSET %s"
COUNT_TENANTS_SQL = "SELECT count(*) AS total FROM tenants"
CHANGE_TENANT_SQL = """
UPDATE tenants SET name = %(name)s, requests_per_minute = %(requests_per_minute)s,
                   tokens_per_minute = %(tokens_per_minute)s, max_concurrent = %(max_concurrent)s
WHERE id = %(id)s
"""
PROFILE_SQL = """
SELECT * FROM ledger_accounts WHERE tenant_id = %s AND scope = 'profile' AND subject = %s
"""
PROFILE_KNOWN_SQL = "SELECT FROM ledger_accounts WHERE tenant_id = %s AND scope = 'profile' AND subject = %s"
# a profile has no mode: that is a setting of key, batch and tenant
SET_PROFILE_SQL = """
INSERT INTO ledger_accounts (tenant_id, scope, subject, limit_nanodollars) VALUES (%s, 'profile', %s, %s)
ON CONFLICT (tenant_id, scope, subject) DO UPDATE
SET limit_nanodollars = EXCLUDED.limit_nanodollars, version = ledger_accounts.version + 1, updated_at = now()
"""
# the limit is read under the lock of its batch: a change of it waits, and its trigger then finds this row
SET_BATCH_MODE_SQL = """
WITH known AS (
    SELECT tenant_id, id::text AS subject, limit_nanodollars FROM batches
    WHERE tenant_id = %s AND id = %s FOR SHARE
)
INSERT INTO ledger_accounts (tenant_id, scope, subject, limit_nanodollars, mode)
SELECT tenant_id, 'batch', subject, limit_nanodollars, %s FROM known
ON CONFLICT (tenant_id, scope, subject) DO UPDATE
SET mode = EXCLUDED.mode, version = ledger_accounts.version + 1, updated_at = now()
"""

# --- idempotency keys ------------------------------------------------------------------------------------

CLAIM_SQL = """
INSERT INTO idempotency_keys AS known (tenant_id, key, request_sha256, created_id) VALUES (%s, %s, %s, %s)
ON CONFLICT (tenant_id, key) DO UPDATE SET key = known.key
RETURNING request_sha256, created_id, (xmax = 0) AS first
"""
RELEASE_SQL = "DELETE FROM idempotency_keys WHERE tenant_id = %s AND key = %s"


def key_hash(secret: str) -> bytes:
    """What is stored of a key."""
    # no key has half a surrogate pair in it, and asking for one is no defect
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


class PostgresKeys:
    """API keys; only their hashes are stored."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._arrivals: Bunches[bytes, Caller | None] = Bunches(self._callers)

    async def authenticate(self, secret: str) -> Caller:
        """The caller of that key; raises `Unauthenticated`."""
        caller = await self._arrivals.ask(key_hash(secret))
        if caller is None:
            raise Unauthenticated("This key is not known, or it has expired or been revoked.")
        return caller

    async def _callers(self, hashes: Sequence[bytes]) -> list[Caller | None]:
        rows = await self._postgres.rows(AUTHENTICATE_SQL, [list(set(hashes))])
        callers = {row["sha256"]: _caller(row) for row in rows}
        return [callers.get(each) for each in hashes]

    async def ensure(self, tenant_id: str, tenant_name: str, key_name: str, secret: str) -> None:
        """Make the tenant and the key, one that may everything, if they are not there."""
        async with self._postgres.transaction() as connection:
            await connection.execute(ENSURE_TENANT_SQL, [tenant_id, tenant_name])
            await connection.execute(
                ENSURE_KEY_SQL, [tenant_id, key_name, prefix_of(secret), key_hash(secret), list(KEY_SCOPES)]
            )

    async def create(self, tenant_id: str, key_id: str, terms: KeyTerms) -> MadeKey:
        """Make the key of that id; a repetition answers the key that is there, without its secret."""
        async with self._postgres.transaction() as connection:
            await _read_tenant(connection, TENANT_SQL, tenant_id)
            return await _make_key(connection, tenant_id, key_id, terms)

    async def read(self, tenant_id: str, key_id: str) -> ApiKey:
        """The key."""
        async with self._postgres.connection() as connection:
            return await _read_key(connection, KEY_SQL, tenant_id, key_id)

    async def list_of_tenant(self, tenant_id: str, page: int, page_size: int) -> tuple[list[ApiKey], int]:
        """One page, newest first, revoked ones too, and how many there are."""
        parameters = {"tenant_id": tenant_id, "count": page_size, "skipped": (page - 1) * page_size}
        rows = await self._postgres.rows(LIST_KEYS_SQL, parameters)
        counted = await self._postgres.row(COUNT_KEYS_SQL, [tenant_id])
        return [_key(row) for row in rows], _total(counted)

    async def change(self, tenant_id: str, key_id: str, changes: KeyChanges) -> ApiKey:
        """Change terms, all of them or none; they hold for the next request."""
        async with self._postgres.transaction() as connection:
            await connection.execute(LOCK_KEY_SQL, {"tenant_id": tenant_id, "key_id": key_id})
            known = await _read_key(connection, KEY_SQL, tenant_id, key_id)
            if known.revoked_at is not None:
                raise Conflict("The key is revoked, for ever; make another one.", field="key_id")
            terms = replace(known.terms, **changes)
            if "profile" in changes:
                await _check_profile(connection, tenant_id, terms.profile)
            await connection.execute(CHANGE_KEY_SQL, {**_columns(terms), "id": key_id})
            if {"limit", "mode"} & changes.keys():
                await _set_budget(connection, known.balance.account, terms)
            return await _read_key(connection, KEY_SQL, tenant_id, key_id)

    async def revoke(self, tenant_id: str, key_id: str) -> Revocation:
        """End the key's life now and for ever; a repetition changes nothing."""
        async with self._postgres.transaction() as connection:
            # of two that revoke the last two admin keys, one is told that none is left
            await _lock_tenant(connection, tenant_id)
            await connection.execute(REVOKE_KEY_SQL, {"tenant_id": tenant_id, "key_id": key_id})
            key = await _read_key(connection, KEY_SQL, tenant_id, key_id)
            row = await (await connection.execute(ADMINS_LEFT_SQL, [tenant_id])).fetchone()
            return Revocation(key, row["admins"] if row else 0)


class PostgresTenants:
    """Tenants and their profiles."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def create(
        self, tenant_id: str, terms: TenantTerms, key_id: str, key: KeyTerms
    ) -> tuple[Tenant, MadeKey]:
        """Make the tenant with its first key, or neither; a tenant that has other keys is a `Conflict`."""
        async with self._postgres.transaction() as connection:
            made = await connection.execute(ENSURE_TENANT_SQL, [check_tenant_id(tenant_id), terms.name])
            if made.rowcount:
                await _write_tenant(connection, tenant_id, terms)
                first = await _make_key(connection, tenant_id, key_id, key)
            else:
                first = await _first_key(connection, tenant_id, key_id)
            return await _read_tenant(connection, TENANT_SQL, tenant_id), first

    async def read(self, tenant_id: str) -> Tenant:
        """The tenant."""
        async with self._postgres.connection() as connection:
            return await _read_tenant(connection, TENANT_SQL, tenant_id)

    async def list_all(self, page: int, page_size: int) -> tuple[list[Tenant], int]:
        """One page, by id, and how many there are."""
        rows = await self._postgres.rows(LIST_TENANTS_SQL, [page_size, (page - 1) * page_size])
        return [_tenant(row) for row in rows], _total(await self._postgres.row(COUNT_TENANTS_SQL))

    async def change(self, tenant_id: str, changes: TenantChanges) -> Tenant:
        """Change terms, all of them or none; they hold for the next call."""
        async with self._postgres.transaction() as connection:
            known = await _lock_tenant(connection, tenant_id)
            await _write_tenant(connection, tenant_id, replace(known.terms, **changes))
            return await _read_tenant(connection, TENANT_SQL, tenant_id)

    async def profile(self, tenant_id: str, name: str) -> AccountBalance:
        """The account of a profile that has a budget or has spent something."""
        row = await self._postgres.row(PROFILE_SQL, [tenant_id, check_profile(name)])
        if row is None:
            raise NotFound(
                f"There is no profile {name}: nothing was spent in it, and no budget is set.", field="profile"
            )
        return balance_of(Account(tenant_id, Scope.PROFILE, name), row)

    async def set_profile(self, tenant_id: str, name: str, limit: Money | None) -> AccountBalance:
        """State a profile's budget."""
        parameters = [tenant_id, check_profile(name), _plain(limit)]
        async with self._postgres.transaction() as connection:
            await _read_tenant(connection, TENANT_SQL, tenant_id)
            await connection.execute(SET_PROFILE_SQL, parameters)
        return await self.profile(tenant_id, name)

    async def set_batch_mode(self, tenant_id: str, batch_id: str, mode: Mode | None) -> None:
        """State a batch's mode."""
        if not await self._postgres.run(SET_BATCH_MODE_SQL, [tenant_id, batch_id, mode]):
            raise NotFound(f"There is no batch {batch_id}.", field="batch_id")


class PostgresIdempotencyKeys:
    """Which id a creating request makes, so that its repetition makes the same one."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def claim(self, tenant_id: str, key: str, request_sha256: str, new_id: str) -> Claim:
        """Bind the key to the new id, unless it is bound; raises `IdempotencyMismatch` for another request."""
        row = await self._postgres.row(CLAIM_SQL, [tenant_id, key, request_sha256, new_id])
        assert row is not None
        if row["request_sha256"] != request_sha256:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used with another request; use a new one.", field="Idempotency-Key"
            )
        return Claim(str(row["created_id"]), row["first"])

    async def release(self, tenant_id: str, key: str) -> None:
        """Forget the claim of a request that was refused, so that a corrected one may use the key."""
        await self._postgres.run(RELEASE_SQL, [tenant_id, key])


# --- within a transaction ----------------------------------------------------------------------------------


async def _make_key(connection: Connection, tenant_id: str, key_id: str, terms: KeyTerms) -> MadeKey:
    await _check_profile(connection, tenant_id, terms.profile)
    secret = new_secret()
    identity = {"id": key_id, "tenant_id": tenant_id, "prefix": prefix_of(secret), "sha256": key_hash(secret)}
    scopes = [each for each in KEY_SCOPES if each in terms.scopes]
    made = await connection.execute(CREATE_KEY_SQL, {**_columns(terms), **identity, "scopes": scopes})
    if made.rowcount and (terms.limit is not None or terms.mode is not None):
        await _set_budget(connection, Account(tenant_id, Scope.API_KEY, key_id), terms)
    key = await _read_key(connection, KEY_SQL, tenant_id, key_id)
    return MadeKey(key, secret if made.rowcount else None)


async def _check_profile(connection: Connection, tenant_id: str, name: str) -> None:
    # accounts are never deleted: what is known now stays known
    if name and await (await connection.execute(PROFILE_KNOWN_SQL, [tenant_id, name])).fetchone() is None:
        raise unknown_profile(name)


async def _first_key(connection: Connection, tenant_id: str, key_id: str) -> MadeKey:
    try:
        return MadeKey(await _read_key(connection, KEY_SQL, tenant_id, key_id), None)
    except NotFound:
        raise Conflict(
            f"tenant_id: there is a tenant {tenant_id} already; choose another id.", field="tenant_id"
        ) from None


async def _set_budget(connection: Connection, account: Account, terms: KeyTerms) -> None:
    await connection.execute(SET_LIMIT_SQL, [*account, _plain(terms.limit), terms.mode])


async def _read_key(connection: Connection, statement: str, tenant_id: str, key_id: str) -> ApiKey:
    row = await (await connection.execute(statement, {"tenant_id": tenant_id, "key_id": key_id})).fetchone()
    if row is None:
        raise NotFound(f"There is no key {key_id}.", field="key_id")
    return _key(row)


async def _lock_tenant(connection: Connection, tenant_id: str) -> Tenant:
    await connection.execute(LOCK_TENANT_SQL, [tenant_id])
    return await _read_tenant(connection, TENANT_SQL, tenant_id)


async def _read_tenant(connection: Connection, statement: str, tenant_id: str) -> Tenant:
    row = await (await connection.execute(statement, [tenant_id])).fetchone()
    if row is None:
        raise NotFound(
            f"There is no tenant {tenant_id}. Make it: assay tenant create {tenant_id}.", field="tenant_id"
        )
    return _tenant(row)


async def _write_tenant(connection: Connection, tenant_id: str, terms: TenantTerms) -> None:
    await connection.execute(CHANGE_TENANT_SQL, {**vars(terms), "id": tenant_id})
    limits = [_plain(terms.call_limit), _plain(terms.daily_limit)]
    await connection.execute(SET_TENANT_SQL, [tenant_id, terms.time_zone, *limits, terms.mode])


# --- mappers -----------------------------------------------------------------------------------------------


def _columns(terms: KeyTerms) -> dict[str, Any]:
    return {**vars(terms), "models": list(terms.models), "scopes": list(terms.scopes)}


def _caller(row: DictRow) -> Caller:
    own = rate_limits(
        f"key/{row['id']}", row["requests_per_minute"], row["tokens_per_minute"], row["max_concurrent"]
    )
    of_all = rate_limits(
        "tenant", row["all_requests_per_minute"], row["all_tokens_per_minute"], row["all_max_concurrent"]
    )
    return Caller(
        tenant_id=row["tenant_id"],
        key_id=str(row["id"]),
        scopes=frozenset(row["scopes"]),
        profile=row["profile"],
        models=tuple(row["models"]),
        default_max_tokens=row["default_max_tokens"],
        limits=own + of_all,
    )


def _key(row: DictRow) -> ApiKey:
    account = Account(row["tenant_id"], Scope.API_KEY, str(row["id"]))
    terms = KeyTerms(
        name=row["name"],
        scopes=tuple(row["scopes"]),
        profile=row["profile"],
        models=tuple(row["models"]),
        default_max_tokens=row["default_max_tokens"],
        requests_per_minute=row["requests_per_minute"],
        tokens_per_minute=row["tokens_per_minute"],
        max_concurrent=row["max_concurrent"],
        limit=_money(row["limit_nanodollars"]),
        mode=row["mode"] and Mode(row["mode"]),
        expires_at=row["expires_at"],
    )
    balance = balance_of(account, row)
    return ApiKey(
        account.subject,
        account.tenant_id,
        row["prefix"],
        terms,
        row["created_at"],
        row["revoked_at"],
        balance,
    )


def balance_of(account: Account, row: DictRow) -> AccountBalance:
    """The account as its row has it, or as one in which nothing has happened yet."""
    return AccountBalance(
        account,
        _money(row["limit_nanodollars"]),
        Money(row["held_nanodollars"] or 0),
        Money(row["spent_nanodollars"] or 0),
        row["requests"] or 0,
        row["tokens"] or 0,
        row["version"] or 0,
    )


def _tenant(row: DictRow) -> Tenant:
    terms = TenantTerms(
        name=row["name"],
        time_zone=row["time_zone"],
        call_limit=_money(row["call_limit_nanodollars"]),
        daily_limit=_money(row["day_limit_nanodollars"]),
        mode=row["mode"] and Mode(row["mode"]),
        requests_per_minute=row["requests_per_minute"],
        tokens_per_minute=row["tokens_per_minute"],
        max_concurrent=row["max_concurrent"],
    )
    return Tenant(row["id"], terms, row["created_at"])


def _money(amount: int | None) -> Money | None:
    return None if amount is None else Money(amount)


def _plain(amount: Money | None) -> int | None:
    return None if amount is None else int(amount)


def _total(row: DictRow | None) -> int:
    return 0 if row is None else int(row["total"])

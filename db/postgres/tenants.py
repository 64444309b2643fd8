"""Tenants, their API keys and the idempotency keys of their requests."""

import hashlib

from db.postgres.pool import Postgres
from domain.errors import IdempotencyMismatch, Unauthenticated
from domain.gateway import Caller
from domain.ports import Claim

ALL_SCOPES = ("admin", "submit", "read")

AUTHENTICATE_SQL = """
SELECT id, tenant_id, scopes FROM api_keys
WHERE sha256 = %s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""
ENSURE_TENANT_SQL = "INSERT INTO tenants (id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING"
ENSURE_KEY_SQL = """
INSERT INTO api_keys (tenant_id, name, prefix, sha256, scopes)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT (sha256) DO NOTHING
"""
CLAIM_SQL = """
INSERT INTO idempotency_keys AS known (tenant_id, key, request_sha256, created_id) VALUES (%s, %s, %s, %s)
ON CONFLICT (tenant_id, key) DO UPDATE SET key = known.key
RETURNING request_sha256, created_id, (xmax = 0) AS first
"""
RELEASE_SQL = "DELETE FROM idempotency_keys WHERE tenant_id = %s AND key = %s"


def key_hash(secret: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).digest()


class PostgresKeys:
    """API keys; only their hashes are stored."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def authenticate(self, secret: str) -> Caller:
        """The caller of that key; raises `Unauthenticated`."""
        row = await self._postgres.row(AUTHENTICATE_SQL, [key_hash(secret)])
        if row is None:
            raise Unauthenticated("This key is not known, or it has expired or been revoked.")
        return Caller(row["tenant_id"], str(row["id"]), frozenset(row["scopes"]))

    async def ensure(self, tenant_id: str, tenant_name: str, key_name: str, secret: str) -> None:
        """Make the tenant and the key if they are not there."""
        async with self._postgres.transaction() as connection:
            await connection.execute(ENSURE_TENANT_SQL, [tenant_id, tenant_name])
            await connection.execute(
                ENSURE_KEY_SQL, [tenant_id, key_name, secret[:12], key_hash(secret), list(ALL_SCOPES)]
            )


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

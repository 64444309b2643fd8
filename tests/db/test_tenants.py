"""API keys and idempotency keys."""

import asyncio
from uuid import uuid4

import pytest

from db.postgres.grading import PostgresSubmissions
from db.postgres.pool import Postgres
from db.postgres.tenants import PostgresIdempotencyKeys, PostgresKeys, key_hash
from domain.errors import IdempotencyMismatch, Unauthenticated
from domain.exam import Exam
from domain.keys import KEY_SCOPES
from tests.db.stage import running_file


async def test_a_key_is_its_tenants_and_only_its_hash_is_stored(postgres: Postgres, fresh: str) -> None:
    keys, secret = PostgresKeys(postgres), f"assay_{fresh}_secret"
    await asyncio.gather(*(keys.ensure(f"t-{fresh}", "T", "key", secret) for _ in range(3)))
    caller = await keys.authenticate(secret)
    assert (caller.tenant_id, caller.scopes) == (f"t-{fresh}", set(KEY_SCOPES))
    rows = await postgres.rows("SELECT * FROM api_keys WHERE tenant_id = %s", [f"t-{fresh}"])
    assert len(rows) == 1
    assert secret not in str(rows[0])


@pytest.mark.parametrize(
    "change", ["revoked_at = now()", "expires_at = now() - interval '1 s'", "expires_at = now()"]
)
async def test_a_revoked_or_expired_key_opens_nothing(postgres: Postgres, fresh: str, change: str) -> None:
    keys, secret = PostgresKeys(postgres), f"assay_{fresh}_secret"
    await keys.ensure("local", "Local", "key", secret)
    changing = f"UPDATE api_keys SET {change} WHERE sha256 = %s"  # noqa: S608  # the cases above
    await postgres.run(changing, [key_hash(secret)])
    with pytest.raises(Unauthenticated):
        await keys.authenticate(secret)
    # to ensure it again does not bring it back
    await keys.ensure("local", "Local", "key", secret)
    with pytest.raises(Unauthenticated):
        await keys.authenticate(secret)


@pytest.mark.parametrize("secret", ["", " ", "assay_", "x" * 10_000, "钥匙"])
async def test_an_unknown_key_opens_nothing(postgres: Postgres, secret: str) -> None:
    with pytest.raises(Unauthenticated):
        await PostgresKeys(postgres).authenticate(secret)


@pytest.fixture
async def claims(postgres: Postgres) -> PostgresIdempotencyKeys:
    for tenant in ("local", "elsewhere"):
        await PostgresKeys(postgres).ensure(tenant, tenant, "key", f"assay_claims_{tenant}")
    return PostgresIdempotencyKeys(postgres)


async def test_a_repetition_gets_the_first_requests_id(claims: PostgresIdempotencyKeys, fresh: str) -> None:
    ids = [str(uuid4()) for _ in range(5)]
    made = await asyncio.gather(*(claims.claim("local", fresh, "request", each) for each in ids))
    assert len({claim.created_id for claim in made}) == 1
    assert [claim.first for claim in made].count(True) == 1
    [first] = [claim for claim in made if claim.first]
    assert first.created_id == ids[made.index(first)]


async def test_another_request_under_the_key_is_a_mismatch(
    claims: PostgresIdempotencyKeys, fresh: str
) -> None:
    first = await claims.claim("local", fresh, "request", str(uuid4()))
    with pytest.raises(IdempotencyMismatch) as raised:
        await claims.claim("local", fresh, "other request", str(uuid4()))
    assert raised.value.field == "Idempotency-Key"
    again = await claims.claim("local", fresh, "request", str(uuid4()))
    assert (again.created_id, again.first) == (first.created_id, False)


async def test_a_key_is_each_tenants_own(claims: PostgresIdempotencyKeys, fresh: str) -> None:
    first = await claims.claim("local", fresh, "request", str(uuid4()))
    theirs = await claims.claim("elsewhere", fresh, "other request", str(uuid4()))
    assert theirs.first
    assert theirs.created_id != first.created_id
    await claims.release("elsewhere", fresh)
    assert not (await claims.claim("local", fresh, "request", str(uuid4()))).first


async def test_a_released_key_takes_another_request(claims: PostgresIdempotencyKeys, fresh: str) -> None:
    await claims.claim("local", fresh, "refused request", str(uuid4()))
    await claims.release("local", fresh)
    await claims.release("local", fresh)
    assert (await claims.claim("local", fresh, "corrected request", str(uuid4()))).first


async def test_each_tenant_has_a_secret_of_its_own_that_comes_with_its_submissions(
    postgres: Postgres, exam: Exam, fresh: str
) -> None:
    await PostgresKeys(postgres).ensure(f"t-{fresh}", "T", "key", f"assay_{fresh}_other")
    rows = await postgres.rows("SELECT id, secret FROM tenants WHERE id = ANY(%s)", [["local", f"t-{fresh}"]])
    secrets = {row["id"]: bytes(row["secret"]) for row in rows}
    assert {len(each) for each in secrets.values()} == {32}
    assert len(set(secrets.values())) == 2
    found = await PostgresSubmissions(postgres).find((await running_file(postgres, exam)).file_id)
    assert found.tenant_secret == secrets["local"]
    assert str(found.tenant_secret) not in repr(found)

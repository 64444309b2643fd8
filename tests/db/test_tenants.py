"""API keys and idempotency keys."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from db.postgres.grading import PostgresSubmissions
from db.postgres.ledger import PostgresLedgerBooks
from db.postgres.pool import Postgres
from db.postgres.tenants import PostgresIdempotencyKeys, PostgresKeys, PostgresTenants, key_hash
from domain.completion import Payer
from domain.errors import BudgetExhausted, IdempotencyMismatch, InvalidInput, NotFound, Unauthenticated
from domain.exam import Exam
from domain.gateway import Caller, RateLimit
from domain.keys import KEY_SCOPES, KeyTerms, TenantTerms
from domain.ledger import Mode, Scope
from domain.money import Money
from runtime.resources import SystemClock
from tests.db.purse import a_call, held, opened_ledger
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


async def test_keys_asked_for_at_once_are_told_apart_and_a_revocation_is_heard_among_them(
    postgres: Postgres, fresh: str
) -> None:
    keys, others = PostgresKeys(postgres), PostgresKeys(postgres)
    secrets = [f"assay_{fresh}_{number}" for number in range(3)]
    for number, secret in enumerate(secrets):
        await others.ensure(f"t{number}-{fresh}", "T", "key", secret)

    async def tenant_of(secret: str) -> str | None:
        try:
            return (await keys.authenticate(secret)).tenant_id
        except Unauthenticated:
            return None

    asked = [*secrets, "assay_unknown", *reversed(secrets)]
    told = [*(f"t{number}-{fresh}" for number in range(3)), None, *(f"t{n}-{fresh}" for n in (2, 1, 0))]
    assert await asyncio.gather(*map(tenant_of, asked)) == told
    # of another process, while this one's requests come without a pause
    key_id = (await others.authenticate(secrets[0])).key_id
    under_way = [asyncio.create_task(tenant_of(each)) for each in asked]
    await others.revoke(f"t0-{fresh}", key_id)
    assert await asyncio.gather(*map(tenant_of, asked)) == [
        each if each != told[0] else None for each in told
    ]
    await asyncio.gather(*under_way)


@pytest.mark.parametrize("secret", ["", " ", "assay_", "x" * 10_000, "钥匙", "half \ud800 a pair"])
async def test_an_unknown_key_opens_nothing(postgres: Postgres, secret: str) -> None:
    with pytest.raises(Unauthenticated):
        await PostgresKeys(postgres).authenticate(secret)


async def test_of_a_short_secret_hardly_anything_is_shown(own_postgres: Postgres) -> None:
    for secret in ("k", "k3y", "short-secret", "assay_of_an_operator"):
        await PostgresKeys(own_postgres).ensure("local", "Local", secret, secret)
    rows = await own_postgres.rows("SELECT name, prefix FROM api_keys")
    assert {row["name"]: row["prefix"] for row in rows} == {
        "k": "", "k3y": "", "short-secret": "sho", "assay_of_an_operator": "assay",
    }  # fmt: skip


async def a_tenant(postgres: Postgres, fresh: str, **terms: Any) -> tuple[str, str]:
    """A new tenant and the secret of its first key."""
    tenant_id = f"t-{fresh}"
    _, first = await PostgresTenants(postgres).create(
        tenant_id, TenantTerms("T", **terms), str(uuid4()), KeyTerms("first", ("admin",))
    )
    assert first.secret
    return tenant_id, first.secret


async def test_a_caller_has_all_that_its_key_and_its_tenant_state(postgres: Postgres, fresh: str) -> None:
    keys = PostgresKeys(postgres)
    tenant_id, first = await a_tenant(postgres, fresh, requests_per_minute=600, max_concurrent=50)
    assert (await keys.authenticate(first)).limits == (
        RateLimit("tenant", "requests", 600),
        RateLimit("tenant", "calls", 50),
    )
    await PostgresTenants(postgres).set_profile(tenant_id, "networks", None)
    terms = KeyTerms(
        "key",
        ("read", "model"),
        profile="networks",
        models=("openai:*", "local"),
        default_max_tokens=300,
        requests_per_minute=60,
        tokens_per_minute=100_000,
        max_concurrent=4,
    )
    made = await keys.create(tenant_id, str(uuid4()), terms)
    assert await keys.authenticate(str(made.secret)) == Caller(
        tenant_id=tenant_id,
        key_id=made.key.id,
        scopes=frozenset({"read", "model"}),
        profile="networks",
        models=("openai:*", "local"),
        default_max_tokens=300,
        limits=(
            RateLimit(f"key/{made.key.id}", "requests", 60),
            RateLimit(f"key/{made.key.id}", "tokens", 100_000),
            RateLimit(f"key/{made.key.id}", "calls", 4),
            RateLimit("tenant", "requests", 600),
            RateLimit("tenant", "calls", 50),
        ),
    )


async def test_a_key_is_bound_to_no_profile_that_is_not_the_tenants(postgres: Postgres, fresh: str) -> None:
    keys, tenants = PostgresKeys(postgres), PostgresTenants(postgres)
    tenant_id, first = await a_tenant(postgres, fresh)
    other, _ = await a_tenant(postgres, f"{fresh}-other")
    await tenants.set_profile(other, "class", Money(1))
    key_id = (await keys.authenticate(first)).key_id
    with pytest.raises(InvalidInput, match="no profile 'class'"):
        await keys.create(tenant_id, str(uuid4()), KeyTerms("key", ("model",), profile="class"))
    with pytest.raises(InvalidInput, match="no profile 'class'"):
        await keys.change(tenant_id, key_id, {"profile": "class"})
    await tenants.set_profile(tenant_id, "class", None)
    assert (await keys.change(tenant_id, key_id, {"profile": "class"})).terms.profile == "class"
    assert (await keys.change(tenant_id, key_id, {"profile": ""})).terms.profile == ""


async def test_changed_terms_are_the_next_requests(postgres: Postgres, fresh: str) -> None:
    keys = PostgresKeys(postgres)
    tenant_id, first = await a_tenant(postgres, fresh)
    key_id = (await keys.authenticate(first)).key_id
    await keys.change(tenant_id, key_id, {"models": ("local",), "tokens_per_minute": 10})
    await PostgresTenants(postgres).change(tenant_id, {"max_concurrent": 2})
    caller = await keys.authenticate(first)
    assert (caller.models, caller.limits) == (
        ("local",),
        (RateLimit(f"key/{key_id}", "tokens", 10), RateLimit("tenant", "calls", 2)),
    )


async def test_of_those_who_revoke_the_last_admin_keys_at_once_one_is_told_that_none_is_left(
    postgres: Postgres, fresh: str
) -> None:
    keys = PostgresKeys(postgres)

    async def told(number: int) -> list[int]:
        tenant_id, first = await a_tenant(postgres, f"{fresh}-{number}")
        ids = [(await keys.authenticate(first)).key_id]
        for _ in range(3):
            made = await keys.create(tenant_id, str(uuid4()), KeyTerms("more", ("read", "admin")))
            ids.append(made.key.id)
        revoked = await asyncio.gather(*(keys.revoke(tenant_id, key_id) for key_id in ids))
        return sorted(each.admins_left for each in revoked)

    assert [await told(number) for number in range(10)] == [[0, 1, 2, 3]] * 10


async def test_a_key_and_a_profile_are_refused_at_their_budgets(
    postgres: Postgres, session_database_url: str, fresh: str
) -> None:
    tenant_id, _ = await a_tenant(postgres, fresh, call_limit=Money(500))
    keys, tenants = PostgresKeys(postgres), PostgresTenants(postgres)
    made = await keys.create(tenant_id, str(uuid4()), KeyTerms("key", ("model",), limit=Money(100)))
    await tenants.set_profile(tenant_id, "class", Money(200))
    payer = Payer(tenant_id, api_key_id=made.key.id, profile="class")
    async with opened_ledger(session_database_url) as ledger:

        async def refused(estimated: int) -> str:
            with pytest.raises(BudgetExhausted) as raised:
                await ledger.begin(a_call(payer, estimated))
            return raised.value.scope

        assert await refused(101) == "api_key"
        await keys.change(tenant_id, made.key.id, {"limit": Money(1_000)})
        assert await refused(201) == "profile"
        await tenants.set_profile(tenant_id, "class", None)
        assert await refused(501) == "call"
        await tenants.change(tenant_id, {"daily_limit": Money(0)})
        assert await refused(1) == "tenant_day"
        await tenants.change(tenant_id, {"daily_limit": None})
        await held(ledger, a_call(payer, 500))
        assert (await keys.read(tenant_id, made.key.id)).balance.left == 500


async def test_a_batchs_mode_leaves_its_limit(postgres: Postgres, exam: Exam, fresh: str) -> None:
    running = await running_file(postgres, exam)
    tenants = PostgresTenants(postgres)
    await postgres.run("UPDATE batches SET limit_nanodollars = 7 WHERE id = %s", [running.batch_id])
    books = PostgresLedgerBooks(postgres, SystemClock())
    for mode in (Mode.BEST_EFFORT, Mode.STRICT, None):
        await tenants.set_batch_mode("local", running.batch_id, mode)
        assert (await books.modes(Payer("local", running.batch_id)))[0] == mode
        [balance] = await books.balances("local", Scope.BATCH, running.batch_id)
        assert balance.limit == 7
    for tenant_id, batch_id in (("elsewhere", running.batch_id), ("local", str(uuid4()))):
        with pytest.raises(NotFound):
            await tenants.set_batch_mode(tenant_id, batch_id, Mode.STRICT)


async def test_a_tenant_that_cannot_be_made_whole_is_not_made(postgres: Postgres, fresh: str) -> None:
    """The key's id is another tenant's key: neither tenant nor settings are left behind."""
    _, first = await a_tenant(postgres, fresh)
    key_id = (await PostgresKeys(postgres).authenticate(first)).key_id
    tenants = PostgresTenants(postgres)
    with pytest.raises(NotFound):
        await tenants.create(f"u-{fresh}", TenantTerms("U"), key_id, KeyTerms("first", ("admin",)))
    with pytest.raises(NotFound):
        await tenants.read(f"u-{fresh}")


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

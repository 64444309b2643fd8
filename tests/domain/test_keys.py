"""What terms a key and a tenant can have."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from domain.errors import InvalidInput
from domain.keys import (
    LONGEST_LIFE,
    ApiKey,
    KeyTerms,
    Revocation,
    TenantTerms,
    check_expiry,
    new_secret,
    prefix_of,
)
from domain.ledger import MAX_AMOUNT, Account, AccountBalance, Scope
from domain.money import ZERO, Money

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TERMS = KeyTerms("key", ("read",))
BALANCE = AccountBalance(Account("t", Scope.API_KEY, "k"), None, ZERO, ZERO, 0, 0, 0)


def a_key(*, expires_at: datetime | None = None, revoked_at: datetime | None = None) -> ApiKey:
    return ApiKey("k", "t", "assay_", replace(TERMS, expires_at=expires_at), NOW, revoked_at, BALANCE)


def test_secrets_differ_and_their_prefix_gives_little_away() -> None:
    made = {new_secret() for _ in range(1_000)}
    assert len(made) == 1_000
    assert {(len(each), len(prefix_of(each))) for each in made} == {(49, 12)}


def test_a_key_is_active_until_the_moment_at_which_it_expires() -> None:
    key = a_key(expires_at=NOW)
    assert [key.state(NOW + timedelta(microseconds=each)) for each in (-1, 0, 1)] == [
        "active", "expired", "expired",
    ]  # fmt: skip
    assert a_key(expires_at=NOW, revoked_at=NOW).state(NOW) == "revoked"


@pytest.mark.parametrize(
    "expires_at",
    [NOW, NOW - timedelta(seconds=1), NOW + LONGEST_LIFE + timedelta(seconds=1), datetime(2027, 1, 1)],  # noqa: DTZ001  # the last one has no offset: that is its mistake
)
def test_a_moment_that_ends_no_keys_life_is_refused(expires_at: datetime) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_expiry(expires_at, NOW)
    assert raised.value.field == "expires_at"


def test_a_key_may_live_for_ever_or_for_long() -> None:
    for moment in (None, NOW + timedelta(seconds=1), NOW + LONGEST_LIFE):
        check_expiry(moment, NOW)


def test_whoever_revokes_the_last_admin_key_is_told_the_way_out() -> None:
    assert Revocation(a_key(), 1).warning is None
    assert "--scope admin --tenant t" in str(Revocation(a_key(), 0).warning)


def test_the_largest_terms_are_terms_and_larger_ones_none() -> None:
    replace(TERMS, limit=MAX_AMOUNT, name="n" * 255, models=("m" * 200,) * 100)
    for field, value in (
        ("limit", MAX_AMOUNT + 1),
        ("limit", Money(-1)),
        ("requests_per_minute", 1_000_001),
        ("tokens_per_minute", 2**31),
        ("max_concurrent", 0),
        ("default_max_tokens", 200_001),
    ):
        with pytest.raises(InvalidInput) as raised:
            replace(TERMS, **{field: value})
        assert raised.value.field == field


def test_a_time_zone_that_only_this_machine_knows_is_none() -> None:
    TenantTerms("t", time_zone="Asia/Shanghai")
    for name in ("localtime", "posixrules", "Asia", "", "/etc/localtime", "leapseconds"):
        with pytest.raises(InvalidInput):
            TenantTerms("t", time_zone=name)

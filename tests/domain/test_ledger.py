"""Prices, ids, states and the fold, without any database."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import product
from math import ceil
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.completion import Payer
from domain.errors import InvalidInput, UnpricedModel
from domain.ledger import (
    HOLD_MOVES,
    MAX_AMOUNT,
    OPEN_STATES,
    Account,
    Balance,
    CallKey,
    EventType,
    HoldState,
    LedgerCall,
    LedgerEvent,
    Mode,
    Rates,
    Scope,
    accounts_of,
    chosen_mode,
    event_id,
    fold,
    named_uuid,
)
from domain.money import Money

PAYER = Payer("t", "b", "k", "p")
MONDAY, TUESDAY = date(2026, 3, 2), date(2026, 3, 3)


def an_event(kind: EventType, estimated: int = 0, actual: int = 0, **fields: Any) -> LedgerEvent:
    known: dict[str, Any] = {"day": MONDAY, "hold_day": MONDAY}
    return LedgerEvent(
        uuid4(), kind, uuid4(), 1, PAYER, Money(estimated), Money(actual),
        occurred_at=datetime(2026, 3, 2, tzinfo=UTC), **(known | fields),
    )  # fmt: skip


# --- prices ---


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_cost_is_exact_and_rounded_up_once(tokens_in: int, tokens_out: int, one: int, other: int) -> None:
    rates = Rates("v", {"tokens_in": one, "tokens_out": other})
    exact = Fraction(tokens_in * one + tokens_out * other, 1_000_000)
    assert rates.cost({"tokens_in": tokens_in, "tokens_out": tokens_out}) == ceil(exact)


def test_cached_tokens_are_part_of_those_that_went_in() -> None:
    usage = {"tokens_in": 1_000_000, "tokens_cached": 400_000}
    assert Rates("v", {"tokens_in": 10}).cost(usage) == 10
    assert Rates("v", {"tokens_in": 10, "tokens_cached": 5}).cost(usage) == 6 + 2


def test_seconds_may_be_parts_and_a_float_is_refused() -> None:
    rates = Rates("v", {"audio_seconds": 3_000_000})
    assert rates.cost({"audio_seconds": Decimal("1.5")}) == 5
    for wrong in (1.5, -1, True):
        with pytest.raises(InvalidInput, match="audio_seconds"):
            rates.cost({"audio_seconds": wrong})  # type: ignore[dict-item]  # what is refused


def test_what_has_no_price_never_costs_zero_silently() -> None:
    """X4"""
    with pytest.raises(UnpricedModel, match="images"):
        Rates("v", {"tokens_in": 1}).cost({"tokens_in": 1, "images": 1})
    assert Rates("v").cost({"images": 0}) == 0


# --- identity ---


def test_ids_are_made_of_identity_and_differ_with_every_part_of_it() -> None:
    key = CallKey("t", "f/g1/q/c/r", 1, 1)
    others = [
        replace(key, tenant_id="u"),
        replace(key, step="s"),
        replace(key, generation=2),
        replace(key, number=2),
    ]
    assert CallKey("t", "f/g1/q/c/r", 1, 1).id == key.id
    assert len({each.id for each in (key, *others)}) == 5
    parts = product((1, 2), EventType, ("", "x"))
    events = {event_id(key.id, *each) for each in parts}
    assert len(events) == 16
    assert event_id(key.id, 1, EventType.HOLD) in events


@given(st.uuids(), st.text())
def test_an_id_made_of_a_name_is_the_standard_one(namespace: UUID, name: str) -> None:
    assert named_uuid(namespace, name) == uuid5(namespace, name)


def test_the_same_content_is_told_from_another_and_time_is_no_content() -> None:
    event = an_event(EventType.HOLD, 100, rates='{"a":1,"b":2}')
    assert event.same_content(event._replace(occurred_at=datetime.now(UTC), rates='{"b":2, "a":1}'))
    for other in ({"estimated": Money(1)}, {"actual": Money(1)}, {"payer": Payer("u")}, {"rates": "{}"}):
        assert not event.same_content(event._replace(**other))  # type: ignore[arg-type]  # each by its name


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"estimated": Money(-1)}, "estimated"),
        ({"estimated": MAX_AMOUNT + 1}, "estimated"),
        ({"payer": Payer("other")}, "payer"),
        ({"payer": Payer(), "key": CallKey("", "s", 1, 1)}, "payer"),
    ],
)
def test_a_call_that_no_account_could_pay_is_refused(fields: dict[str, Any], field: str) -> None:
    known: dict[str, Any] = {"key": CallKey("t", "s", 1, 1), "payer": PAYER, "estimated": Money(1)}
    with pytest.raises(InvalidInput) as refusal:
        LedgerCall(request_hash="h", **(known | fields))
    assert refusal.value.field == field


# --- states and modes ---


def test_every_open_state_can_end_and_a_commit_is_final() -> None:
    assert set(HOLD_MOVES) == set(HoldState)
    for state in OPEN_STATES:
        assert {HoldState.COMMITTED, HoldState.CANCELLED, HoldState.ADJUSTED} <= HOLD_MOVES[state]
    assert HOLD_MOVES[HoldState.COMMITTED] == frozenset()
    assert all(HoldState.HELD not in targets for targets in HOLD_MOVES.values())


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ((), Mode.STRICT),
        ((None, None), Mode.STRICT),
        ((None, Mode.BEST_EFFORT), Mode.BEST_EFFORT),
        ((Mode.STRICT, Mode.BEST_EFFORT), Mode.STRICT),
    ],
)
def test_strict_unless_somebody_accepts_an_overrun_and_nobody_objects(
    settings: tuple[Mode | None, ...], mode: Mode
) -> None:
    assert chosen_mode(*settings) is mode


# --- the fold ---


def test_a_call_counts_against_the_scopes_that_it_has() -> None:
    assert [each.scope for each in accounts_of(PAYER, MONDAY)] == [s for s in Scope if s is not Scope.CALL]
    assert accounts_of(Payer("t"), MONDAY) == (Account("t", Scope.TENANT_DAY, "2026-03-02"),)


def test_a_hold_is_released_on_its_own_day_and_spent_on_the_commits() -> None:
    hold = an_event(EventType.HOLD, 100)
    commit = an_event(
        EventType.COMMIT, 100, 40, day=TUESDAY, usage={"tokens_in": 2, "tokens_out": 3, "tokens_cached": 1}
    )
    balances = fold([hold, commit])
    assert balances[Account("t", Scope.TENANT_DAY, "2026-03-02")] == Balance()
    assert balances[Account("t", Scope.TENANT_DAY, "2026-03-03")] == Balance(0, 40, 1, 5)
    assert balances[Account("t", Scope.BATCH, "b")] == Balance(0, 40, 1, 5)


@given(
    st.lists(st.tuples(st.sampled_from(list(EventType)), st.integers(0, 99), st.integers(0, 99))),
    st.randoms(),
)
def test_the_order_of_events_does_not_matter(drawn: list[tuple[EventType, int, int]], random: Any) -> None:
    events = [an_event(*each) for each in drawn]
    shuffled = list(events)
    random.shuffle(shuffled)
    assert fold(shuffled) == fold(events)

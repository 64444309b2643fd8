"""Property 28: whatever calls at once, from however many writers: admitted holds never exceed a limit."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from domain.completion import Payer
from domain.errors import BudgetExhausted
from domain.ledger import Account, Hold, Scope, TenantBudget, accounts_of
from domain.money import Money
from tests.db.purse import HeldClock, a_call, a_payer, a_settlement, assert_whole, opened_ledger
from tests.db.stage import opened_postgres

TODAY = date(2036, 3, 1)
ASSAY = Path(__file__).resolve().parents[2]
#: so many processes with so many callers each
PROCESSES, CALLERS = 3, 334

LIMITED = st.dictionaries(st.sampled_from(list(Scope)), st.integers(0, 600), min_size=1)
#: what a caller asks for, through which writer, and what it does with the hold: commit it at this, or keep it
CALLS = st.lists(
    st.tuples(st.integers(0, 200), st.booleans(), st.one_of(st.none(), st.integers(0, 200))),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(session_database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
async def writers(
    session_database_url: str, postgres: Postgres
) -> AsyncIterator[tuple[PostgresLedger, PostgresLedger]]:
    """Two that know nothing of each other, as in two processes."""
    clock = HeldClock()
    async with (
        opened_ledger(session_database_url, clock, postgres) as one,
        opened_ledger(session_database_url, clock, postgres) as other,
    ):
        yield one, other


async def _limit(ledger: PostgresLedger, payer: Payer, limits: dict[Scope, int]) -> None:
    in_all = [Money(limits[each]) if each in limits else None for each in (Scope.CALL, Scope.TENANT_DAY)]
    await ledger.books.set_tenant(payer.tenant_id, TenantBudget("UTC", *in_all))
    for account in accounts_of(payer, TODAY):
        if account.scope in limits and account.scope is not Scope.TENANT_DAY:
            await ledger.books.set_limit(account, Money(limits[account.scope]))


@settings(max_examples=100)
@given(limits=LIMITED, calls=CALLS)
async def test_admitted_holds_never_pass_a_limit(
    writers: tuple[PostgresLedger, PostgresLedger],
    limits: dict[Scope, int],
    calls: list[tuple[int, bool, int | None]],
) -> None:
    """
    **功能: assay, 属性 28: 严格预算**
    **验证: 需求 L5**

    For every set of concurrent callers, what was admitted never exceeds any limit, and a refusal is right:
    at the end, the smallest refused call would still have passed the limit that refused it.
    """
    payer = a_payer()
    await _limit(writers[0], payer, limits)

    async def ask(estimated: int, second: bool) -> Hold | BudgetExhausted:
        try:
            held = await writers[second].begin(a_call(payer, estimated), dispatch=True)
        except BudgetExhausted as refusal:
            return refusal
        assert isinstance(held, Hold)
        return held

    outcomes = await asyncio.gather(*(ask(estimated, second) for estimated, second, _ in calls))
    admitted = [each for each in outcomes if isinstance(each, Hold)]
    total = sum(int(each.call.estimated) for each in admitted)
    for scope, limit in limits.items():
        most = max((int(each.call.estimated) for each in admitted), default=0)
        assert (most if scope is Scope.CALL else total) <= limit
    for (estimated, _, _), outcome in zip(calls, outcomes, strict=True):
        if isinstance(outcome, BudgetExhausted):
            used = 0 if outcome.scope == Scope.CALL else total
            assert used + estimated > limits[Scope(outcome.scope)]
    # a commit may pass the limit; it leaves no room for another hold
    for (_, second, actual), outcome in zip(calls, outcomes, strict=True):
        if isinstance(outcome, Hold) and actual is not None:
            await writers[second].settle(outcome, a_settlement(actual))
    for balance in await writers[0].books.balances(payer.tenant_id):
        spent = sum(a for (_, _, a), o in zip(calls, outcomes, strict=True) if isinstance(o, Hold) and a)
        assert balance.spent == spent
        if balance.left is not None and balance.left < 0:
            with pytest.raises(BudgetExhausted):
                await writers[0].begin(a_call(payer, 0))


_CALLERS = """
import asyncio, json, sys
from domain.completion import Payer
from domain.errors import BudgetExhausted
from domain.money import Money
from tests.db.purse import a_call, opened_ledger

async def main(url, tenant, callers):
    payer = Payer(tenant, "", "", "hot")
    async with opened_ledger(url) as ledger:
        sys.stdin.readline()  # all processes begin together
        async def ask(number):
            try:
                await ledger.begin(a_call(payer, 1 + number % 7), dispatch=True)
                return 1 + number % 7
            except BudgetExhausted:
                return 0
        admitted = await asyncio.gather(*(ask(n) for n in range(callers)))
    print(json.dumps({"admitted": sum(admitted), "refused": admitted.count(0)}))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_a_thousand_callers_from_three_processes_share_one_limit(
    session_database_url: str, postgres: Postgres
) -> None:
    """X1, X6: the authority is in Postgres, not in any process."""
    payer, limit = a_payer(batch_id="", api_key_id="", profile="hot"), 1500
    async with opened_ledger(session_database_url, postgres=postgres) as ledger:
        account = Account(payer.tenant_id, Scope.PROFILE, "hot")
        await ledger.books.set_limit(account, Money(limit))
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", _CALLERS, session_database_url, payer.tenant_id, str(CALLERS),
                cwd=ASSAY, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )
            for _ in range(PROCESSES)
        ]  # fmt: skip
        answers = await asyncio.gather(*(each.communicate(b"\n") for each in processes))
        told = [json.loads(output) for output, _ in answers]
        admitted = sum(each["admitted"] for each in told)
        (balance,) = await ledger.books.balances(payer.tenant_id, Scope.PROFILE)
        assert balance.held == admitted <= limit
        # whoever asks for 1 is refused only when nothing is left
        assert limit - admitted < 7
        assert sum(each["refused"] for each in told) > 0
        await assert_whole(ledger)

"""What a process says of itself to Prometheus."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from domain.errors import BudgetExhausted
from domain.ledger import Account, Scope
from domain.money import Money
from runtime.telemetry import LedgerCollector, json_line
from tests.db.purse import a_call, a_payer, a_settlement, held, opened_ledger
from tests.db.stage import opened_postgres


@pytest.fixture
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(session_database_url) as opened:
        yield opened


def figures_of(ledger: PostgresLedger) -> dict[str, float]:
    """Every sample by its name, a histogram's buckets by their bound."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(ledger.writer))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        sample.name + sample.labels.get("le", ""): sample.value
        for family in families
        for sample in family.samples
    }


async def test_the_ledgers_figures_are_what_the_writer_did(
    session_database_url: str, postgres: Postgres
) -> None:
    payer = a_payer()
    async with opened_ledger(session_database_url, None, postgres) as ledger:
        assert set(figures_of(ledger).values()) == {0.0}
        await ledger.books.set_limit(Account(payer.tenant_id, Scope.PROFILE, "class"), Money(350))
        holds = await asyncio.gather(*(held(ledger, a_call(payer)) for _ in range(3)))
        with pytest.raises(BudgetExhausted):
            await ledger.begin(a_call(payer))
        await ledger.settle(holds[0], a_settlement())
        poison = a_call(trace_id="\0")
        with pytest.raises(Exception, match="22P05"):
            await ledger.begin(poison)
        figures = figures_of(ledger)
    expected = {
        "ledger_commands_total": 6,
        "ledger_events_total": 4,
        "ledger_facts_total": 4,
        "ledger_refused_total": 1,
        "ledger_isolated_total": 1,
        "ledger_waiting": 0,
        # once with its batch, once alone
        "billing_transaction_rollback_count_total": 2,
        "ledger_hold_seconds_count": 3,
        "ledger_hold_seconds_bucket+Inf": 3,
        "ledger_settle_seconds_count": 1,
    }
    assert expected.items() <= figures.items()
    assert figures["ledger_reconnects_total"] >= 1
    assert 0 < figures["ledger_settle_seconds_sum"] <= 10


@pytest.mark.parametrize("odd", ["\ud800", 2**70, {1: "a number as a key"}, {"a set"}, b"bytes", 1.5, "李雷"])
def test_a_line_of_the_log_is_json_whatever_is_in_it(odd: object) -> None:
    read = json.loads(json_line({"event": "odd", "value": odd}, default=repr))
    assert (read["event"], bool(read["value"])) == ("odd", True)


def test_a_dataclass_in_the_log_hides_what_it_hides() -> None:
    @dataclass
    class Provider:
        name: str
        api_key: str = field(repr=False)

    line = json_line({"event": "odd", "provider": Provider("openai", "sk-1234")}, default=repr)
    assert "openai" in line
    assert "sk-1234" not in line

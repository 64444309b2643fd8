"""Rows that are rendered as JSON, read back from Postgres as they were."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from db.postgres.ledger_port import PostgresLedger
from db.postgres.pool import Postgres
from domain.completion import CompletionReply, FinishReason, Usage
from domain.ledger import FactKind, LedgerFact, Rates, Replayed, Settlement, Timing
from domain.money import Money
from tests.db.purse import HeldClock, a_call, a_payer, assert_whole, held, opened_ledger

#: what a text could mistake for its own signs, and what prints oddly
HOSTILE = [
    "\\N",
    "\\.",
    "\\",
    "ends in \\",
    "a\tb\nc\rd\r\n\\t",
    "\x01\x08\x0b\x0c\x1f\x7f\x85",
    "näh\u2028\u2029\u3000\xa0😀",
    '{"quote": "\\"\'"}',
    "",
]


@pytest.fixture
async def ledger(session_database_url: str, postgres: Postgres) -> AsyncIterator[PostgresLedger]:
    clock = HeldClock(datetime(2036, 3, 1, 12, 0, 0, 123456, tzinfo=UTC))
    async with opened_ledger(session_database_url, clock, postgres) as opened:
        yield opened


@pytest.mark.parametrize("text", HOSTILE)
async def test_whatever_text_a_call_brings_comes_back_as_it_was(
    ledger: PostgresLedger, postgres: Postgres, text: str
) -> None:
    tenant = a_payer().tenant_id
    payer = a_payer(tenant_id=f"{tenant}{text}", batch_id=text, api_key_id=text, profile=text)
    scopes = {"batch_id": text, "api_key_id": text, "profile": text, "tenant_id": payer.tenant_id}
    call = a_call(
        payer, request_hash=text, provider=text, model=text, trace_id=text, file_id=text,
        client_call_id=text, rates=Rates(text or "v", {"tokens_in": 1}),
    )  # fmt: skip
    hold = await held(ledger, call)
    (row,) = await postgres.rows("SELECT * FROM ledger_holds WHERE call_id = %s", [call.key.id])
    assert scopes.items() <= row.items()
    assert {row[each] for each in ("request_hash", "provider", "model", "trace_id", "file_id")} == {text}
    assert row["client_call_id"] == text
    assert row["token"] == hold.token
    assert row["due_at"].microsecond == 123456

    reply = CompletionReply(text, Usage(3, 2, 1), text, True, FinishReason.LENGTH, choices=text)
    rates = Rates(text or "v", {"tokens_in": 1})
    settlement = Settlement(reply, Money(7), text, rates, Timing(None, 5), {"images": 2})
    await ledger.settle(hold, settlement)
    again = await ledger.begin(call)
    assert isinstance(again, Replayed)
    assert again.entry.reply == replace(reply, cost_nanodollars=again.entry.reply.cost_nanodollars)

    events = await postgres.rows("SELECT * FROM ledger_events WHERE call_id = %s", [call.key.id])
    assert {row["event_type"] for row in events} == {"precheck_hold", "commit"}
    for row in events:
        assert scopes.items() <= row.items()
        assert row["rates"]["version"] == rates.version
    (commit,) = (row for row in events if row["event_type"] == "commit")
    assert (commit["ttft_ms"], commit["total_ms"], commit["usage"]["images"]) == (None, 5, 2)

    await ledger.record(LedgerFact(FactKind.WAITED, payer, None, None, text, {text: [text, 1, None]}))
    await ledger.writer.close()
    facts = await postgres.rows("SELECT * FROM ledger_facts WHERE tenant_id = %s", [payer.tenant_id])
    waited = facts[-1]
    assert scopes.items() <= waited.items()
    assert (waited["call_id"], waited["attempt"], waited["trace_id"]) == (None, None, text)
    assert waited["data"] == {text: [text, 1, None]}
    await assert_whole(ledger)

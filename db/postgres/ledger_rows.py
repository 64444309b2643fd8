"""The ledger's rows as its statements take them: all rows of a table as one JSON array, a row as an array of values.

A hold is three rows, and rendering them by the driver, a parameter for each column, was a third of what it costs
this process. JSON goes with every other table's in one statement, which `COPY` does not, and costs the server the
same; a statement for each table was a twentieth of the API's time for a call.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson

from db.postgres.pool import Connection
from domain.book import AccountRow, Book, HoldRow, JournalRow
from domain.completion import Payer
from domain.ledger import Account, LedgerEvent, LedgerFact

#: columns and their types, in the order of the values in a row
Columns = Mapping[str, str]
Row = Sequence[Any]

EVENT_COLUMNS: Columns = {
    "event_id": "uuid", "event_type": "text", "call_id": "uuid", "attempt": "integer", "reference": "text",
    "tenant_id": "text", "api_key_id": "text", "batch_id": "text", "profile": "text", "file_id": "text",
    "trace_id": "text", "provider": "text", "model": "text", "usage": "jsonb",
    "cost_estimated_nanodollars": "bigint", "cost_actual_nanodollars": "bigint", "rates": "jsonb", "status": "text",
    "ttft_ms": "integer", "total_ms": "integer", "day": "date", "hold_day": "date", "occurred_at": "timestamptz",
}  # fmt: skip
HOLD_COLUMNS: Columns = {
    "call_id": "uuid", "attempt": "integer", "request_hash": "text", "tenant_id": "text", "api_key_id": "text",
    "batch_id": "text", "profile": "text", "file_id": "text", "trace_id": "text", "provider": "text", "model": "text",
    "state": "text", "estimated_nanodollars": "bigint", "likely_nanodollars": "bigint", "open_nanodollars": "bigint",
    "charged_nanodollars": "bigint", "doubt_rule": "text", "rates": "jsonb", "token": "text", "journaled": "boolean",
    "reply_seconds": "double precision", "day": "date", "due_at": "timestamptz", "client_call_id": "text",
    "updated_at": "timestamptz",
}  # fmt: skip
FACT_COLUMNS: Columns = {
    "kind": "text", "call_id": "uuid", "attempt": "integer", "tenant_id": "text", "api_key_id": "text",
    "batch_id": "text", "profile": "text", "trace_id": "text", "data": "jsonb", "occurred_at": "timestamptz",
}  # fmt: skip
JOURNAL_COLUMNS: Columns = {
    "call_id": "uuid", "request_hash": "text", "tenant_id": "text", "step": "text", "generation": "integer",
    "number": "integer", "attempt": "integer", "batch_id": "text", "reply": "text", "choices": "text",
    "usage": "jsonb", "finish_reason": "text", "advisory": "boolean", "provider": "text", "model": "text",
    "actual_nanodollars": "bigint", "created_at": "timestamptz",
}  # fmt: skip
#: what changes of a hold after its key
HOLD_CHANGES: Columns = {
    "call_id": "uuid", "attempt": "integer", "state": "text", "open_nanodollars": "bigint",
    "charged_nanodollars": "bigint", "doubt_rule": "text", "token": "text", "journaled": "boolean",
    "due_at": "timestamptz", "updated_at": "timestamptz",
}  # fmt: skip
#: what changes of an account after its key
AMOUNTS: Columns = {
    "tenant_id": "text", "scope": "text", "subject": "text", "held_nanodollars": "bigint",
    "spent_nanodollars": "bigint", "requests": "bigint", "tokens": "bigint",
}  # fmt: skip


def _rows(table: str, columns: Columns) -> str:
    """The rows of that parameter as a query."""
    values = (_value(place, kind) for place, kind in enumerate(columns.values()))
    named = ", ".join(f"{value} AS {name}" for value, name in zip(values, columns, strict=True))
    return f"SELECT {named} FROM jsonb_array_elements(%({table})s::jsonb) AS each"


def _value(place: int, kind: str) -> str:
    if kind == "jsonb":
        return f"each -> {place}"
    return f"each ->> {place}" if kind == "text" else f"(each ->> {place})::{kind}"


def _inserting(table: str, columns: Columns) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) {_rows(table, columns)}"


#: what writes the rows of each parameter
STATEMENTS = {
    "ledger_events": _inserting("ledger_events", EVENT_COLUMNS),
    "ledger_holds": _inserting("ledger_holds", HOLD_COLUMNS),
    "ledger_facts": _inserting("ledger_facts", FACT_COLUMNS),
    "ledger_journal": _inserting("ledger_journal", JOURNAL_COLUMNS),
    "changed_holds": f"""
UPDATE ledger_holds h
SET state = w.state, open_nanodollars = w.open_nanodollars, charged_nanodollars = w.charged_nanodollars,
    doubt_rule = w.doubt_rule, token = w.token, journaled = w.journaled, due_at = w.due_at, updated_at = w.updated_at
FROM ({_rows("changed_holds", HOLD_CHANGES)}) w
WHERE h.call_id = w.call_id AND h.attempt = w.attempt
""",
    "changed_accounts": f"""
UPDATE ledger_accounts a
SET held_nanodollars = w.held_nanodollars, spent_nanodollars = w.spent_nanodollars, requests = w.requests,
    tokens = w.tokens, version = a.version + 1, updated_at = now()
FROM ({_rows("changed_accounts", AMOUNTS)}) w
WHERE (a.tenant_id, a.scope, a.subject) = (w.tenant_id, w.scope, w.subject)
""",
}


async def write(connection: Connection, book: Book) -> None:
    """Write all that was decided, in one statement; nothing is asked of the server where nothing was.

    A hold is in one of its two tables of rows: a statement does not see what another part of it inserts.
    """
    now = book.now
    tables = {
        "ledger_events": [event_row(each) for each in book.events],
        "ledger_holds": [hold_row(each, now) for each in book.new_holds],
        "ledger_facts": [fact_row(each, now) for each in book.facts],
        "ledger_journal": [journal_row(each) for each in book.journaled],
        "changed_holds": [hold_change(each, now) for each in book.changed_holds],
        "changed_accounts": [amounts(each, book.accounts[each]) for each in book.changed_accounts],
    }
    written = {name: orjson.dumps(rows).decode() for name, rows in tables.items() if rows}
    if written:
        parts = ", ".join(f"{name}_written AS ({STATEMENTS[name]})" for name in written)
        await connection.execute(f"WITH {parts} SELECT 1", written)


def event_row(event: LedgerEvent) -> Row:
    """The event in the order of `EVENT_COLUMNS`."""
    return (
        event.event_id, event.event_type, event.call_id, event.attempt, event.reference,
        *_scopes(event.payer), event.file_id, event.trace_id, event.provider, event.model, _json(event.usage),
        event.estimated, event.actual, orjson.Fragment(event.rates), event.status,
        event.timing.ttft_ms, event.timing.total_ms, event.day, event.hold_day, event.occurred_at,
    )  # fmt: skip


def hold_row(row: HoldRow, now: datetime) -> Row:
    """The hold in the order of `HOLD_COLUMNS`."""
    return (
        row.call_id, row.attempt, row.request_hash, *_scopes(row.payer), row.file_id, row.trace_id,
        row.provider, row.model, row.state, row.estimated, row.likely, row.open, row.charged, row.doubt_rule,
        orjson.Fragment(row.rates), row.token, row.journaled, row.reply_seconds, row.day, row.due_at,
        row.client_call_id, now,
    )  # fmt: skip


def fact_row(fact: LedgerFact, now: datetime) -> Row:
    """The fact in the order of `FACT_COLUMNS`."""
    return (fact.kind, fact.call_id, fact.attempt, *_scopes(fact.payer), fact.trace_id, _json(fact.data), now)


def journal_row(row: JournalRow) -> Row:
    """The reply in the order of `JOURNAL_COLUMNS`."""
    key, entry, reply = row.key, row.entry, row.entry.reply
    return (
        row.call_id, row.request_hash, key.tenant_id, key.step, key.generation, key.number, entry.attempt,
        row.batch_id, reply.text, reply.choices, _json(row.usage), reply.finish_reason, reply.advisory,
        entry.provider, reply.model, entry.actual, entry.created_at,
    )  # fmt: skip


def hold_change(row: HoldRow, now: datetime) -> Row:
    """The hold as it is now, in the order of `HOLD_CHANGES`."""
    return (
        row.call_id, row.attempt, row.state, row.open, row.charged, row.doubt_rule, row.token, row.journaled,
        row.due_at, now,
    )  # fmt: skip


def amounts(account: Account, row: AccountRow) -> Row:
    """The account as it is now, in the order of `AMOUNTS`."""
    return (*account, row.held, row.spent, row.requests, row.tokens)


# --- values ----------------------------------------------------------------------------------------------


def _scopes(payer: Payer) -> tuple[str, str, str, str]:
    return payer.tenant_id, payer.api_key_id, payer.batch_id, payer.profile


def _json(document: Mapping[str, Any]) -> orjson.Fragment:
    return orjson.Fragment(json_of(document))


def json_of(document: Mapping[str, Any]) -> str:
    """The document as the ledger writes it: the same text for the same content."""
    if not document:
        return "{}"
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: object) -> float | str:
    return float(value) if isinstance(value, Decimal) else str(value)

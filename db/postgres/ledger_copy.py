"""The ledger's rows as `COPY` takes them: lines of text, rendered here at a third of the driver's cost.

A hold is three rows, and rendering them was a third of what it costs this process. Whatever comes from outside
passes `_text`, which alone knows what a line must not contain.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from db.postgres.pool import Connection
from domain.book import HoldRow, JournalRow
from domain.completion import Payer
from domain.ledger import LedgerEvent, LedgerFact

EVENT_COLUMNS = (
    "event_id", "event_type", "call_id", "attempt", "reference", "tenant_id", "api_key_id", "batch_id", "profile",
    "file_id", "trace_id", "provider", "model", "usage", "cost_estimated_nanodollars", "cost_actual_nanodollars",
    "rates", "status", "ttft_ms", "total_ms", "day", "hold_day", "occurred_at",
)  # fmt: skip
HOLD_COLUMNS = (
    "call_id", "attempt", "request_hash", "tenant_id", "api_key_id", "batch_id", "profile", "file_id", "trace_id",
    "provider", "model", "state", "estimated_nanodollars", "likely_nanodollars", "open_nanodollars",
    "charged_nanodollars", "doubt_rule", "rates", "token", "journaled", "reply_seconds", "day", "due_at",
    "client_call_id", "updated_at",
)  # fmt: skip
FACT_COLUMNS = (
    "kind", "call_id", "attempt", "tenant_id", "api_key_id", "batch_id", "profile", "trace_id", "data", "occurred_at",
)  # fmt: skip
JOURNAL_COLUMNS = (
    "call_id", "request_hash", "tenant_id", "step", "generation", "number", "attempt", "batch_id", "reply", "choices",
    "usage", "finish_reason", "advisory", "provider", "model", "actual_nanodollars", "created_at",
)  # fmt: skip

#: what stands for itself in a line of `COPY`, and how it is written there
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NULL = "\\N"


def _copying(table: str, columns: Sequence[str]) -> str:
    return f"COPY {table} ({', '.join(columns)}) FROM STDIN"


COPY_EVENTS = _copying("ledger_events", EVENT_COLUMNS)
COPY_HOLDS = _copying("ledger_holds", HOLD_COLUMNS)
COPY_FACTS = _copying("ledger_facts", FACT_COLUMNS)
COPY_JOURNAL = _copying("ledger_journal", JOURNAL_COLUMNS)


async def copy(connection: Connection, statement: str, lines: Iterable[str]) -> None:
    """Copy the lines; without any nothing is asked of the server."""
    if text := "".join(lines):
        async with connection.cursor() as cursor, cursor.copy(statement) as copying:
            await copying.write(text)


def event_line(event: LedgerEvent) -> str:
    """The event in the order of `EVENT_COLUMNS`."""
    timing = event.timing
    return (
        f"{event.event_id.hex}\t{event.event_type}\t{event.call_id.hex}\t{event.attempt}\t{_text(event.reference)}\t"
        f"{_payer(event.payer)}\t{_text(event.file_id)}\t{_text(event.trace_id)}\t"
        f"{_text(event.provider)}\t{_text(event.model)}\t{_json(event.usage)}\t"
        f"{int(event.estimated)}\t{int(event.actual)}\t{_text(event.rates)}\t{event.status}\t"
        f"{_number(timing.ttft_ms)}\t{_number(timing.total_ms)}\t"
        f"{_moment(event.day)}\t{_moment(event.hold_day)}\t{_moment(event.occurred_at)}\n"
    )


def hold_line(row: HoldRow, now: datetime) -> str:
    """The hold in the order of `HOLD_COLUMNS`."""
    return (
        f"{row.call_id.hex}\t{row.attempt}\t{_text(row.request_hash)}\t"
        f"{_payer(row.payer)}\t{_text(row.file_id)}\t{_text(row.trace_id)}\t"
        f"{_text(row.provider)}\t{_text(row.model)}\t{row.state}\t"
        f"{row.estimated}\t{row.likely}\t{row.open}\t{row.charged}\t{row.doubt_rule}\t{_text(row.rates)}\t"
        f"{_text(row.token)}\t{row.journaled}\t{row.reply_seconds}\t{_moment(row.day)}\t{_moment(row.due_at)}\t"
        f"{_text(row.client_call_id)}\t{_moment(now)}\n"
    )


def fact_line(fact: LedgerFact, now: datetime) -> str:
    """The fact in the order of `FACT_COLUMNS`."""
    call_id = _NULL if fact.call_id is None else fact.call_id.hex
    return (
        f"{fact.kind}\t{call_id}\t{_number(fact.attempt)}\t{_payer(fact.payer)}\t{_text(fact.trace_id)}\t"
        f"{_json(fact.data)}\t{_moment(now)}\n"
    )


def journal_line(row: JournalRow) -> str:
    """The reply in the order of `JOURNAL_COLUMNS`."""
    key, entry = row.key, row.entry
    reply = entry.reply
    return (
        f"{row.call_id.hex}\t{_text(row.request_hash)}\t{_text(key.tenant_id)}\t{_text(key.step)}\t"
        f"{key.generation}\t{key.number}\t{entry.attempt}\t{_text(row.batch_id)}\t"
        f"{_text(reply.text)}\t{_text(reply.choices)}\t{_json(row.usage)}\t{reply.finish_reason}\t{reply.advisory}\t"
        f"{_text(entry.provider)}\t{_text(reply.model)}\t{int(entry.actual)}\t{_moment(entry.created_at)}\n"
    )


# --- values ----------------------------------------------------------------------------------------------


def _text(value: str) -> str:
    if value.isprintable() and "\\" not in value:
        return value
    return value.translate(_ESCAPES)


@lru_cache(maxsize=1024)  # the same few payers in every batch
def _payer(payer: Payer) -> str:
    return "\t".join(map(_text, (payer.tenant_id, payer.api_key_id, payer.batch_id, payer.profile)))


@lru_cache(maxsize=256)  # one now, one day and few deadlines in every batch
def _moment(moment: date | datetime) -> str:
    return str(moment)


def _number(value: int | None) -> str:
    return _NULL if value is None else str(value)


def _json(document: Mapping[str, Any]) -> str:
    return _text(json_of(document)) if document else "{}"


def json_of(document: Mapping[str, Any]) -> str:
    """The document as the ledger writes it: the same text for the same content."""
    if not document:
        return "{}"
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: object) -> float | str:
    return float(value) if isinstance(value, Decimal) else str(value)

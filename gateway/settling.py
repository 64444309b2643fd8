"""The steps `transform_response` and `settle`: a whole reply, journaled with its full cost (L2, L6)."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace

from domain.completion import CompletionReply, Usage
from domain.errors import Unavailable
from domain.ledger import (
    FactKind,
    JournalEntry,
    Ledger,
    LedgerFact,
    Settlement,
    usage_document,
)
from domain.ports import Prices
from domain.prices import split_model
from gateway.context import Called, Context, Settled, Transformed
from gateway.conversations import said
from gateway.tokens import TokenEstimates, input_bytes


def transformed(context: Context) -> Transformed:
    """The reply with its usage: where the upstream states none, estimated by bytes and marked."""
    reply = _called(context).reply
    if reply.usage != Usage(0, 0):
        return Transformed(reply)
    request = said(context.request, context.conversation)
    # a token a byte: never fewer than there are, in whatever language
    usage = Usage(input_bytes(request), len((reply.choices or reply.text).encode()))
    return Transformed(replace(reply, usage=usage, usage_estimated=True))


@dataclass
class SettleStep:
    """Commits what a reply has cost, by the rates of the candidate that gave it."""

    ledger: Ledger
    prices: Prices
    tokens: TokenEstimates

    async def settle(self, context: Context) -> Settled:
        """The entry that counts; a reply that came is paid for, so a cancellation waits for its entry."""
        settling = asyncio.ensure_future(self._settled(context))
        try:
            return Settled(await asyncio.shield(settling))
        except asyncio.CancelledError:
            await settling
            raise

    async def _settled(self, context: Context) -> JournalEntry:
        called, reply = _called(context), _reply(context)
        rates = (await self.prices.of_model(called.candidate)).rates(reply.usage.tokens_in)
        provider, model = split_model(called.candidate)
        settlement = Settlement(
            reply=reply,
            actual=rates.cost(usage_document(reply.usage)),
            provider=provider,
            model=model,
            rates=rates,
            timing=called.timing,
        )
        assert context.held is not None
        assert context.held.hold is not None
        entry = await self.ledger.settle(context.held.hold, settlement)
        with suppress(Unavailable):  # figures and facts that may be lost
            await self._learn(context, called, reply)
        return entry

    async def _learn(self, context: Context, called: Called, reply: CompletionReply) -> None:
        if reply.usage_estimated:
            data = {"model": called.candidate, **usage_document(reply.usage)}
            trace_id = context.request.trace_id
            fact = LedgerFact(FactKind.ESTIMATED, context.payer, context.key.id, None, trace_id, data)
            await self.ledger.record(fact)
            return
        request = said(context.request, context.conversation)
        await self.tokens.learn(request, called.candidate, reply.usage.tokens_in)


def _called(context: Context) -> Called:
    assert context.called is not None
    return context.called


def _reply(context: Context) -> CompletionReply:
    assert context.transformed is not None
    return context.transformed.reply

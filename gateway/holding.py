"""The step `hold`: sets aside the worst case over all candidates, or finds the reply (L2, L5, L6)."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic

from domain.completion import CompletionRequest, Payer
from domain.errors import AssayError, BudgetExhausted, CallUnderway, UnpricedModel
from domain.identity import ClientStep
from domain.ledger import (
    FactKind,
    Hold,
    Ledger,
    LedgerCall,
    LedgerFact,
    Mode,
    Rates,
    Replayed,
    Underway,
    chosen_mode,
)
from domain.money import Money
from domain.ports import Prices
from domain.prices import split_model
from gateway.context import Context, Held, Routed
from gateway.conversations import said
from gateway.terms import TermsOf
from gateway.tokens import TokenEstimates, choices_wanted
from gateway.waiting import NoRoom, UnderwayElsewhere

MODE_SECONDS = 60.0
MODES_KEPT = 1_000

Modes = Callable[[Payer], Awaitable[Sequence[Mode | None]]]


class HoldStep:
    """Prices a call at its most expensive candidate, and begins it in the ledger, dispatched."""

    def __init__(
        self,
        ledger: Ledger,
        prices: Prices,
        tokens: TokenEstimates,
        *,
        terms: TermsOf,
        modes: Modes,
    ) -> None:
        self._ledger = ledger
        self._prices = prices
        self._tokens = tokens
        self._terms = terms
        self._modes = modes
        self._known_modes: OrderedDict[Payer, tuple[Mode, float]] = OrderedDict()

    async def most_tokens(self, request: CompletionRequest, models: Sequence[str]) -> int:
        """The most tokens that the call may use, in and out, whichever of these models answers."""
        most_in = [await self._tokens.most_tokens_in(request, model) for model in models]
        return max(most_in) + request.max_tokens * choices_wanted(request)

    async def hold(self, context: Context) -> Held:
        """A hold of the caller's own, or the reply.

        Raises `Later` while another attempt has the call under way, or calls under way fill a limit;
        `CallUnderway` where the caller would not wait, `BudgetExhausted` and `UnpricedModel`.
        """
        call, candidates = await self._priced(context)
        began = await self._begun(call, context)
        if isinstance(began, Replayed):
            return Held(replayed=began.entry)
        if isinstance(began, Hold):
            return Held(began, candidates)
        if context.request.refuse_underway:
            message = "The same call is being answered now; ask again in a moment for its reply."
            raise CallUnderway(message, field="Idempotency-Key")
        raise UnderwayElsewhere(context.request.key, began.until)

    async def replayed(self, context: Context, models: Sequence[str]) -> Held | None:
        """The reply of a call that its client has named, if it was paid for before; nothing is sent."""
        if not context.request.refuse_other:
            return None
        call, _ = await self._priced(context.having(routed=Routed(tuple(models))))
        began = await self._begin(call, context, dispatch=False)
        if isinstance(began, Hold):
            await self._ledger.cancel(began, "not sent")
        return Held(replayed=began.entry) if isinstance(began, Replayed) else None

    async def _begun(self, call: LedgerCall, context: Context) -> Hold | Replayed | Underway:
        try:
            return await self._begin(call, context, dispatch=True)
        except BudgetExhausted as refusal:
            if refusal.may_pass:
                raise NoRoom(refusal, call.reply_seconds) from refusal
            raise

    async def _begin(
        self, call: LedgerCall, context: Context, *, dispatch: bool
    ) -> Hold | Replayed | Underway:
        fence = context.request.fence
        beginning = asyncio.ensure_future(self._ledger.begin(call, dispatch=dispatch, fence=fence))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # what never left is no doubt: it costs nothing
            with suppress(AssayError):
                if isinstance(began := await beginning, Hold):
                    await self._ledger.cancel(began, "cancelled")
            raise

    async def _priced(self, context: Context) -> tuple[LedgerCall, tuple[str, ...]]:
        """The call at its worst case, and the candidates that have a price."""
        costs: dict[str, tuple[Money, Rates]] = {}
        for model in _candidates(context):
            try:
                costs[model] = await self._worst_case(context, model)
            except UnpricedModel as error:
                unpriced = error
                await self._say_unpriced(context, model)
        if not costs:
            raise unpriced
        return await self._call(context, costs), tuple(costs)

    async def _worst_case(self, context: Context, model: str) -> tuple[Money, Rates]:
        """As many tokens in as its bytes can be, as many out as it allows."""
        request = said(context.request, context.conversation)
        prices = await self._prices.of_model(model)
        tokens_in = await self._tokens.most_tokens_in(request, model)
        rates = prices.rates(tokens_in)
        tokens_out = request.max_tokens * choices_wanted(request)
        return rates.cost({"tokens_in": tokens_in, "tokens_out": tokens_out}), rates

    async def _call(self, context: Context, costs: dict[str, tuple[Money, Rates]]) -> LedgerCall:
        request, (first, *_) = context.request, costs
        provider, model = split_model(first)
        return LedgerCall(
            key=context.key,
            request_hash=request.request_hash(),
            payer=context.payer,
            estimated=max(cost for cost, _ in costs.values()),
            provider=provider,
            model=model,
            trace_id=request.trace_id,
            file_id=request.step.file_id,
            rates=costs[first][1],
            mode=await self._mode_of(context.payer),
            doubt_rule=self._terms(first).doubt_rule,
            # every candidate may take its time before the last one answers
            reply_seconds=sum(self._terms(each).wait_seconds for each in costs),
            client_call_id=request.step.call_id if isinstance(request.step, ClientStep) else "",
            refuse_other=request.refuse_other,
        )

    async def _mode_of(self, payer: Payer) -> Mode:
        """The strictest mode that key, batch and tenant have set, at most a minute old."""
        mode, read_at = self._known_modes.get(payer, (Mode.STRICT, float("-inf")))
        if monotonic() - read_at > MODE_SECONDS:
            mode = chosen_mode(*await self._modes(payer))
            self._known_modes[payer] = (mode, monotonic())
            if len(self._known_modes) > MODES_KEPT:
                self._known_modes.popitem(last=False)
        return mode

    async def _say_unpriced(self, context: Context, model: str) -> None:
        fact = LedgerFact(
            FactKind.UNPRICED, context.payer, context.key.id, None, context.request.trace_id, {"model": model}
        )
        with suppress(AssayError):
            await self._ledger.record(fact)


def _candidates(context: Context) -> tuple[str, ...]:
    assert context.routed is not None
    return context.routed.candidates

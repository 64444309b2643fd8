"""The step `call_upstream`: asks candidates in order, until one replies or may have replied (O9)."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic

from domain.completion import CompletionReply, CompletionRequest
from domain.errors import (
    AssayError,
    ModelAccessDenied,
    ModelRefused,
    ModelUnavailable,
    PromptTooLong,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from domain.gateway import Permit, StreamingModels
from domain.ledger import FactKind, Hold, Ledger, LedgerFact, Timing
from domain.ports import Models
from gateway.context import Called, Context
from gateway.conversations import said
from gateway.listening import Listener
from gateway.routing import Cooldowns, UpstreamRoom
from gateway.terms import TermsOf
from gateway.waiting import Later

#: refused before it was worked on; another candidate may take the same call
_REFUSED = (ModelUnavailable, RateLimited, ModelRefused, UnknownModel, PromptTooLong)
#: what says something about the upstream, and not about the call
_ITS_OWN_FAULT = (ModelUnavailable, ModelAccessDenied)


class _Doubted(Exception):
    """The candidate may have answered, so the hold stays charged; `condition` says how it was lost."""

    def __init__(self, condition: ModelUnavailable) -> None:
        super().__init__(condition)
        self.condition = condition


class CallStep:
    """Asks one candidate after another under one hold."""

    def __init__(
        self, upstreams: Models, ledger: Ledger, cooldowns: Cooldowns, room: UpstreamRoom, *, terms: TermsOf
    ) -> None:
        self._upstreams = upstreams
        self._ledger = ledger
        self._cooldowns = cooldowns
        self._room = room
        self._terms = terms

    async def call(self, context: Context, listener: Listener) -> Called:
        """The reply, and who gave it.

        Otherwise the hold is ended: cancelled where all refused, in doubt where one may have answered.
        Raises `Later` where the call may be tried again, and what the upstreams raised where not.
        """
        candidates = _candidates(context)
        refusals: dict[str, AssayError] = {}
        for index, model in enumerate(candidates):
            left = candidates[index + 1 :]
            try:
                return await self._from(model, context, listener)
            except _Doubted as doubt:
                passed_over = {*refusals, model}
                # not from the condition, which this may be: whoever follows causes would never come to an end
                raise _after_doubt(doubt.condition, listener, left, passed_over) from doubt.__cause__
            except _REFUSED as refusal:
                refusals[model] = refusal
                await self._note(context, model, refusal, left)
            except AssayError as error:
                await self._ledger.cancel(_hold(context), error.code)
                raise
        condition = _after_refusals(refusals)
        await self._ledger.cancel(_hold(context), _told(refusals).code)
        raise condition

    async def _from(self, model: str, context: Context, listener: Listener) -> Called:
        place = await self._place(model, context)
        try:
            return await self._asked(model, context, listener)
        finally:
            self._room.give_back(place)

    async def _place(self, model: str, context: Context) -> Permit | None:
        """The first candidate has its place from its route; the others take theirs when it is their turn."""
        if context.routed is not None and model == context.routed.candidates[0]:
            return context.routed.place
        try:
            return await self._room.take(model, self._terms(model).timeout_seconds)
        except asyncio.CancelledError:
            # nothing is with an upstream now: it costs nothing
            await asyncio.shield(self._ledger.cancel(_hold(context), "cancelled"))
            raise

    async def _asked(self, model: str, context: Context, listener: Listener) -> Called:
        began, timeout_seconds = monotonic(), self._terms(model).timeout_seconds
        request = replace(said(context.request, context.conversation), model=model, payer=context.payer)
        try:
            async with asyncio.timeout(timeout_seconds) as listener.model_time:
                reply = await self._reply(request, listener)
        except TimeoutError as error:
            await self._doubt(context, model, "no reply in time")
            message = f"{model} gave no reply in {timeout_seconds:g} s."
            raise _Doubted(ModelUnavailable(message, in_doubt=True)) from error
        except AssayError as error:
            # what was told in part was worked on, whatever the upstream says afterwards
            if not listener.told and not (isinstance(error, ModelUnavailable) and error.in_doubt):
                raise
            await self._doubt(context, model, error.code)
            raise _Doubted(ModelUnavailable(error.message, in_doubt=True)) from error
        except BaseException as error:
            # cancelled, or a defect of ours: the upstream may be at work all the same
            await asyncio.shield(self._doubt(context, model, type(error).__name__))
            raise
        self._cooldowns.answered(model)
        return Called(reply, model, _timing(began, listener))

    async def _reply(self, request: CompletionRequest, listener: Listener) -> CompletionReply:
        if listener.wants_chunks and isinstance(self._upstreams, StreamingModels):
            return await self._upstreams.stream(request, listener.hear)
        return await self._upstreams.complete(request)

    async def _doubt(self, context: Context, model: str, reason: str) -> None:
        self._cooldowns.fail(model)
        await self._ledger.doubt(_hold(context), reason, self._terms(model).doubt_rule)

    async def _note(self, context: Context, model: str, refusal: AssayError, left: Sequence[str]) -> None:
        """Leave the model alone for a while; going on to the next one is a fact."""
        if isinstance(refusal, _ITS_OWN_FAULT):
            self._cooldowns.fail(model, _stated_seconds(refusal))
        if left:
            data = {
                "reason": refusal.code,
                "model": model,
                "waited_ms": 0,
                "outcome": "next",
                "next": left[0],
            }
            fact = LedgerFact(
                FactKind.RETRIED, context.payer, context.key.id, None, context.request.trace_id, data
            )
            with suppress(Unavailable):  # a fact that may be lost
                await self._ledger.record(fact)


def _after_doubt(
    condition: ModelUnavailable, listener: Listener, left: Sequence[str], passed_over: set[str]
) -> Exception:
    """Under a new hold the rest may be asked, unless the caller has a part of this reply already."""
    if listener.told or not left:
        return condition
    return Later(condition, "in_doubt", passed_over=passed_over, retry=True)


def _after_refusals(refusals: Mapping[str, AssayError]) -> Exception:
    """When to try again, where a candidate said so; else what is told to the caller."""
    stated = {
        model: seconds
        for model, refusal in refusals.items()
        if (seconds := _stated_seconds(refusal)) is not None
    }
    if not stated:
        return _told(refusals)
    model = min(stated, key=stated.__getitem__)
    condition, passed_over = refusals[model], refusals.keys() - stated.keys()
    if isinstance(condition, RateLimited):
        # an upstream's limit of ours, and nothing that its caller has done
        condition = ModelUnavailable(condition.message, retry_after_seconds=stated[model])
    return Later(condition, condition.code, stated[model], passed_over=passed_over, retry=True)


def _told(refusals: Mapping[str, AssayError]) -> AssayError:
    """Of several refusals the one that may pass, else the last."""
    *_, last = refusals.values()
    return next((each for each in refusals.values() if each.retryable), last)


def _stated_seconds(refusal: AssayError) -> float | None:
    """When to come again, in the upstream's own words; the class's wait is only a guess."""
    stated: float | None = vars(refusal).get("retry_after_seconds")
    return stated


def _timing(began: float, listener: Listener) -> Timing:
    ttft_ms = None if listener.first_at is None else round((listener.first_at - began) * 1000)
    return Timing(ttft_ms=ttft_ms, total_ms=round((monotonic() - began) * 1000))


def _hold(context: Context) -> Hold:
    assert context.held is not None
    assert context.held.hold is not None
    return context.held.hold


def _candidates(context: Context) -> tuple[str, ...]:
    assert context.held is not None
    return context.held.candidates

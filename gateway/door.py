"""The door: each call to a model is held, dispatched, journaled and settled exactly once (L5, L6)."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic

import structlog

from domain.completion import CompletionReply, CompletionRequest, Fence, Payer
from domain.errors import AssayError, BudgetExhausted, ModelUnavailable, Unavailable
from domain.ledger import (
    CallKey,
    DoubtRule,
    Hold,
    JournalEntry,
    Ledger,
    LedgerCall,
    Mode,
    Replayed,
    Settlement,
    Timing,
    Underway,
    chosen_mode,
    usage_document,
)
from domain.ports import Models, Prices
from domain.prices import split_model
from gateway.tokens import TokenEstimates

#: rounds of waiting for another attempt's call; each is as long as its reply may take
MOST_WAITS = 60
#: between two looks at a limit that calls under way have filled
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 5.0
MODE_SECONDS = 60.0
MODES_KEPT = 1_000
#: few: each keeps its stack alive, and its attempt's other calls come at once
FAILURES_KEPT = 100


@dataclass(frozen=True)
class CallTerms:
    """How long a model's reply may take, how long another attempt waits for it, and what a doubt costs."""

    timeout_seconds: float = 120.0
    wait_seconds: float = 120.0
    doubt_rule: DoubtRule = DoubtRule.FULL


async def sleep_until(moment: datetime) -> None:
    """Wait for that moment."""
    await asyncio.sleep(max(0.0, (moment - datetime.now(UTC)).total_seconds()))


class _Attempt:
    """The calls that one attempt makes side by side.

    The first failure ends the attempt, and its other calls would be cancelled on their way: charged as
    doubts, and made again. So a failure waits for their replies, and nothing new starts meanwhile.
    """

    def __init__(self, failure: AssayError | None) -> None:
        self.callers = 0
        self.failure = failure
        self._under_way = 0
        self._settled = asyncio.Event()
        self._settled.set()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """A call that may leave inside the block; raises the failure that another one met."""
        if self.failure is not None:
            raise self.failure
        self._under_way += 1
        self._settled.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._settled.set()

    async def fail(self, error: AssayError) -> None:
        """Start nothing new, and wait for what is under way."""
        self.failure = self.failure or error
        await self._settled.wait()


class _Room:
    """Waits, ever longer and not for ever, for the calls under way to give back what they do not use."""

    def __init__(self, most_seconds: float) -> None:
        self._left = most_seconds
        self._next = FIRST_WAIT_SECONDS

    @property
    def patient(self) -> bool:
        """Whether waiting once more is worth it."""
        return self._left > 0

    async def wait(self) -> None:
        """Wait once more."""
        await asyncio.sleep(min(self._next, self._left))
        self._left -= self._next
        self._next = min(2 * self._next, LONGEST_WAIT_SECONDS)


class Door:
    """The only door to a model for agents; a retried call is answered from the journal and not paid again."""

    def __init__(
        self,
        upstreams: Models,
        ledger: Ledger,
        prices: Prices,
        tokens: TokenEstimates,
        *,
        terms: Callable[[str], CallTerms],
        modes: Callable[[Payer], Awaitable[Sequence[Mode | None]]],
        wait_until: Callable[[datetime], Awaitable[None]] = sleep_until,
    ) -> None:
        self._upstreams = upstreams
        self._ledger = ledger
        self._prices = prices
        self._tokens = tokens
        self._terms = terms
        self._modes = modes
        self._known_modes: OrderedDict[Payer, tuple[Mode, float]] = OrderedDict()
        self._wait_until = wait_until
        self._attempts: dict[Fence, _Attempt] = {}
        self._failures: OrderedDict[Fence, AssayError] = OrderedDict()

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The reply, paid for once; raises `BudgetExhausted`, `UnpricedModel` and what upstreams raise.

        A failure is raised when the attempt's other calls have been settled.
        """
        with self._attempt_of(request.fence) as attempt:
            try:
                return await self._reply(request, attempt)
            except AssayError as error:
                await attempt.fail(error)
                raise

    @contextmanager
    def _attempt_of(self, fence: Fence | None) -> Iterator[_Attempt]:
        if fence is None:
            yield _Attempt(None)
            return
        attempt = self._attempts.setdefault(fence, _Attempt(self._failures.get(fence)))
        attempt.callers += 1
        try:
            yield attempt
        finally:
            attempt.callers -= 1
            if not attempt.callers:
                del self._attempts[fence]
                self._remember(fence, attempt.failure)

    def _remember(self, fence: Fence, failure: AssayError | None) -> None:
        # its calls that wait for a slot come when the failed one has gone
        if failure is not None:
            self._failures[fence] = failure
            if len(self._failures) > FAILURES_KEPT:
                self._failures.popitem(last=False)

    async def _reply(self, request: CompletionRequest, attempt: _Attempt) -> CompletionReply:
        call = await self._priced(request)
        room = _Room(self._terms(request.model).wait_seconds)
        for _ in range(MOST_WAITS):
            with attempt.under_way():
                began = await self._begin_if_it_fits(call, request.fence, room)
                if isinstance(began, Replayed):
                    return paid(began.entry)
                if isinstance(began, Hold):
                    return await self._ask(began, request)
            if began is None:
                await room.wait()
            else:
                await self._wait_for(began, request)
        raise ModelUnavailable(f"{request.key}: other attempts are at this call again and again.")

    async def _begin_if_it_fits(
        self, call: LedgerCall, fence: Fence | None, room: "_Room"
    ) -> Hold | Replayed | Underway | None:
        """As the ledger begins it; `None` while the limit may have room once calls under way are settled."""
        try:
            return await self._begin(call, fence)
        except BudgetExhausted as refusal:
            # a hold is the worst case, several times the cost: ten at once may be refused what one may have
            if refusal.may_pass and room.patient:
                return None
            raise

    async def _begin(self, call: LedgerCall, fence: Fence | None) -> Hold | Replayed | Underway:
        beginning = asyncio.ensure_future(self._ledger.begin(call, dispatch=True, fence=fence))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # what never left is no doubt: it costs nothing
            with suppress(AssayError):
                if isinstance(began := await beginning, Hold):
                    await self._ledger.cancel(began, "cancelled")
            raise

    async def _priced(self, request: CompletionRequest) -> LedgerCall:
        """The call at its worst case: as many tokens in as its bytes can be, as many out as it allows."""
        prices = await self._prices.of_model(request.model)
        tokens_in = await self._tokens.most_tokens_in(request)
        rates = prices.rates(tokens_in)
        provider, model = split_model(request.model)
        terms = self._terms(request.model)
        return LedgerCall(
            key=CallKey.of(request),
            request_hash=request.request_hash(),
            payer=request.payer,
            estimated=rates.cost({"tokens_in": tokens_in, "tokens_out": request.max_tokens}),
            provider=provider,
            model=model,
            trace_id=request.trace_id,
            file_id=request.step.file_id,
            rates=rates,
            mode=await self._mode_of(request.payer),
            doubt_rule=terms.doubt_rule,
            reply_seconds=terms.wait_seconds,
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

    async def _wait_for(self, underway: Underway, request: CompletionRequest) -> None:
        structlog.get_logger("assay.gateway").info(
            "call_underway", key=request.key, until=underway.until.isoformat()
        )
        await self._wait_until(underway.until)

    async def _ask(self, hold: Hold, request: CompletionRequest) -> CompletionReply:
        began = monotonic()
        timeout_seconds = self._terms(request.model).timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                reply = await self._upstreams.complete(request)
        except TimeoutError as error:
            await self._ledger.doubt(hold, "no reply in time")
            message = f"{request.model} gave no reply in {timeout_seconds:g} s."
            raise ModelUnavailable(message, in_doubt=True) from error
        except AssayError as error:
            if isinstance(error, ModelUnavailable) and error.in_doubt:
                await self._ledger.doubt(hold, error.code)
            else:
                # refused before it was worked on: nothing was used
                await self._ledger.cancel(hold, error.code)
            raise
        except BaseException as error:
            # cancelled, or a defect of ours: the upstream may be at work all the same
            await asyncio.shield(self._ledger.doubt(hold, type(error).__name__))
            raise
        # a reply that came is paid for: a cancellation waits until it is in the journal
        settled = asyncio.ensure_future(self._settle(hold, request, reply, monotonic() - began))
        try:
            return await asyncio.shield(settled)
        except asyncio.CancelledError:
            await settled
            raise

    async def _settle(
        self, hold: Hold, request: CompletionRequest, reply: CompletionReply, seconds: float
    ) -> CompletionReply:
        rates = (await self._prices.of_model(request.model)).rates(reply.usage.tokens_in)
        settlement = Settlement(
            reply=reply,
            actual=rates.cost(usage_document(reply.usage)),
            provider=hold.call.provider,
            rates=rates,
            timing=Timing(total_ms=round(seconds * 1000)),
        )
        entry = await self._ledger.settle(hold, settlement)
        with suppress(Unavailable):  # a figure that may be lost
            await self._tokens.learn(request, reply.usage.tokens_in)
        return paid(entry)


def paid(entry: JournalEntry) -> CompletionReply:
    """The journaled reply with what it cost."""
    return replace(entry.reply, cost_nanodollars=int(entry.actual))

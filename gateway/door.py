"""The door: each call to a model is held, dispatched, journaled and settled once, whoever makes it (L5)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from time import monotonic
from types import MappingProxyType

import structlog

from domain.completion import CompletionReply, CompletionRequest, OnChunk
from domain.errors import AssayError, Unavailable
from domain.gateway import Affinities, Caller, OnLimits
from domain.ledger import JournalEntry, Ledger
from domain.ports import Models, Prices
from gateway.attempts import Attempt, Attempts
from gateway.calling import CallStep
from gateway.context import Context
from gateway.conversations import ConversationStep
from gateway.figures import GatewayFigures
from gateway.holding import HoldStep, Modes
from gateway.listening import Listener
from gateway.pipeline import Pipeline
from gateway.quotas import QuotaStep
from gateway.routing import Cooldowns, RouteStep, UpstreamRoom
from gateway.settling import SettleStep
from gateway.steps import AuditStep
from gateway.terms import CallTerms, TermsOf
from gateway.tokens import TokenEstimates
from gateway.waiting import sleep_until

__all__ = ["CallTerms", "Door"]

MAX_CALLS = 1_000
DRAIN_SECONDS = 20.0


class Door:
    """The only door to a model, the port `Completions`; a repeated call is replayed and not paid again.

    An outside caller's call goes on when the caller has gone: at most `max_calls` of them at once, and at the
    end of the process for `drain_seconds` more.
    """

    def __init__(
        self,
        upstreams: Models,
        ledger: Ledger,
        prices: Prices,
        tokens: TokenEstimates,
        *,
        terms: TermsOf,
        modes: Modes,
        wait_until: Callable[[datetime], Awaitable[None]] = sleep_until,
        routes: Mapping[str, Sequence[str]] = MappingProxyType({}),
        room: UpstreamRoom | None = None,
        affinities: Affinities | None = None,
        quotas: QuotaStep | None = None,
        conversations: ConversationStep | None = None,
        figures: GatewayFigures | None = None,
        cooldowns: Cooldowns | None = None,
        max_calls: int = MAX_CALLS,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        cooldowns, room = cooldowns or Cooldowns(), room or UpstreamRoom()
        self._room = room
        self.pipeline = Pipeline(
            ledger=ledger,
            room=room,
            route=RouteStep(
                routes,
                cooldowns,
                room,
                timeout_of=lambda model: terms(model).timeout_seconds,
                affinities=affinities,
                figures=figures,
            ),
            hold=HoldStep(ledger, prices, tokens, terms=terms, modes=modes),
            call=CallStep(upstreams, ledger, cooldowns, room, terms=terms),
            settle=SettleStep(ledger, prices, tokens),
            audit=AuditStep(figures),
            wait_until=wait_until,
            quotas=quotas,
            conversations=conversations,
        )
        self._attempts = Attempts()
        self._outside: set[asyncio.Task[CompletionReply]] = set()
        self._max_calls = max_calls
        self._drain_seconds = drain_seconds
        self._closing = False

    async def complete(
        self,
        request: CompletionRequest,
        *,
        caller: Caller | None = None,
        on_chunk: OnChunk | None = None,
        on_limits: OnLimits | None = None,
    ) -> CompletionReply:
        """The reply, paid for once; raises `BudgetExhausted`, `UnpricedModel` and what `Completions` says.

        An agent's failure is raised when its attempt's other calls have been settled.
        """
        context = Context(request, caller, arrived=monotonic())
        listener = Listener(on_chunk)
        if caller is not None:
            return await self._outliving(context, listener, on_limits)
        with self._attempts.of(request.fence) as attempt:
            try:
                return await self._reply(context, attempt, listener, on_limits)
            except AssayError as error:
                await attempt.fail(error)
                raise

    async def close(self) -> None:
        """Take no more calls of outside callers, and let those under way come to their end, for a time."""
        self._closing = True
        if self._outside:
            structlog.get_logger("assay.gateway").info("door_draining", calls=len(self._outside))
            await asyncio.wait(self._outside, timeout=self._drain_seconds)
        for each in self._outside:
            each.cancel()
        if self._outside:
            # what is cancelled is written down as a doubt before it ends
            await asyncio.wait(self._outside)
        await self._room.close()
        if self.pipeline.conversations is not None:
            await self.pipeline.conversations.close()

    @property
    def under_way(self) -> int:
        """How many calls of outside callers are."""
        return len(self._outside)

    async def _outliving(
        self, context: Context, listener: Listener, on_limits: OnLimits | None
    ) -> CompletionReply:
        """The reply of a call that nobody's leaving ends: it is drained and settled."""
        self._check_place()
        call = asyncio.create_task(self._reply(context, Attempt(), listener, on_limits))
        self._outside.add(call)
        call.add_done_callback(self._ended)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            listener.leave()
            raise

    def _check_place(self) -> None:
        if self._closing:
            raise Unavailable("This process is shutting down; try again.")
        if len(self._outside) >= self._max_calls:
            raise Unavailable(
                f"This process has {self._max_calls} calls under way (ASSAY_MODELS__MAX_CALLS); try again."
            )

    def _ended(self, call: "asyncio.Task[CompletionReply]") -> None:
        self._outside.discard(call)
        # its caller may have gone: nobody else looks at what it raised, which is in the log
        if not call.cancelled():
            call.exception()

    async def _reply(
        self, context: Context, attempt: Attempt, listener: Listener, on_limits: OnLimits | None
    ) -> CompletionReply:
        done = await self.pipeline.run(context, attempt, listener, on_limits)
        assert done.settled is not None
        return paid(done.settled.entry)


def paid(entry: JournalEntry) -> CompletionReply:
    """The journaled reply with what it cost."""
    return replace(entry.reply, cost_nanodollars=int(entry.actual))

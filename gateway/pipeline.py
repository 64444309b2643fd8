"""The way of one call, from its arrival to its last line in the log: ten steps over one typed context (O)."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime

from domain.errors import Unavailable
from domain.gateway import OnLimits
from domain.ledger import Ledger, LedgerFact
from gateway.attempts import Attempt
from gateway.calling import CallStep
from gateway.context import Appended, Context, ConversationLoaded, QuotaChecked, Settled
from gateway.conversations import ConversationStep
from gateway.holding import HoldStep
from gateway.listening import Listener
from gateway.quotas import QuotaStep
from gateway.routing import RouteStep, UpstreamRoom
from gateway.settling import SettleStep, transformed
from gateway.steps import AuditStep, authenticated
from gateway.waiting import Later, Waits


@dataclass(frozen=True)
class Pipeline:
    """The steps in their order; each answers its own section, which is put into its place here."""

    ledger: Ledger
    room: UpstreamRoom
    route: RouteStep
    hold: HoldStep
    call: CallStep
    settle: SettleStep
    audit: AuditStep
    wait_until: Callable[[datetime], Awaitable[None]]
    quotas: QuotaStep | None = None
    conversations: ConversationStep | None = None

    async def run(
        self, context: Context, attempt: Attempt, listener: Listener, on_limits: OnLimits | None = None
    ) -> Context:
        """The call with every section written; raises what `Completions` raises."""
        try:
            async with AsyncExitStack() as ends:
                context = context.having(authenticated=authenticated(context))
                context = context.having(quota=await self._check_quota(context, ends))
                if on_limits is not None and context.quota is not None:
                    on_limits(context.quota.states)
                context = context.having(conversation=await self._load_conversation(context, ends))
                context = await self._paid(context, attempt, listener)
                if self.quotas is not None:
                    await self.quotas.give_back(context)
                context = context.having(appended=await self._append_conversation(context))
        except BaseException as error:
            self.audit.audit_failure(context, error)
            raise
        return context.having(audited=self.audit.audit(context))

    async def _paid(self, context: Context, attempt: Attempt, listener: Listener) -> Context:
        """Rounds, with the waits between them, until one ends with a reply that is paid for."""
        waits, outcome = Waits(context, self.wait_until), "refused"
        try:
            while True:
                try:
                    with attempt.under_way():
                        context = await self._round(context, listener)
                except Later as later:
                    await waits.wait(later)
                    context = context.having(passed_over=context.passed_over | later.passed_over)
                else:
                    outcome = "answered"
                    return context
        finally:
            await self._tell(context, waits, outcome)

    async def _round(self, context: Context, listener: Listener) -> Context:
        """Route, hold, call, transform, settle: once."""
        try:
            context = context.having(routed=await self.route.route(context))
        except Later:
            # no upstream is needed for a reply that is there
            if (held := await self._replayed(context)) is None:
                raise
            return held
        try:
            context = context.having(held=await self.hold.hold(context))
            if context.replayed is not None:
                return context.having(settled=Settled(context.replayed))
            context = context.having(called=await self.call.call(context, listener))
        finally:
            self.room.give_back(context.place)
        context = context.having(transformed=transformed(context))
        context = context.having(settled=await self.settle.settle(context))
        await self.route.prefer(context)
        return context

    async def _replayed(self, context: Context) -> Context | None:
        models = self.route.models(context.request.model)
        if (held := await self.hold.replayed(context, models)) is None or held.replayed is None:
            return None
        return context.having(held=held, settled=Settled(held.replayed))

    async def _check_quota(self, context: Context, ends: AsyncExitStack) -> QuotaChecked:
        if self.quotas is None:
            return QuotaChecked()
        models = self.route.models(context.request.model)
        tokens = await self.hold.most_tokens(context.request, models)
        return await ends.enter_async_context(self.quotas.checked(context, tokens))

    async def _load_conversation(self, context: Context, ends: AsyncExitStack) -> ConversationLoaded:
        if self.conversations is None or context.request.chat is None:
            return ConversationLoaded()
        loaded = await self.conversations.load(context)
        ends.push_async_callback(self.conversations.give_back, context.having(conversation=loaded))
        return loaded

    async def _append_conversation(self, context: Context) -> Appended:
        if self.conversations is None or context.request.chat is None:
            return Appended()
        return await self.conversations.append(context)

    async def _tell(self, context: Context, waits: Waits, outcome: str) -> None:
        for kind, data in waits.facts:
            fact = LedgerFact(
                kind,
                context.payer,
                context.key.id,
                None,
                context.request.trace_id,
                {**data, "outcome": outcome},
            )
            with suppress(Unavailable):  # facts that may be lost
                await self.ledger.record(fact)

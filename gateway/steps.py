"""The first and the last step: who may call which model and who pays, and what is said of it afterwards."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from time import monotonic

import structlog

from domain.completion import Payer
from domain.errors import AssayError, Forbidden
from gateway.context import Audited, Authenticated, Context
from gateway.figures import GatewayFigures

log = structlog.get_logger("assay.gateway")


def authenticated(context: Context) -> Authenticated:
    """The payer: an outside caller's key, or whom an agent's request names; raises `Forbidden`."""
    caller, model = context.caller, context.request.model
    if caller is None:
        return Authenticated(context.request.payer)
    if caller.models and not any(fnmatchcase(model, pattern) for pattern in caller.models):
        allowed = ", ".join(caller.models)
        raise Forbidden(f"model: this key may not use {model!r}; it may use {allowed}.", field="model")
    return Authenticated(Payer(caller.tenant_id, "", caller.key_id, caller.profile))


@dataclass
class AuditStep:
    """One line in the log for each call, and a figure; never a word of a prompt or a reply."""

    figures: GatewayFigures | None = None

    def audit(self, context: Context) -> Audited:
        """The call was answered."""
        return self._say(context, "ok" if context.replayed is None else "replayed")

    def audit_failure(self, context: Context, error: BaseException) -> Audited:
        """The call was not answered."""
        return self._say(context, error.code if isinstance(error, AssayError) else type(error).__name__)

    def _say(self, context: Context, outcome: str) -> Audited:
        seconds = monotonic() - context.arrived
        if self.figures is not None:
            self.figures.call_ended(outcome)
        # an agent's calls stand in its batch's ledger, thousands of them
        (log.debug if context.caller is None else log.info)(
            "call_ended",
            call=str(context.key.id),
            step=str(context.request.step),
            trace_id=context.request.trace_id,
            model=context.request.model,
            outcome=outcome,
            seconds=round(seconds, 4),
            **_paid(context),
        )
        return Audited(seconds)


def _paid(context: Context) -> dict[str, str | int]:
    if context.settled is None:
        return {}
    entry = context.settled.entry
    return {
        "candidate": context.called.candidate if context.called else entry.reply.model,
        "tokens_in": entry.reply.usage.tokens_in,
        "tokens_out": entry.reply.usage.tokens_out,
        "cost_nanodollars": int(entry.actual),
    }

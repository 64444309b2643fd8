"""Payloads with a limit: one over it is refused by the code that made it, with a name and for good (X10).

Temporal refuses what is over 2 MB only when it is sent, and then a workflow's task is tried again for ever.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Interceptor,
    OutboundInterceptor,
    SignalWorkflowInput,
    StartWorkflowInput,
    WorkflowHandle,
)
from temporalio.converter import DataConverter, DefaultPayloadConverter
from temporalio.exceptions import ApplicationError

from activities.failures import to_application_error
from domain.errors import PayloadTooLarge

#: of everything that one activity, signal, query, start or result carries; Temporal's own limit is 2 MB
MAX_PAYLOAD_BYTES = 1024**2


class LimitedPayloadConverter(DefaultPayloadConverter):
    """The default converter, which raises `payload_too_large` as Temporal's own error over the limit.

    Temporal's, as it is raised in workflows and activities, where it must end what made it.
    """

    def to_payloads(self, values: Sequence[Any]) -> list[Payload]:
        """Temporal's hook."""
        payloads = super().to_payloads(values)
        size = sum(payload.ByteSize() for payload in payloads)
        if size > MAX_PAYLOAD_BYTES:
            largest = max(zip(payloads, values, strict=True), key=lambda pair: pair[0].ByteSize())
            raise to_application_error(_too_large(largest[1], size))
        return payloads


def limited(converter: DataConverter) -> DataConverter:
    """The converter with the limit."""
    return replace(converter, payload_converter_class=LimitedPayloadConverter)


class PayloadLimits(Interceptor):
    """Lets a client's callers meet `PayloadTooLarge` as a condition of ours."""

    def intercept_client(
        self,
        next: OutboundInterceptor,  # noqa: A002  # Temporal's name
    ) -> OutboundInterceptor:
        """Temporal's hook."""
        return _Translating(super().intercept_client(next))


class _Translating(OutboundInterceptor):
    async def start_workflow(
        self,
        input: StartWorkflowInput,  # noqa: A002  # Temporal's name
    ) -> WorkflowHandle[Any, Any]:
        with _translated():
            return await super().start_workflow(input)

    async def signal_workflow(
        self,
        input: SignalWorkflowInput,  # noqa: A002  # Temporal's name
    ) -> None:
        with _translated():
            await super().signal_workflow(input)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ApplicationError as error:
        if error.type != PayloadTooLarge.code:
            raise
        field = error.details[0]["field"] if error.details else None
        raise PayloadTooLarge(error.message, field=field) from error


def _too_large(value: object, size: int) -> PayloadTooLarge:
    name, field = type(value).__name__, _largest_field(value)
    most = f", most of it in {field!r}" if field else ""
    return PayloadTooLarge(
        f"{name} has {size:,} bytes as JSON{most}; "
        f"a payload may have {MAX_PAYLOAD_BYTES:,} (MAX_PAYLOAD_BYTES). Pass a reference instead.",
        field=f"{name}.{field}" if field else name,
    )


def _largest_field(value: object) -> str:
    """The name of the member that takes the most room, if it has any."""
    if is_dataclass(value):
        members: Mapping[Any, Any] = {each.name: getattr(value, each.name) for each in fields(value)}
    elif isinstance(value, Mapping):
        members = value
    else:
        return ""
    return str(max(members, key=lambda name: len(str(members[name])), default=""))[:100]

"""Routing: which upstream serves a model of a given name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from domain.completion import PROVIDER_SEPARATOR, CompletionReply, CompletionRequest, ModelNames, OnChunk
from domain.gateway import StreamingModels
from domain.ports import Models


@runtime_checkable
class _Closing(Protocol):
    """Has connections to close."""

    async def close(self) -> None:
        """Close them."""
        ...


class ModelDirectory:
    """Passes every request to the upstream of the model's name, or of its provider (`provider:name`)."""

    def __init__(
        self,
        upstreams: Mapping[str, Models],
        providers: Mapping[str, Models] = MappingProxyType({}),
        absent: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._upstreams = MappingProxyType(dict(upstreams))
        self._providers = MappingProxyType(dict(providers))
        self.known = ModelNames(tuple(self._upstreams), tuple(self._providers), absent)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The upstream's reply; raises `UnknownModel`, or the upstream's error."""
        return await self._upstream_of(request.model).complete(request)

    async def stream(self, request: CompletionRequest, on_chunk: OnChunk) -> CompletionReply:
        """As `complete`, and each chunk as it comes from an upstream that tells them."""
        upstream = self._upstream_of(request.model)
        if isinstance(upstream, StreamingModels):
            return await upstream.stream(request, on_chunk)
        return await upstream.complete(request)

    async def close(self) -> None:
        """Close the connections of those that keep some."""
        for upstream in (*self._upstreams.values(), *self._providers.values()):
            if isinstance(upstream, _Closing):
                await upstream.close()

    def _upstream_of(self, model: str) -> Models:
        self.known.check(model)
        upstream = self._upstreams.get(model)
        return upstream or self._providers[model.partition(PROVIDER_SEPARATOR)[0]]

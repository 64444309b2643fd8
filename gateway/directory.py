"""Routing: which upstream serves a model of a given name."""

from collections.abc import Mapping
from types import MappingProxyType

from domain.completion import PROVIDER_SEPARATOR, CompletionReply, CompletionRequest, ModelNames
from domain.ports import Models


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
        self.known.check(request.model)
        upstream = self._upstreams.get(request.model)
        if upstream is None:
            upstream = self._providers[request.model.partition(PROVIDER_SEPARATOR)[0]]
        return await upstream.complete(request)

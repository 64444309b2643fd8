"""Routing: which upstream serves a model of a given name."""

from collections.abc import Mapping
from types import MappingProxyType

from domain.completion import CompletionReply, CompletionRequest
from domain.errors import UnknownModel
from domain.ports import Models


class ModelDirectory:
    """Passes every request to the upstream of the model's name."""

    def __init__(self, upstreams: Mapping[str, Models]) -> None:
        self._upstreams = MappingProxyType(dict(upstreams))

    @property
    def names(self) -> tuple[str, ...]:
        """The models that can be asked for, in alphabetical order."""
        return tuple(sorted(self._upstreams))

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The upstream's reply; raises `UnknownModel`, or `ModelUnavailable` from the upstream."""
        upstream = self._upstreams.get(request.model)
        if upstream is None:
            known = ", ".join(self.names) or "none"
            raise UnknownModel(f"No model is called {request.model!r}; known here: {known}.", field="model")
        return await upstream.complete(request)

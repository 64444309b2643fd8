"""How many tokens an input has at most: learned from what upstreams count, by family of models (L2)."""

import asyncio
from collections import Counter
from fractions import Fraction
from time import monotonic

from domain.completion import CompletionRequest
from domain.estimates import hundredths_of, most_tokens_in, tokens_factor
from domain.ports import TokenRatios
from domain.prices import family_of

#: counts are figures that may be lost (G3.2): they are written now and then
WRITE_EVERY_CALLS = 200
READ_EVERY_SECONDS = 300.0


class TokenEstimates:
    """Estimates inputs in bytes of UTF-8, so that Chinese text is not under-counted (X8)."""

    def __init__(self, ratios: TokenRatios) -> None:
        self._ratios = ratios
        self._factors: dict[str, tuple[Fraction, float]] = {}
        self._seen: dict[str, Counter[int]] = {}
        self._writing = asyncio.Lock()

    async def most_tokens_in(self, request: CompletionRequest, model: str) -> int:
        """The most tokens that the request's input has for that model."""
        return most_tokens_in(input_bytes(request), await self._factor(family_of(model)))

    async def learn(self, request: CompletionRequest, model: str, tokens_in: int) -> None:
        """Hear how many tokens an input was counted as by that model."""
        family = family_of(model)
        seen = self._seen.setdefault(family, Counter())
        seen[hundredths_of(tokens_in, input_bytes(request))] += 1
        if seen.total() >= WRITE_EVERY_CALLS:
            await self.write()

    async def write(self) -> None:
        """Write down what was counted since the last time."""
        async with self._writing:
            seen, self._seen = self._seen, {}
            for family, counts in seen.items():
                await self._ratios.add(family, counts)

    async def _factor(self, family: str) -> Fraction:
        factor, read_at = self._factors.get(family, (Fraction(1), float("-inf")))
        if monotonic() - read_at > READ_EVERY_SECONDS:
            factor = tokens_factor(await self._ratios.of_family(family))
            self._factors[family] = (factor, monotonic())
        return factor


def input_bytes(request: CompletionRequest) -> int:
    """The bytes of everything that is sent, the schema included; of a chat its tools too."""
    if request.chat is not None:
        return request.chat.size_bytes
    if request.messages:
        sent = "".join(message.content for message in request.messages) + repr(request.schema)
    else:
        sent = request.answer
    return len(sent.encode())


def choices_wanted(request: CompletionRequest) -> int:
    """How many replies the call asks for at once: each may be as long as it allows."""
    return max(1, int(request.chat.parameters.get("n") or 1)) if request.chat is not None else 1

"""Property 14: who is refused is told a true wait, and in HTTP a positive whole number of seconds."""

from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.chat_replies import error_headers
from db.redis.connection import RedisLink
from db.redis.limits import RedisRateLimits
from domain.errors import RateLimited
from domain.gateway import Permit, RateLimit

LIMITS = st.fixed_dictionaries(
    {"requests": st.integers(1, 20)},
    optional={"tokens": st.integers(10, 1_000), "calls": st.integers(1, 3)},
)
#: milliseconds since the one before, tokens, and whether it has ended before the next comes
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 5_000), st.integers(0, 200), st.booleans()), min_size=1, max_size=30
)


class Alone:
    """The limits of one process, whose time is told; that Redis decides alike is proved beside them."""

    def __init__(self, link: RedisLink, capacities: dict[str, int]) -> None:
        self.now = 0
        self.limits = [RateLimit("key/k", unit, capacity) for unit, capacity in capacities.items()]  # type: ignore[arg-type]
        self.port = RedisRateLimits(link)

    async def ask(self, tokens: int) -> Permit | RateLimited:
        """Granted, or why not."""
        try:
            return await self.port.acquire("t", self.limits, tokens=tokens, lease_seconds=3_600)
        except RateLimited as refusal:
            return refusal


@pytest.fixture
async def nowhere() -> AsyncIterator[RedisLink]:
    link = RedisLink.to("redis://127.0.0.1:1/0", max_connections=1, timeout_seconds=1)
    yield link
    await link.close()


@settings(max_examples=100)
@given(capacities=LIMITS, arrivals=ARRIVALS)
async def test_a_refusal_says_truly_when_to_come_again(
    nowhere: RedisLink, example: Callable[[], None], monkeypatch: pytest.MonkeyPatch,
    capacities: dict[str, int], arrivals: list[tuple[int, int, bool]],
) -> None:  # fmt: skip
    """
    **功能: assay, 属性 14: 限流响应正确性**
    **验证: 需求 7.5**

    For every sequence of requests: no more pass than the limits allow, and each one that is refused is told
    a positive wait, as a whole number of seconds in HTTP. Coming then is never refused for the same reason,
    and a millisecond earlier always is.
    """
    alone = Alone(nowhere, capacities)
    monkeypatch.setattr("db.redis.limits._now", lambda: alone.now)
    granted = 0
    for gap, tokens, ends in arrivals:
        alone.now += gap
        tokens = min(tokens, capacities.get("tokens", tokens))
        outcome = await alone.ask(tokens)
        if isinstance(outcome, RateLimited):
            outcome = await _come_again(alone, tokens, outcome)
        if isinstance(outcome, Permit):
            granted += 1
            if ends:
                await alone.port.release("t", outcome)
        assert granted <= capacities["requests"] * (1 + alone.now / 60_000)
    example()


async def _come_again(alone: Alone, tokens: int, refusal: RateLimited) -> Permit | RateLimited:
    """Do as the refusal says, and not a millisecond earlier; answers what came of it."""
    seconds = refusal.retry_after_seconds
    assert seconds is not None
    assert seconds > 0
    in_http = error_headers(refusal)["Retry-After"]
    assert in_http.isdigit()
    assert max(1, seconds) <= int(in_http) < seconds + 1
    if refusal.limit == "key/k calls":
        assert seconds <= 1, "nobody knows when a call ends: look again soon"
        return refusal
    alone.now += round(seconds * 1000) - 1
    assert isinstance(await alone.ask(tokens), RateLimited)
    alone.now += 1
    outcome = await alone.ask(tokens)
    # each bucket has room then; a place is there when a call has ended
    assert isinstance(outcome, Permit) or outcome.limit == "key/k calls"
    return outcome

"""Many callers in one visit: each gets its own answer, and nobody's leaving takes another's."""

import asyncio
from collections.abc import Sequence

from redis.exceptions import ResponseError

from db.bunches import Bunches
from db.redis.connection import RedisLink, Script


class Counter:
    """A server whose answer to a number is its double; it can be made to wait, and refuses odd thirteens."""

    def __init__(self) -> None:
        self.visits: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.fails: Exception | None = None

    async def visit(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.visits.append(list(numbers))
        await self.open.wait()
        if self.fails is not None:
            raise self.fails
        return [ValueError("13") if each == 13 else 2 * each for each in numbers]


async def test_whoever_asks_during_a_visit_goes_with_the_next_in_the_order_of_asking() -> None:
    counter = Counter()
    bunches = Bunches(counter.visit, at_most=3)
    counter.open.clear()
    first = bunches.ask(1)
    await asyncio.sleep(0.01)
    rest = [bunches.ask(each) for each in range(2, 7)]
    counter.open.set()
    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10, 12]
    assert counter.visits == [[1], [2, 3, 4], [5, 6]]
    assert await bunches.ask(7) == 14


async def test_a_refusal_is_for_who_asked_and_a_failed_visit_for_all_in_it() -> None:
    counter = Counter()
    bunches = Bunches(counter.visit)
    found = await asyncio.gather(*map(bunches.ask, (1, 13, 2)), return_exceptions=True)
    assert [str(each) for each in found] == ["2", "13", "4"]
    counter.fails = OSError("gone")
    found = await asyncio.gather(*map(bunches.ask, (1, 2)), return_exceptions=True)
    assert found == [counter.fails, counter.fails]
    counter.fails = None
    assert await bunches.ask(3) == 6


async def test_a_caller_that_leaves_takes_nobodys_answer_and_is_not_asked_for() -> None:
    counter = Counter()
    bunches = Bunches(counter.visit)
    counter.open.clear()
    on_its_way = bunches.ask(1)
    await asyncio.sleep(0.01)
    leaving, staying = bunches.ask(2), bunches.ask(3)
    on_its_way.cancel()
    leaving.cancel()
    counter.open.set()
    assert await staying == 6
    assert counter.visits == [[1], [3]]


async def test_a_refused_command_spoils_no_other_and_a_script_is_known_again_after_it_was_forgotten(
    own_link: RedisLink,
) -> None:
    double = Script.of("return 2 * tonumber(ARGV[1])")
    await own_link.ask("SET", "text", "no number")
    for _ in range(2):
        answers = await asyncio.gather(
            own_link.ask("INCR", "text"),
            own_link.run(double, [], [21]),
            own_link.ask("GET", "text"),
            return_exceptions=True,
        )
        assert isinstance(answers[0], ResponseError)
        assert answers[1:] == [42, "no number"]
        await own_link.client.script_flush()

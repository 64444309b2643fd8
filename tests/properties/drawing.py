"""Cases drawn by Hypothesis for one grouped run on real servers."""

from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

#: what every property owes
REQUIRED = 100

Case = TypeVar("Case")


def drawn(strategy: SearchStrategy[Case], count: int = REQUIRED) -> list[Case]:
    """So many cases of the strategy, to be proved in one run of the servers."""
    cases: list[Case] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(case: Case) -> None:
        cases.append(case)

    draw()
    # a strategy of few values is drawn from again: the examples differ by what the servers do
    return [cases[index % len(cases)] for index in range(count)]

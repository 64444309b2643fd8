"""The number of examples that a property has proved."""

from collections.abc import Callable, Iterator

import pytest

from tests.properties.drawing import REQUIRED


@pytest.fixture
def example(record_property: Callable[[str, object], None]) -> Iterator[Callable[[], None]]:
    """Call it when one drawn case's assertions have run; the test fails with fewer than 100."""
    count = 0

    def proved() -> None:
        nonlocal count
        count += 1

    yield proved
    record_property("examples", count)
    assert count >= REQUIRED, f"{count} examples instead of {REQUIRED}"

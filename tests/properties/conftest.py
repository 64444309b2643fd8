"""The number of examples that a property has proved."""

from collections.abc import Callable, Iterator

import pytest

from runtime.settings import Settings
from tests.conftest import PATIENT
from tests.properties.drawing import REQUIRED


@pytest.fixture
def app_settings(app_settings: Settings) -> Settings:
    """As every test's own, for a hundred files at once: a loaded machine is given the time that it needs."""
    postgres = app_settings.postgres.model_copy(update={"acquire_timeout_seconds": 60})
    return app_settings.model_copy(update={"worker": PATIENT, "postgres": postgres})


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

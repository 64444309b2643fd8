"""These tests read files and start no servers."""

import runpy
from typing import Any

import pytest

from tests.project.tree import ROOT


@pytest.fixture(scope="session")
def generate() -> dict[str, Any]:
    """The names of `docs/generate.py`, which is a script and no package."""
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))

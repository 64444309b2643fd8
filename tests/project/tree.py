"""The project's own files, as these tests look at them."""

import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "activities",
    "agents",
    "api",
    "benchmarks",
    "db",
    "domain",
    "gateway",
    "runtime",
    "workflows",
)


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that is, or could be, in the repository; skips the test where git cannot tell."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"git cannot list the files here: {done.stderr.strip()}")
    return tuple(path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file())


def modules() -> list[Path]:
    """The Python files of our packages."""
    return [path for path in project_files() if path.suffix == ".py" and _top(path) in PACKAGES]


def documents() -> list[Path]:
    """The Markdown files for readers; answers of the demonstration are data."""
    return [path for path in project_files() if path.suffix == ".md" and "answers" not in path.parts]


def _top(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]

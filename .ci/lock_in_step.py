"""Refuse a requirements.lock that is out of step with pyproject.toml; needs no network.

Whether the lock is the *newest* resolution is not asked: that is `make lock`, by hand.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)")
_REMEDY = "Run `make lock`, and commit pyproject.toml and requirements.lock together."


def locked(text: str) -> dict[str, tuple[str, str]]:
    """Version and entry (its hashes and who wants it) of every pinned package, by canonical name."""
    entries: dict[str, tuple[str, str]] = {}
    for entry in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE):
        if match := _PIN.match(entry):
            entries[canonicalize_name(match["name"])] = (match["version"], entry)
    return entries


def required(project: dict[str, object]) -> list[Requirement]:
    """What pyproject.toml asks for, the extra `dev` included."""
    table = project["project"]
    assert isinstance(table, dict)
    return [Requirement(line) for line in (*table["dependencies"], *table["optional-dependencies"]["dev"])]


def problems(lock: str, project: dict[str, object]) -> Iterator[str]:
    """What is wrong, in sentences."""
    if re.search(r"https?://|^--", lock, flags=re.MULTILINE):
        yield "the lock names an index or has options: it must hold pins and hashes only."
    pins = locked(lock)
    wanted = {canonicalize_name(each.name): each for each in required(project)}
    for name, requirement in wanted.items():
        if name not in pins:
            yield f"{requirement} is in pyproject.toml and not in the lock."
        elif not requirement.specifier.contains(pins[name][0], prereleases=True):
            yield f"the lock has {name} {pins[name][0]}, pyproject.toml asks for {requirement}."
    for name, (_, entry) in pins.items():
        if "--hash=sha256:" not in entry:
            yield f"{name} has no hash in the lock."
        if "assay (pyproject.toml)" in entry and name not in wanted:
            yield f"{name} is locked for us, and pyproject.toml does not ask for it any more."


def main() -> int:
    """Say every problem; the exit code tells whether there is one."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = list(problems(lock, project))
    for each in found:
        sys.stderr.write(f"requirements.lock: {each}\n")
    if found:
        sys.stderr.write(f"{_REMEDY}\n")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())

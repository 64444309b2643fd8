"""The tree keeps the project's rules."""

import ast
import re
import runpy
import tomllib
from pathlib import Path

import pytest

from tests.project.tree import PACKAGES, ROOT, modules, project_files

#: names that gather what has nothing in common; a thing lives with its subject
FORBIDDEN = {"utils", "util", "common", "shared", "helpers", "core", "models", "services", "managers", "misc"}
#: here the word is the subject: the directory of large models
#: in parts, so that this file does not name what it looks for
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("crates", "io"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
    )
]
#: somebody's home, or the place where somebody works
_SOMEBODYS = re.compile(r"(?<![\w.~/-])/(?:home|Users|root|work)/\w")


def _texts() -> list[tuple[str, str]]:
    found = []
    for path in project_files():
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_no_file_names_a_package_registry() -> None:
    named = [f"{name}: {host}" for name, text in _texts() for host in REGISTRIES if host in text]
    assert named == []


def test_no_file_has_a_path_of_somebodys_machine() -> None:
    named = [f"{name}: {found[0]}" for name, text in _texts() if (found := _SOMEBODYS.search(text))]
    assert named == []


def test_the_lock_has_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?://|^--(?!hash)", lock, re.MULTILINE)


def test_no_module_has_a_name_that_says_nothing() -> None:
    bad = []
    for path in project_files():
        name = path.relative_to(ROOT)
        words = {*name.parts[:-1], name.stem} if path.suffix == ".py" else set(name.parts[:-1])
        if words & FORBIDDEN:
            bad.append(str(name))
    assert bad == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)


def test_there_is_no_package_among_the_tests() -> None:
    """A `tests/db` with an `__init__.py` would shadow `db`."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_our_package_names_are_the_same_everywhere() -> None:
    here = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    guarded = runpy.run_path(str(ROOT / ".ci" / "names_are_ours.py"))["OURS"]
    assert here == set(PACKAGES) == set(guarded)


def test_a_distribution_that_owns_one_of_our_names_is_found() -> None:
    intruders = runpy.run_path(str(ROOT / ".ci" / "names_are_ours.py"))["intruders"]
    assert intruders({"api": ["assay"], "db": ["assay", "db.py"], "yaml": ["PyYAML"]}) == {"db": ["db.py"]}


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ("", "is in pyproject.toml and not in the lock"),
        ("tool==1.0 \\\n    --hash=sha256:00\n    # via assay (pyproject.toml)\n", "asks for tool"),
        ("tool==2.0\n    # via assay (pyproject.toml)\n", "has no hash"),
        ("--index-url https://example.org\ntool==2.0 \\\n    --hash=sha256:00\n", "names an index"),
        (
            "tool==2.0 \\\n    --hash=sha256:00\n"
            "old==1 \\\n    --hash=sha256:00\n    # via assay (pyproject.toml)\n",
            "any more",
        ),
    ],
)
def test_a_lock_out_of_step_is_refused(lock: str, said: str) -> None:
    project = {"project": {"dependencies": ["tool>=2"], "optional-dependencies": {"dev": []}}}
    problems = runpy.run_path(str(ROOT / ".ci" / "lock_in_step.py"))["problems"]
    assert any(said in each for each in problems(lock, project))


def test_the_lock_is_in_step() -> None:
    problems = runpy.run_path(str(ROOT / ".ci" / "lock_in_step.py"))["problems"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert list(problems((ROOT / "requirements.lock").read_text(encoding="utf-8"), project)) == []

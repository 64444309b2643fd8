"""The documents say what is."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from pydantic import BaseModel

from domain.batch import EventType
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState, FileState
from runtime.embedded import SEARCH_ATTRIBUTES
from runtime.settings import Settings
from tests.project.tree import ROOT, documents

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
DECISIONS = ROOT / "docs" / "decisions"


def read(name: str) -> str:
    """A document of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as the usual renderers make them."""
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(_FENCE.sub("", text))]
    return {
        heading.strip().replace(" ", "-") if heading == heading.strip() else heading.replace(" ", "-")
        for heading in plain
    }


def links(path: Path) -> list[str]:
    """The targets of a document's links, code left out."""
    return _LINK.findall(_CODE.sub("", _FENCE.sub("", path.read_text(encoding="utf-8"))))


def test_every_link_in_the_documents_resolves() -> None:
    broken = []
    for path in documents():
        for link in links(path):
            target, _, anchor = link.partition("#")
            if "://" in target:
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            if not there.exists() or (anchor and anchor not in anchors(there.read_text(encoding="utf-8"))):
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def test_a_link_names_the_file_that_it_leads_to() -> None:
    """`[api/app.py](../api/progress.py)` resolves and is wrong."""
    wrong = []
    for path in documents():
        for text, target in re.findall(
            r"\[([\w./-]+\.\w+)\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")
        ):
            if not unquote(target).endswith(text.rpartition("/")[2]) and "://" not in target:
                wrong.append(f"{path.relative_to(ROOT)}: [{text}]({target})")
    assert wrong == []


def test_the_map_has_the_ten_stations_and_each_names_a_file_of_ours() -> None:
    rows = re.findall(r"^\| (\d+) \|[^|]+\|([^|]+)\|", read("docs/map.md"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 11))
    assert all(_LINK.search(where) for _, where in rows)


def test_the_map_has_every_folder_of_ours() -> None:
    kept = {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    folders = set(re.findall(r"^\| \[([\w.]+)/\]", read("docs/map.md"), re.MULTILINE))
    assert kept | {"tests", "docs"} <= folders


def test_generated_parts_are_current(generate: dict[str, Any]) -> None:
    stale = [str(path.relative_to(ROOT)) for path in generate["stale"]()]
    assert stale == [], "run `make docs`"


def test_the_architecture_shows_both_state_machines() -> None:
    text = read("docs/architecture.md")
    for machine in (BATCH_MACHINE, FILE_MACHINE):
        assert f"```mermaid\n{machine.mermaid()}\n```" in text


def _section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Batch states", list(BatchState)),
        ("File states", list(FileState)),
        ("Events", list(EventType)),
        ("In the Temporal Web UI", list(SEARCH_ATTRIBUTES)),
    ],
)
def test_the_glossary_has_every_word_once_and_no_other(title: str, words: list[str]) -> None:
    found = re.findall(r"^\| `(\w+)` \|", _section(read("docs/glossary.md"), title), re.MULTILINE)
    assert sorted(found) == sorted(words)


def test_no_word_stands_twice_in_one_part_of_the_glossary() -> None:
    for part in read("docs/glossary.md").split("\n## ")[1:]:
        words = re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE)
        assert len(words) == len(set(words)), part.splitlines()[0]


def settings_defaults() -> dict[str, str]:
    """Every variable with its default, as the table writes it."""
    found: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            part = type(field.default).model_fields
            found |= {f"ASSAY_{name}__{each}".upper(): _shown(part[each].default) for each in part}
        else:
            found[f"ASSAY_{name}".upper()] = _shown(field.default)
    return found


def _shown(default: object) -> str:
    # as it is written in the environment
    default = list(default) if isinstance(default, tuple) else default
    return "–" if default is None else f"`{default}`"


def test_the_table_of_settings_has_every_setting_with_its_default() -> None:
    table = _section(read("docs/operating.md"), "Settings")
    rows = re.findall(r"^\| `(ASSAY_\w+)` \| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)
    assert dict(rows) == settings_defaults()
    assert [name for name, _ in rows] == list(settings_defaults()), "in the order of runtime/settings.py"


def test_every_variable_that_a_document_names_is_a_setting() -> None:
    known = settings_defaults()
    # those of docker-compose.yml, which hands them on under other names
    known |= dict.fromkeys(re.findall(r"\$\{(ASSAY_\w+)", read("docker-compose.yml")), "")
    for path in documents():
        for name in re.findall(r"\bASSAY_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(encoding="utf-8")):
            assert name in known, f"{path.relative_to(ROOT)} names {name}"


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for path in documents():
        text = path.read_text(encoding="utf-8")
        commands = [
            *re.findall(r"`(make [^`]*)`", text),
            *re.findall(r"^\$ (make [^#\n]*)", text, re.MULTILINE),
        ]
        for command in commands:
            named = [word for word in command.split()[1:] if re.fullmatch(r"[a-z-]+", word)]
            assert set(named) <= targets, f"{path.relative_to(ROOT)}: {command}"


def test_every_target_of_the_makefile_explains_itself() -> None:
    text = read("Makefile")
    phony = re.findall(r"^\.PHONY: (\S+)$", text, re.MULTILINE)
    explained = re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE)
    assert phony == explained


def test_every_assay_command_that_a_document_names_exists() -> None:
    from typer.main import get_command

    from runtime.cli import app

    commands = set(get_command(app).commands)
    for path in documents():
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"`(?:\.venv/bin/)?assay ([a-z-]+)", text)
        for block in _CONSOLE.findall(text):
            named += re.findall(r"^\$ (?:\.venv/bin/|ASSAY_\S+ )*assay ([a-z-]+)", block, re.MULTILINE)
        assert set(named) <= commands, path.relative_to(ROOT)


def test_the_readme_has_the_two_commands_on_its_first_screen() -> None:
    first = "\n".join(read("README.md").splitlines()[:25])
    assert "make demo" in first
    assert "make test" in first


def test_ci_runs_what_the_readme_says() -> None:
    section = _section(read("README.md"), "What a change must pass")
    said = re.findall(r"^\$ make ([a-z-]+)", section, re.MULTILINE)
    assert re.findall(r"^step ([a-z-]+) ", read(".ci/run"), re.MULTILINE) == said


def test_decisions_are_numbered_without_gaps_and_have_a_line_to_quote() -> None:
    paths = sorted(DECISIONS.glob("*.md"))
    assert [int(path.name[:4]) for path in paths] == list(range(1, len(paths) + 1))
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {path.name[:4]}: "), path.name
        assert lines[2].startswith("> **"), path.name
        assert len(lines) <= 60, f"{path.name} is longer than a page"

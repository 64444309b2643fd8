"""The local installation: its wiring, its folder, and what it says when it cannot start."""

from pathlib import Path

import pytest

from runtime.embedded import StackError
from runtime.local import local_installation, local_key, running_installation
from runtime.settings import ApiSettings, PostgresSettings, Settings
from tests.river.installation import START_SECONDS, Up


def test_nothing_runs_in_a_folder_that_is_new_damaged_or_of_another_version(tmp_path: Path) -> None:
    state = tmp_path / "installation.json"
    assert running_installation(tmp_path) is None
    for content in ("", "{", "[]", '{"process": {}}', '{"process": {"pid": 1}, "installation": {}}'):
        state.write_text(content)
        assert running_installation(tmp_path) is None


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    made = local_key(Settings(folder=tmp_path))
    assert made.startswith("assay_")
    assert len(made) > 40
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert local_key(Settings(folder=tmp_path)) == made


def test_a_key_that_is_set_is_taken_and_not_stored(tmp_path: Path) -> None:
    assert local_key(Settings(folder=tmp_path, api=ApiSettings(key="chosen"))) == "chosen"
    assert not list(tmp_path.iterdir())


async def test_given_servers_are_given_all_three_or_none(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path / "data", postgres=PostgresSettings(url="postgresql://localhost/x"))
    with pytest.raises(StackError, match=r"ASSAY_REDIS__URL, ASSAY_TEMPORAL__ADDRESS must be set"):
        async with local_installation(settings):
            pass
    assert not (tmp_path / "data").exists()


@pytest.mark.prove
def test_a_restart_keeps_every_port_and_the_key_and_ignores_packages_in_the_callers_folder(
    tmp_path: Path,
) -> None:
    for name in ("api", "domain", "runtime", "db"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the caller\\'s own package')\n")
    with Up(tmp_path / "data") as first:
        before = (first.installation.api_url, first.installation.key, first.addresses)
    with Up(tmp_path / "data") as second:
        assert (second.installation.api_url, second.installation.key, second.addresses) == before


@pytest.mark.prove
def test_a_program_that_cannot_start_is_named_with_its_last_words_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_text("latency: 3\n")
    victim = Up(tmp_path / "data", ASSAY_MODELS__SCRIPT=str(tmp_path / "script.yaml"))
    try:
        assert victim.process.wait(START_SECONDS) == 3
        said = victim.output.read_text()
        # both load the script; whichever was seen first is named
        assert any(f"{each} ended at its start" in said for each in ("api", "worker-cognition"))
        assert "unknown field 'latency'" in said.replace("\n", " ")
    finally:
        victim.kill()

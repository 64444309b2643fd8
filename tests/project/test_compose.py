"""docker-compose.yml is what Compose takes, and agrees with the code."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.embedded import RETENTION_SECONDS, SEARCH_ATTRIBUTES
from runtime.settings import Settings
from tests.project.tree import ROOT

SECRETS = {"POSTGRES_PASSWORD": "p4ss", "VALKEY_PASSWORD": "v4lk", "ASSAY_API_KEY": "k3y"}


def compose_command() -> list[str]:
    """Compose as it is installed here; skips the test where it is not."""
    for command in (["docker", "compose"], ["docker-compose"]):
        program = shutil.which(command[0])
        if program is None:
            continue
        done = subprocess.run([program, *command[1:], "version"], capture_output=True, check=False)
        if done.returncode == 0:
            return [program, *command[1:]]
    pytest.skip("neither `docker compose` nor `docker-compose` is installed")


def config(folder: Path, secrets: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What Compose makes of our file, with these secrets and no `.env`."""
    shutil.copy(ROOT / "docker-compose.yml", folder)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ASSAY_", "AWS_"))
    }
    return subprocess.run(
        [*compose_command(), "config"],
        cwd=folder,
        env=environment | secrets,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="session")
def written() -> dict[str, Any]:
    """The file, with its anchors resolved."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return document


def test_compose_takes_the_file(tmp_path: Path) -> None:
    done = config(tmp_path, SECRETS)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert (
        services["api"]["environment"]["ASSAY_POSTGRES__URL"] == "postgresql://assay:p4ss@postgres:5432/assay"
    )
    ours = {"api", "migrate", "orchestration", "cognition", "parsing"}
    assert {"postgres", "valkey", "temporal", "temporal-ui"} | ours <= set(services)


@pytest.mark.parametrize("missing", SECRETS)
def test_compose_refuses_to_start_without_a_secret_and_names_it(missing: str, tmp_path: Path) -> None:
    done = config(tmp_path, {name: value for name, value in SECRETS.items() if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for name in SECRETS:
        assert set(re.findall(rf"\$\{{{name}(.)", text)) == {":"}
        assert f"${{{name}:-" not in text
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert [f"{name}=" in example.splitlines() for name in SECRETS] == [True] * len(SECRETS)


def test_every_setting_in_the_file_is_one_of_ours(written: dict[str, Any]) -> None:
    for name, service in written["services"].items():
        for variable in service.get("environment", {}):
            if variable.startswith("ASSAY_"):
                part, _, field = variable.removeprefix("ASSAY_").lower().partition("__")
                default = Settings.model_fields[part].default
                assert not field or field in type(default).model_fields, f"{name}: {variable}"


def test_the_namespace_is_prepared_like_the_embedded_one(written: dict[str, Any]) -> None:
    script = written["services"]["temporal-namespace"]["command"][0]
    assert dict(re.findall(r"(Assay\w+)=(\w+)", script)) == SEARCH_ATTRIBUTES
    assert f"--retention {RETENTION_SECONDS // 3600}h" in script


def test_every_lasting_service_has_a_healthcheck_and_waits_for_what_it_needs(written: dict[str, Any]) -> None:
    services = written["services"]
    for name in ("postgres", "valkey", "temporal", "api", "orchestration", "cognition", "parsing"):
        assert "healthcheck" in services[name], name
    for name in ("api", "orchestration", "cognition", "parsing"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", ["cognition", "parsing"])
def test_agents_and_parsers_can_be_scaled(written: dict[str, Any], name: str) -> None:
    assert not {"container_name", "ports"} & written["services"][name].keys()


def test_only_the_api_and_the_web_ui_are_published_and_on_loopback(written: dict[str, Any]) -> None:
    published = {
        name: service["ports"] for name, service in written["services"].items() if "ports" in service
    }
    assert sorted(published) == ["api", "temporal-ui"]
    assert all(port.startswith("${ASSAY_BIND:-127.0.0.1}:") for ports in published.values() for port in ports)


def test_the_image_copies_every_package_that_is_installed() -> None:
    copied = set(
        re.findall(r"^COPY (\w+) \1$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    let_in = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert copied == let_in == ours

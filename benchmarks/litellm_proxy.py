"""The peer: the LiteLLM proxy in an environment of its own, with one worker and without a database."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from runtime.processes import TETHER

PACKAGE = "litellm[proxy]"
_INSTALL_SECONDS = 600.0
#: it imports for half a minute on a slow machine
_START_SECONDS = 180.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.25
_VERSION = "import importlib.metadata as m; print(m.version('litellm'))"


class NotInstallable(Exception):
    """The peer cannot be installed or started here; the message says why."""


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    key: str
    pid: int
    version: str


async def install(folder: Path) -> Path:
    """An environment with the proxy in the folder, made where it is missing; answers its Python."""
    python = folder / "bin" / "python"
    if not (folder / "bin" / "litellm").exists():
        await _finished([sys.executable, "-m", "venv", str(folder)])
        await _finished([str(python), "-m", "pip", "install", "--quiet", PACKAGE])
    return python


async def _finished(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *_tethered(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), _INSTALL_SECONDS)
    except TimeoutError:
        raise NotInstallable(f"{command[1:4]} took longer than {_INSTALL_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        raise NotInstallable(f"{' '.join(command[1:4])} ended with {process.returncode}: {last}")
    return output.decode().strip()


@asynccontextmanager
async def litellm_proxy(
    environment: Path, folder: Path, upstream_url: str, model: str
) -> AsyncIterator[Proxy]:
    """The proxy before the upstream, until the block ends; raises `NotInstallable`."""
    python = await install(environment)
    version, key, port = await _finished([str(python), "-c", _VERSION]), secrets.token_hex(16), _free_port()
    configuration = folder / "litellm.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(upstream_url, model, f"sk-{key}")))
    arguments = ["--config", str(configuration), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "litellm.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *_tethered([str(python.with_name("litellm")), *arguments, "--num_workers", "1"]),
            env=_environment(),
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    proxy = Proxy(f"http://127.0.0.1:{port}/v1", f"sk-{key}", process.pid, version)
    try:
        await _ready(proxy, process)
        yield proxy
    finally:
        await _stop(process)


def _configuration(upstream_url: str, model: str, key: str) -> dict[str, object]:
    reached = {"model": f"openai/{model}", "api_base": f"{upstream_url}/v1", "api_key": "none"}
    return {
        "model_list": [{"model_name": model, "litellm_params": reached}],
        "litellm_settings": {"telemetry": False, "num_retries": 0, "drop_params": False},
        "general_settings": {"master_key": key},
    }


def _environment() -> dict[str, str]:
    """Nothing of the caller's providers; prices as shipped, as nothing is fetched here."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return kept | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }


async def _ready(proxy: Proxy, process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_START_SECONDS), httpx.AsyncClient(timeout=5) as client:
            while process.returncode is None:
                try:
                    if (await client.get(f"{proxy.url[:-3]}/health/liveliness")).is_success:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise NotInstallable(f"the proxy did not answer within {_START_SECONDS:g} s") from None
    raise NotInstallable(f"the proxy ended at its start with exit code {process.returncode}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _tethered(command: list[str]) -> list[str]:
    """The command, which ends when this process does, however that ends."""
    return [sys.executable, "-I", "-S", str(TETHER), signal.SIGKILL.name, str(os.getpid()), "--", *command]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

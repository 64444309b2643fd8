"""Servers of our own that a benchmark measures, as processes over an embedded stack."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from runtime.embedded import EmbeddedStack
from runtime.processes import TETHER

KEY = "assay_benchmark"  # of an installation that ends with its program


def set_environment(stack: EmbeddedStack, objects: Path) -> None:
    """Our settings alone, whatever the caller's environment says: the defaults are what is measured."""
    for name in [each for each in os.environ if each.startswith("ASSAY_")]:
        del os.environ[name]
    addresses = stack.addresses
    os.environ |= {
        "ASSAY_FOLDER": str(stack.folder),
        "ASSAY_POSTGRES__URL": addresses.postgres_url,
        "ASSAY_REDIS__URL": addresses.redis_url,
        "ASSAY_TEMPORAL__ADDRESS": addresses.temporal_address,
        "ASSAY_TEMPORAL__NAMESPACE": addresses.temporal_namespace,
        "ASSAY_OBJECTS__URL": f"file://{objects}",
        "ASSAY_API__KEY": KEY,
    }


@asynccontextmanager
async def server(module: str, *arguments: str) -> AsyncIterator[dict[str, Any]]:
    """What the module says of its server in a line of JSON; the process ends with this one."""
    tether = [sys.executable, "-I", "-S", str(TETHER), signal.SIGKILL.name, str(os.getpid()), "--"]
    process = await asyncio.create_subprocess_exec(
        *tether, sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        told = await process.stdout.readline()
        if not told:
            raise RuntimeError(f"{module} did not start; what it wrote above says why.")
        yield json.loads(told)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()

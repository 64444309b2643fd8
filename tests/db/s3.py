"""A real S3 server from PyPI, on a folder of its own; it checks signatures."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

BUCKET = "assay"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "of-throw-away-servers"}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `s3://assay` is the server's bucket."""
    (folder / BUCKET).mkdir(parents=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "nanio", "serve", "--data-dir", str(folder), "--host", "127.0.0.1"),
            *("--port", str(port), "--log-level", "error", "--no-access-log"),
        ],
        env={
            **os.environ,
            "NANIO_ACCESS_KEY": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "NANIO_SECRET_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(url, server)
        yield {**CREDENTIALS, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true"}
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert server.poll() is None, "the S3 server did not start"
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(url)

"""Assay's API with two routes more, for the benchmark of uploads: they store a body and do nothing else."""

import asyncio
import json
import os
import sys
from typing import cast

import obstore
from fastapi import FastAPI, Request
from obstore.store import LocalStore

from runtime.server import make_server
from runtime.settings import Settings


async def _serve() -> None:
    settings = Settings()
    server = make_server(settings)
    app = cast("FastAPI", server.config.app)
    store = LocalStore(str(settings.objects.url).removeprefix("file://"), mkdir=True)

    async def plain(request: Request, number: int) -> None:
        """As anybody would write it: the body's stream is the library's to store."""
        await obstore.put_async(store, f"plain/{number}", request.stream())

    async def unhashed(request: Request, number: int) -> None:
        """Our store alone: no batch, no digest, no row."""
        await request.state.services.objects.write(f"plain/{number}", request.stream())

    for name, route in (("plain", plain), ("unhashed", unhashed)):
        app.add_api_route(f"/{name}/{{number}}", route, methods=["PUT"], include_in_schema=False)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn announces it to nobody
        await asyncio.sleep(0.01)
    if server.started:
        port = server.servers[0].sockets[0].getsockname()[1]
        sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
    await serving


if __name__ == "__main__":
    asyncio.run(_serve())

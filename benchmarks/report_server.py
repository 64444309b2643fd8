"""Assay's API with one route more, for the benchmark of reports: it answers bytes and does nothing else."""

import asyncio
import json
import os
import sys
from typing import cast

from fastapi import FastAPI, Response

from runtime.server import make_server
from runtime.settings import Settings


async def _serve(size_bytes: int) -> None:
    body = b"x" * size_bytes

    async def bare() -> Response:
        return Response(body, media_type="application/json", headers={"Vary": "Accept"})

    server = make_server(Settings())
    app = cast("FastAPI", server.config.app)
    app.add_api_route("/bare", bare, include_in_schema=False)
    # before all others: it is found at once
    app.router.routes.insert(0, app.router.routes.pop())
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn announces it to nobody
        await asyncio.sleep(0.01)
    if server.started:
        port = server.servers[0].sockets[0].getsockname()[1]
        sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
    await serving


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))

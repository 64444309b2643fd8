"""The local installation: servers, workers and API, started together and kept alive (`assay up`)."""

import asyncio
import importlib
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import structlog

from runtime.embedded import Addresses, EmbeddedStack, Ports, StackError, private_folder, take_lock
from runtime.processes import ChildProcess, ProcessIdentity, ProcessRecord, read_json, write_private_json
from runtime.settings import Settings

READY_SECONDS = 60.0
_POLL_SECONDS = 0.1
_RESTART_PAUSE_SECONDS = 0.2
_RESTART_PAUSE_LIMIT_SECONDS = 10.0
_STEADY_SECONDS = 30.0


@dataclass(frozen=True)
class Installation:
    """Where a running installation is, for programs of the same user."""

    pid: int
    api_url: str
    key: str
    temporal_ui_url: str
    temporal_namespace: str


def running_installation(folder: Path) -> Installation | None:
    """The installation that runs over this data folder; `None` if there is none, or none yet."""
    document = read_json(folder / "installation.json")
    try:
        if document is None or not (identity := ProcessIdentity(**document["process"])).alive:
            return None
        return Installation(identity.pid, **document["installation"])
    except (KeyError, TypeError):
        return None  # written by another version


@asynccontextmanager
async def local_installation(settings: Settings) -> AsyncIterator[Installation]:
    """Start everything, wait until it is ready, keep it alive for the block, stop it in order."""
    folder = settings.folder.resolve()
    async with AsyncExitStack() as stack:
        addresses, ports, record = await _servers(settings, folder, stack)
        key = local_key(settings)
        programs = [_program(each, settings, addresses, ports, key, record) for each in _PROGRAMS]
        migrate = importlib.import_module("db.postgres.migrate").migrate
        await migrate(addresses.postgres_url)
        for program in programs:
            stack.push_async_callback(program.stop)
            program.start()
        keepers = [asyncio.create_task(_keep_alive(program)) for program in programs]
        stack.push_async_callback(_cancel, keepers)
        api_url = f"http://{settings.api.host}:{settings.api.port or ports.api}"
        await _ready(settings, addresses, api_url, programs)
        identity = ProcessIdentity.of("assay", os.getpid())
        assert identity is not None
        installation = Installation(
            identity.pid, api_url, key, addresses.temporal_ui_url, addresses.temporal_namespace
        )
        stack.callback((folder / "installation.json").unlink, missing_ok=True)
        document = {key: value for key, value in asdict(installation).items() if key != "pid"}
        write_private_json(
            folder / "installation.json", {"process": asdict(identity), "installation": document}
        )
        yield installation


def local_key(settings: Settings) -> str:
    """The key of the local tenant: the one that is set, else one made for this data folder."""
    if settings.api.key is not None:
        return settings.api.key.get_secret_value()
    path = settings.folder.resolve() / "key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(f"assay_{secrets.token_urlsafe(32)}")
    return path.read_text()


async def _servers(
    settings: Settings, folder: Path, stack: AsyncExitStack
) -> tuple[Addresses, Ports, ProcessRecord]:
    """The servers whose addresses are set, or else our own."""
    given = _given_addresses(settings)
    if given is not None:
        private_folder(folder)
        stack.callback(os.close, take_lock(folder))
        record = ProcessRecord(folder / "processes.json")
        await record.end_leftovers(grace_seconds=10.0)
        return given, Ports.open(folder), record
    embedded = EmbeddedStack(folder)
    # LangGraph takes a second to import; the servers start meanwhile
    imported = asyncio.create_task(asyncio.to_thread(importlib.import_module, "db.postgres.migrate"))
    await stack.enter_async_context(embedded)
    supervisor = asyncio.create_task(embedded.supervise())
    stack.push_async_callback(_cancel, [supervisor])
    await imported
    # not opened anew: their own servers would count as strangers on the ports, and move them at each start
    return embedded.addresses, embedded.ports, embedded.processes


def _given_addresses(settings: Settings) -> Addresses | None:
    values = {
        "ASSAY_POSTGRES__URL": settings.postgres.url and settings.postgres.url.get_secret_value(),
        "ASSAY_REDIS__URL": settings.redis.url and settings.redis.url.get_secret_value(),
        "ASSAY_TEMPORAL__ADDRESS": settings.temporal.address,
    }
    missing = [name for name, value in values.items() if not value]
    if len(missing) == len(values):
        return None
    if missing:
        raise StackError(f"{', '.join(missing)} must be set too: given servers are given all three, or none.")
    postgres, redis, temporal = values.values()
    assert postgres
    assert redis
    assert temporal
    return Addresses(postgres, redis, temporal, settings.temporal.namespace, settings.temporal.ui_url or "")


@dataclass(frozen=True)
class _Program:
    name: str
    arguments: tuple[str, ...]
    metrics: str | None


_PROGRAMS = (
    _Program("worker-orchestration", ("worker", "--kind", "orchestration"), "orchestration_metrics"),
    _Program("worker-cognition", ("worker", "--kind", "cognition"), "cognition_metrics"),
    _Program("worker-parsing", ("worker", "--kind", "parsing"), "parsing_metrics"),
    _Program("api", ("api",), None),
)


def _program(
    program: _Program, settings: Settings, addresses: Addresses, ports: Ports, key: str, record: ProcessRecord
) -> ChildProcess:
    folder = settings.folder.resolve()
    environment = {
        "ASSAY_FOLDER": str(folder),
        "ASSAY_POSTGRES__URL": addresses.postgres_url,
        "ASSAY_REDIS__URL": addresses.redis_url,
        "ASSAY_TEMPORAL__ADDRESS": addresses.temporal_address,
        "ASSAY_TEMPORAL__NAMESPACE": addresses.temporal_namespace,
        "ASSAY_TEMPORAL__UI_URL": addresses.temporal_ui_url,
        "ASSAY_API__PORT": str(settings.api.port or ports.api),
        "ASSAY_API__KEY": key,
        "ASSAY_LOG__FORMAT": "json",
    }
    if program.metrics is not None:
        environment["ASSAY_WORKER__METRICS_PORT"] = str(getattr(ports, program.metrics))
    return ChildProcess(
        name=program.name,
        # -P: `domain` or `api` in the caller's folder must not stand before our own packages
        argv=[sys.executable, "-P", "-m", "runtime.cli", *program.arguments],
        log_file=folder / "logs" / f"{program.name}.log",
        env={**os.environ, **environment},
        working_folder=Path.cwd(),
        record=record,
        # whoever kills us kills them: all they did is durable, and nobody is there to wait for a drain
        death_signal=signal.SIGKILL,
        grace_seconds=settings.worker.shutdown_seconds + 5,
    )


async def _keep_alive(program: ChildProcess) -> None:
    log = structlog.get_logger("assay.up")
    pause = _RESTART_PAUSE_SECONDS
    while True:
        born = time.monotonic()
        code = await program.wait()
        if time.monotonic() - born > _STEADY_SECONDS:
            pause = _RESTART_PAUSE_SECONDS
        log.warning("program_restarted", program=program.name, exit_code=code, pause_seconds=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _RESTART_PAUSE_LIMIT_SECONDS)
        program.start()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _ready(
    settings: Settings, addresses: Addresses, api_url: str, programs: list[ChildProcess]
) -> None:
    """Wait until the API answers and every queue is polled; the end of the wait names who is missing."""
    deadline = time.monotonic() + READY_SECONDS
    waiting_for = ""
    # one client: each new one reads all certificates of the machine, and who starts has no time to give away
    async with httpx.AsyncClient(timeout=2.0) as client:
        while time.monotonic() < deadline:
            if dead := next((each for each in programs if not each.alive), None):
                raise StackError(
                    f"{dead.name} ended at its start; the end of {dead.log_file}:\n{dead.last_lines()}"
                )
            waiting_for = await _missing(settings, addresses, client, api_url)
            if not waiting_for:
                return
            await asyncio.sleep(_POLL_SECONDS)
    raise StackError(f"{waiting_for} was not ready within {READY_SECONDS:.0f} s; see {settings.folder}/logs")


async def _missing(settings: Settings, addresses: Addresses, client: httpx.AsyncClient, api_url: str) -> str:
    try:
        if (await client.get(f"{api_url}/health/ready")).status_code != httpx.codes.OK:
            return "the API"
    except httpx.HTTPError:
        return "the API"
    temporal = settings.temporal
    for queue in (temporal.orchestration_queue, temporal.cognition_queue, temporal.parsing_queue):
        if not await _polled(addresses, queue):
            return f"the worker of the queue {queue}"
    return ""


async def _polled(addresses: Addresses, queue: str) -> bool:
    from temporalio.api.enums.v1 import TaskQueueType
    from temporalio.api.taskqueue.v1 import TaskQueue
    from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
    from temporalio.client import Client
    from temporalio.service import RPCError

    with suppress(RPCError, RuntimeError):
        client = await Client.connect(addresses.temporal_address, namespace=addresses.temporal_namespace)
        answer = await client.workflow_service.describe_task_queue(
            DescribeTaskQueueRequest(
                namespace=addresses.temporal_namespace,
                task_queue=TaskQueue(name=queue),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            )
        )
        return len(answer.pollers) > 0
    return False

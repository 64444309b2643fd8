"""Real servers for every test: one embedded stack a session, a database of its own for each test."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from pydantic import SecretStr
from redis.asyncio import Redis
from temporalio.worker._workflow import _WorkflowWorker

# only plain data may be in a checkpoint; read once, at langgraph's import
os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"

from db.postgres.migrate import migrate
from db.postgres.pool import Postgres
from runtime.embedded import Addresses, EmbeddedStack
from runtime.resources import Resources, connect_temporal, open_resources
from runtime.server import make_server
from runtime.settings import (
    ApiSettings,
    LogSettings,
    ModelSettings,
    ObjectSettings,
    PostgresSettings,
    RedisSettings,
    Settings,
    TemporalSettings,
    WorkerSettings,
)
from runtime.telemetry import configure_logs
from runtime.worker import cognition_worker, orchestration_worker, parsing_worker, serving

KEY = "assay_test_key_of_the_local_tenant"

settings.register_profile(
    "ci",
    max_examples=100,
    phases=[Phase.generate, Phase.target, Phase.shrink],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name no test: what is packed with a clock would differ in each process that collects."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are given more time than others begin first, so that processes side by side end together."""
    items.sort(key=_timeout_seconds, reverse=True)


def _timeout_seconds(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0] if mark else item.config.getini("timeout"))


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedStack]:
    """PostgreSQL, Valkey and Temporal, real and ours alone."""
    async with EmbeddedStack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
async def addresses(stack: EmbeddedStack) -> Addresses:
    """Where the session's servers are."""
    return stack.addresses


@pytest.fixture(scope="session")
async def template_database(addresses: Addresses) -> str:
    """A migrated database that the tests' own are copied from."""
    async with await _admin(addresses) as connection:
        await connection.execute("CREATE DATABASE assay_template")
    await migrate(_url(addresses, "assay_template"))
    return "assay_template"


@asynccontextmanager
async def _database(addresses: Addresses, template: str) -> AsyncIterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    async with await _admin(addresses) as connection:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    yield _url(addresses, name)
    async with await _admin(addresses) as connection:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def _admin(addresses: Addresses) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(addresses.postgres_url, autocommit=True)


def _url(addresses: Addresses, database: str) -> str:
    return addresses.postgres_url.rpartition("/")[0] + f"/{database}"


@pytest.fixture
async def database_url(addresses: Addresses, template_database: str) -> AsyncIterator[str]:
    """A migrated database for one test."""
    async with _database(addresses, template_database) as url:
        yield url


@pytest.fixture(scope="session")
async def session_database_url(addresses: Addresses, template_database: str) -> AsyncIterator[str]:
    """A migrated database for tests that isolate themselves by fresh ids."""
    async with _database(addresses, template_database) as url:
        yield url


@pytest.fixture(scope="session")
def call_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's scripted model writes its calls."""
    return tmp_path_factory.mktemp("models") / "calls.jsonl"


@pytest.fixture(scope="session")
def model_script(tmp_path_factory: pytest.TempPathFactory, call_log: Path) -> Path:
    """The session's scripted model: full points at once."""
    path = tmp_path_factory.mktemp("models") / "script.yaml"
    path.write_text(f"reply: full\ncalls_log: {call_log}\n")
    return path


@pytest.fixture
async def own_redis_url(addresses: Addresses) -> str:
    """An empty Redis for one test's own database.

    A reconciler takes every copy of a balance for one of its own Postgres: Redis is never shared by two.
    """
    url = addresses.redis_url.rpartition("/")[0] + "/1"
    async with Redis.from_url(url) as client:
        await client.flushdb()
    return url


#: for tests with workers of their own, which die: their death is soon noticed
BRIEF = WorkerSettings(
    heartbeat_timeout_seconds=2, task_timeout_seconds=2, state_interval_seconds=0.2, shutdown_seconds=2
)
#: for workers that only stop: however busy the machine is, none is taken for dead
PATIENT = BRIEF.model_copy(update={"heartbeat_timeout_seconds": 30, "task_timeout_seconds": 10})


def make_settings(
    addresses: Addresses,
    database_url: str,
    redis_url: str,
    folder: Path,
    script: Path | None,
    worker: WorkerSettings = BRIEF,
) -> Settings:
    """Settings with queues of their own."""
    mark = secrets.token_hex(4)
    return Settings(
        folder=folder,
        postgres=PostgresSettings(url=SecretStr(database_url), min_size=1, max_size=20),
        redis=RedisSettings(url=SecretStr(redis_url)),
        temporal=TemporalSettings(
            address=addresses.temporal_address,
            namespace=addresses.temporal_namespace,
            ui_url=addresses.temporal_ui_url,
            orchestration_queue=f"orchestration-{mark}",
            cognition_queue=f"cognition-{mark}",
            parsing_queue=f"parsing-{mark}",
        ),
        objects=ObjectSettings(url=f"file://{folder / 'objects'}"),
        api=ApiSettings(key=SecretStr(KEY)),
        worker=worker,
        models=ModelSettings(script=script),
    )


@pytest.fixture
def app_settings(
    addresses: Addresses, database_url: str, own_redis_url: str, tmp_path: Path, model_script: Path
) -> Settings:
    """Settings over a database of this test's own."""
    return make_settings(addresses, database_url, own_redis_url, tmp_path, model_script)


@pytest.fixture(scope="session")
def session_settings(
    addresses: Addresses,
    session_database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    model_script: Path,
) -> Settings:
    """Settings over the session's database."""
    folder = tmp_path_factory.mktemp("session")
    return make_settings(addresses, session_database_url, addresses.redis_url, folder, model_script, PATIENT)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Resources]:
    """Resources that can be given to workers."""
    temporal = await connect_temporal(settings, name="test", lazy=False)
    async with open_resources(settings, name="test", temporal=temporal) as resources:
        yield resources


@pytest.fixture
async def resources(app_settings: Settings) -> AsyncIterator[Resources]:
    """Open resources over a database of this test's own."""
    async with opened(app_settings) as made:
        yield made


@pytest.fixture(scope="session")
async def session_resources(session_settings: Settings) -> AsyncIterator[Resources]:
    """Open resources over the session's database."""
    async with opened(session_settings) as made:
        yield made


@pytest.fixture
def postgres(resources: Resources) -> Postgres:
    """This test's own database."""
    return resources.postgres


@pytest.fixture(scope="module")
async def workers(session_resources: Resources) -> AsyncIterator[None]:
    """All workers and the relay, in this process; they end with the module, whose rows alone they may touch.

    The sweepers, relays and reconcilers beside them act on all that the session's database and Redis hold.
    """
    wired = (orchestration_worker, cognition_worker, parsing_worker)
    async with serving(session_resources, [each(session_resources) for each in wired], relay=True):
        yield


@pytest.fixture(scope="session")
async def api_url(session_settings: Settings) -> AsyncIterator[str]:
    """The API over the session's database, on a real socket."""
    async with served(session_settings) as url:
        yield url


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[str]:
    """The API on a real socket, which streams as the real one does."""
    server = make_server(settings)
    running = asyncio.create_task(server.serve())
    while not server.started:
        if running.done():
            running.result()
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running


@pytest.fixture(scope="session")
async def api(api_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the local tenant's key; no workers run unless the module asks for `workers`."""
    async with httpx.AsyncClient(
        base_url=api_url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30
    ) as client:
        yield client


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    """As in production: no traceback shows variables, nor takes minutes over a long one."""
    configure_logs(LogSettings(level="warning"), process="tests")


@pytest.fixture(scope="session", autouse=True)
def _patient_deadlock_detector() -> Iterator[None]:
    """A workflow that waits for a processor is no deadlock: the detector raises in whatever runs just then.

    After two seconds, which Temporal's SDK fixes; its debug mode would run workflows elsewhere, too.
    """
    make = _WorkflowWorker.__init__

    def make_patient(self: Any, **options: Any) -> None:
        make(self, **options)
        assert self._deadlock_timeout_seconds == 2
        self._deadlock_timeout_seconds = 60

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_WorkflowWorker, "__init__", make_patient)
        yield


@pytest.fixture(autouse=True)
def _structlog_context() -> Iterator[None]:
    """No test's log context reaches the next."""
    from structlog.contextvars import clear_contextvars

    clear_contextvars()
    yield
    clear_contextvars()

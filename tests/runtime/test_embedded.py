"""The embedded stack: it starts, keeps its data and its doors shut, and leaves nothing behind."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from runtime.doctor import run_checks
from runtime.embedded import (
    RETENTION_SECONDS,
    SEARCH_ATTRIBUTES,
    EmbeddedStack,
    NotReady,
    ServerFailed,
    StackAlreadyRunning,
    StackError,
    ping_postgres,
    ping_temporal,
    ping_valkey,
    running_stack,
)
from runtime.processes import ChildProcess, ProcessIdentity, ProcessRecord, write_private_json

RESTART_SECONDS = 90.0


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedStack]:
    async with EmbeddedStack(tmp_path_factory.mktemp("stack") / "data") as running:
        yield running


@pytest.fixture
async def supervised(stack: EmbeddedStack) -> AsyncIterator[EmbeddedStack]:
    task = asyncio.create_task(stack.supervise())
    await asyncio.sleep(0)
    yield stack
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[list[int]]:
    """Pids of long sleeps, ended with the test whatever it did."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def build_sleep(folder: Path, *, script: str = "exec sleep 60", grace_seconds: float = 5.0) -> ChildProcess:
    return ChildProcess(
        name="sleep",
        argv=["/bin/sh", "-c", script],
        log_file=folder / "sleep.log",
        env={"PATH": os.defpath},
        working_folder=folder,
        record=ProcessRecord(folder / "processes.json"),
        grace_seconds=grace_seconds,
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that works in the folder or names it on its command line."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(folder)) or str(folder) in " ".join(process.cmdline()):
                found.append(process)
    return found


async def eventually_new_pid(stack: EmbeddedStack, server: str, old: int) -> None:
    deadline = time.monotonic() + RESTART_SECONDS
    while stack.pids.get(server, old) == old:
        assert time.monotonic() < deadline, f"{server} was not restarted"
        await asyncio.sleep(0.05)


async def eventually_answers(stack: EmbeddedStack) -> None:
    addresses = stack.addresses
    deadline = time.monotonic() + RESTART_SECONDS
    while True:
        try:
            await ping_postgres(addresses.postgres_url)
            await ping_valkey(addresses.redis_url)
            await ping_temporal(addresses.temporal_address, addresses.temporal_namespace)
        except NotReady:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


async def test_every_server_answers(stack: EmbeddedStack) -> None:
    await ping_postgres(stack.addresses.postgres_url)
    await ping_valkey(stack.addresses.redis_url)
    await ping_temporal(stack.addresses.temporal_address, stack.addresses.temporal_namespace)


async def test_the_web_ui_answers(stack: EmbeddedStack) -> None:
    port = int(stack.addresses.temporal_ui_url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert b" 200 " in await reader.readline()
    writer.close()


async def test_postgres_keeps_its_promises(stack: EmbeddedStack) -> None:
    async with await psycopg.AsyncConnection.connect(stack.addresses.postgres_url) as connection:
        for setting, value in {
            "fsync": "on",
            "synchronous_commit": "on",
            "data_checksums": "on",
            "max_connections": "200",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "server_encoding": "UTF8",
        }.items():
            row = await (await connection.execute("SELECT current_setting(%s)", [setting])).fetchone()
            assert row == (value,), setting


async def test_postgres_refuses_a_wrong_password(stack: EmbeddedStack) -> None:
    password = json.loads((stack.folder / "secrets.json").read_text())["postgres_password"]
    for url in (
        stack.addresses.postgres_url.replace(password, "wrong"),
        stack.addresses.postgres_url.replace(f":{password}", ""),
    ):
        with pytest.raises(psycopg.OperationalError):
            await psycopg.AsyncConnection.connect(url)


async def test_valkey_refuses_a_wrong_password_and_none(stack: EmbeddedStack) -> None:
    password = json.loads((stack.folder / "secrets.json").read_text())["valkey_password"]
    for url in (
        stack.addresses.redis_url.replace(password, "wrong"),
        stack.addresses.redis_url.replace(f":{password}@", ""),
    ):
        client = Redis.from_url(url)
        with pytest.raises(AuthenticationError):
            await client.ping()
        await client.aclose()


async def test_temporal_keeps_histories_thirty_days_and_knows_the_search_attributes(
    stack: EmbeddedStack,
) -> None:
    from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
    from temporalio.client import Client

    client = await Client.connect(stack.addresses.temporal_address, namespace="assay")
    described = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="assay"))
    listed = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace="assay")
    )

    assert described.config.workflow_execution_retention_ttl.seconds == RETENTION_SECONDS == 30 * 86400
    assert listed.custom_attributes.keys() >= SEARCH_ATTRIBUTES.keys()


async def test_a_folder_of_an_earlier_version_learns_what_is_searched_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
    from temporalio.client import Client

    with monkeypatch.context() as earlier:
        earlier.setattr("runtime.embedded.SEARCH_ATTRIBUTES", {"AssayTenant": "Keyword"})
        async with EmbeddedStack(tmp_path):
            pass
    async with EmbeddedStack(tmp_path) as stack:
        client = await Client.connect(stack.addresses.temporal_address, namespace="assay")
        listed = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace="assay")
        )
    assert listed.custom_attributes.keys() >= SEARCH_ATTRIBUTES.keys()


def test_servers_listen_on_loopback_only(stack: EmbeddedStack) -> None:
    listening = [
        connection.laddr
        for pid in stack.pids.values()
        for connection in psutil.Process(pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_no_password_is_visible_to_other_users(stack: EmbeddedStack) -> None:
    passwords = json.loads((stack.folder / "secrets.json").read_text()).values()
    for process in processes_of(stack.folder):
        seen = " ".join(process.cmdline())
        assert not any(password in seen for password in passwords)
    assert stat.S_IMODE(stack.folder.stat().st_mode) == 0o700
    for name in ("secrets.json", "state.json", "processes.json", "valkey/valkey.conf"):
        assert stat.S_IMODE((stack.folder / name).stat().st_mode) == 0o600, name
    for password in passwords:
        assert password not in str(stack.addresses)


async def test_a_second_stack_on_the_folder_is_told_who_runs_there(stack: EmbeddedStack) -> None:
    with pytest.raises(StackAlreadyRunning) as refused:
        await EmbeddedStack(stack.folder).start()

    assert refused.value.pid == os.getpid()
    assert refused.value.addresses == stack.addresses
    await ping_valkey(stack.addresses.redis_url)


def test_other_commands_find_the_running_stack(stack: EmbeddedStack) -> None:
    found = running_stack(stack.folder)
    assert found is not None
    assert (found.pid, found.addresses) == (os.getpid(), stack.addresses)


@pytest.mark.parametrize("server", ["postgres", "valkey", "temporal"])
async def test_a_killed_server_comes_back_on_the_same_port(supervised: EmbeddedStack, server: str) -> None:
    before = supervised.addresses
    old = supervised.pids[server]

    os.kill(old, signal.SIGKILL)
    await eventually_new_pid(supervised, server, old)
    await eventually_answers(supervised)

    assert supervised.addresses == before


async def test_a_killed_postgres_keeps_what_was_committed(supervised: EmbeddedStack) -> None:
    url = supervised.addresses.postgres_url
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("CREATE TABLE kept (n int)")
        await connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")

    old = supervised.pids["postgres"]
    os.kill(old, signal.SIGKILL)
    await eventually_new_pid(supervised, "postgres", old)
    await eventually_answers(supervised)

    async with await psycopg.AsyncConnection.connect(url) as connection:
        assert await (await connection.execute("SELECT count(*) FROM kept")).fetchone() == (1000,)


async def test_a_killed_temporal_keeps_its_workflows(supervised: EmbeddedStack) -> None:
    from temporalio.client import Client

    address = supervised.addresses.temporal_address
    client = await Client.connect(address, namespace="assay")
    started = await client.start_workflow("Nobody", id="kept", task_queue="nobody")

    old = supervised.pids["temporal"]
    os.kill(old, signal.SIGKILL)
    await eventually_new_pid(supervised, "temporal", old)
    await eventually_answers(supervised)

    again = await Client.connect(address, namespace="assay")
    found = await again.get_workflow_handle("kept").describe()
    assert found.run_id == started.first_execution_run_id
    await again.get_workflow_handle("kept").terminate()


async def test_the_doctor_finds_a_running_stack_healthy(stack: EmbeddedStack) -> None:
    failed = [check for check in await run_checks(stack.folder) if not check.ok]
    assert failed == []


async def test_the_doctor_finds_an_empty_folder_startable(tmp_path: Path) -> None:
    failed = [check for check in await run_checks(tmp_path / "new") if not check.ok]
    assert failed == []
    assert not (tmp_path / "new").exists()


async def test_the_doctor_names_a_wrong_password(stack: EmbeddedStack, tmp_path: Path) -> None:
    state = json.loads((stack.folder / "state.json").read_text())
    url = state["addresses"]["postgres_url"]
    state["addresses"]["postgres_url"] = url.replace(url.split(":")[2].partition("@")[0], "wrong")
    tmp_path.chmod(0o700)
    write_private_json(tmp_path / "state.json", state)

    checks = {check.name: check for check in await run_checks(tmp_path)}

    assert not checks["PostgreSQL answers"].ok
    assert "authentication" in checks["PostgreSQL answers"].detail
    assert checks["Valkey answers"].ok


async def test_stop_leaves_nothing_and_the_next_start_finds_data_and_ports(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with EmbeddedStack(folder) as first:
        addresses = first.addresses
        async with await psycopg.AsyncConnection.connect(addresses.postgres_url) as connection:
            await connection.execute("CREATE TABLE kept (n int)")

    assert processes_of(folder) == []
    assert not (folder / "state.json").exists()
    assert not (folder / "processes.json").exists()

    async with EmbeddedStack(folder) as second:
        assert second.addresses == addresses
        async with await psycopg.AsyncConnection.connect(addresses.postgres_url) as connection:
            await connection.execute("SELECT n FROM kept")


async def test_stop_ends_an_open_transaction_quickly_and_supervision_too(tmp_path: Path) -> None:
    stack = EmbeddedStack(tmp_path / "data")
    await stack.start()
    supervision = asyncio.create_task(stack.supervise())
    connection = await psycopg.AsyncConnection.connect(stack.addresses.postgres_url)
    await connection.execute("CREATE TABLE never (n int)")

    began = time.monotonic()
    await stack.stop()
    await asyncio.wait_for(supervision, 30)

    assert time.monotonic() - began < 8
    assert processes_of(stack.folder) == []
    await connection.close()
    await stack.stop()


async def test_a_start_that_fails_half_way_leaves_no_child(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    (folder / "temporal").mkdir(parents=True)
    (folder / "temporal" / "temporal.db").write_text("this is no database, and long enough to tell" * 100)
    stack = EmbeddedStack(folder)

    with pytest.raises(ServerFailed, match=r"temporal ended with exit code 1[\s\S]*temporal\.log"):
        await stack.start()

    assert processes_of(folder) == []
    (folder / "temporal" / "temporal.db").unlink()
    await stack.start()
    await stack.stop()


@pytest.mark.parametrize("seconds", [0.05, 0.4, 0.8])
async def test_a_start_that_is_cancelled_leaves_no_child(tmp_path: Path, seconds: float) -> None:
    folder = tmp_path / "data"
    stack = EmbeddedStack(folder)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stack.start(), seconds)

    assert processes_of(folder) == []
    with pytest.raises(StackError, match="not running"):
        _ = stack.addresses


async def test_what_a_crash_left_of_postgres_is_overcome(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    unfinished = folder / "postgres.new-0badcafe"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    async with EmbeddedStack(folder):
        pass
    assert not unfinished.exists()

    # A pid that lives and is no postmaster: ours.
    (folder / "postgres" / "postmaster.pid").write_text(
        f"{os.getpid()}\n{folder / 'postgres'}\n1\n1\n\n\n\n\n"
    )
    async with EmbeddedStack(folder) as stack:
        await ping_postgres(stack.addresses.postgres_url)


async def test_a_taken_port_is_left_to_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with EmbeddedStack(folder) as stack:
        before = stack.addresses
    port = int(before.temporal_address.rpartition(":")[2])
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)

    async with server, EmbeddedStack(folder) as stack:
        assert stack.addresses.temporal_address != before.temporal_address
        assert stack.addresses.postgres_url == before.postgres_url


async def test_lost_secrets_are_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(StackError, match=r"secrets\.json is missing"):
        await EmbeddedStack(tmp_path).start()


async def test_a_child_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; touch trapped; while :; do sleep 0.1; done"
    child = build_sleep(tmp_path, script=script, grace_seconds=0.5)
    child.start()
    while not (tmp_path / "trapped").exists():
        await asyncio.sleep(0.01)
    await child.stop()
    assert await child.wait() == -signal.SIGKILL


async def test_a_child_is_started_from_the_main_thread_only(tmp_path: Path) -> None:
    async def start() -> None:
        build_sleep(tmp_path).start()

    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(asyncio.run, start())


async def test_left_over_children_are_killed_and_strangers_are_not(
    tmp_path: Path, sleeper: list[int]
) -> None:
    left_over = await asyncio.create_subprocess_exec("sleep", "60")
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    sleeper += [left_over.pid, stranger.pid]
    known = ProcessIdentity.of("server", left_over.pid)
    reused = ProcessIdentity.of("server", stranger.pid)
    assert known is not None
    assert reused is not None
    rows = [
        {"name": one.name, "pid": one.pid, "started_ticks": one.started_ticks + later, "boot_id": one.boot_id}
        for one, later in ((known, 0), (reused, -1))
    ]
    write_private_json(tmp_path / "processes.json", {"processes": rows})

    await ProcessRecord(tmp_path / "processes.json").end_leftovers(grace_seconds=0.2)

    assert await left_over.wait() == -signal.SIGKILL
    assert stranger.returncode is None
    assert not (tmp_path / "processes.json").exists()
    stranger.kill()
    await stranger.wait()

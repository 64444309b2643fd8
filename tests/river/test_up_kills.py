"""kill -9 and Ctrl-C of `assay up` and of its children: no orphan, and the next start works."""

import random
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from tests.river.installation import Up, processes_of, run_assay, until

ROUNDS = 10


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A running installation, for what leaves it running."""
    with Up(tmp_path_factory.mktemp("up") / "data") as running:
        yield running


def secrets_of(up: Up) -> list[str]:
    """Every secret of the installation: its passwords and its key."""
    passwords = (up.addresses.postgres_url, up.addresses.redis_url)
    return [up.installation.key, *(url.split("@")[0].rpartition(":")[2] for url in passwords)]


def assert_works(up: Up) -> None:
    with up.client() as client:
        assert client.get("/health/ready")["status"] == "ready"
        assert client.get("/v1/batches")["total"] == 0


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_killed_at_ten_moments_of_its_start_it_leaves_no_orphan_and_starts_again(tmp_path: Path) -> None:
    began = time.monotonic()
    with Up(tmp_path / "data-0"):
        seconds = time.monotonic() - began
    choose = random.Random(20260103)  # noqa: S311  moments, not secrets
    longest, had_children = 0.0, 0
    for number in range(ROUNDS):
        # every other folder is a fresh one: initdb and the migrations are killed too
        folder = tmp_path / f"data-{number // 2}"
        victim = Up(folder)
        try:
            time.sleep(choose.uniform(0.05, 1.0) * seconds)
            had_children += len(processes_of(folder)) > 1
        finally:
            longest = max(longest, victim.kill())
        with Up(folder) as again:
            assert_works(again)
            # running, too, it may be killed
            longest = max(longest, again.kill())
    assert had_children >= ROUNDS // 2, "the moments were too early to prove anything"
    print(  # noqa: T201  figures, shown by -rP
        f"{ROUNDS} kills within {seconds:.1f} s of start, {had_children} with children; "
        f"the last child was gone after {longest:.2f} s"
    )


@pytest.mark.prove
@pytest.mark.parametrize("seconds", [0.2, 1.2, 3.0])
def test_ctrl_c_during_the_start_ends_it_in_order(tmp_path: Path, seconds: float) -> None:
    victim = Up(tmp_path / "data")
    until(lambda: (tmp_path / "data" / "lock").exists(), "the start has begun", 60)
    time.sleep(seconds)
    began = time.monotonic()
    code = victim.stop(signal.SIGINT)
    took = time.monotonic() - began
    assert not processes_of(victim.folder)
    assert code == 130, victim.output.read_text()
    assert "Traceback" not in victim.output.read_text()
    print(f"Ctrl-C {seconds} s into the start: ended after {took:.1f} s")  # noqa: T201  figures, shown by -rP


@pytest.mark.prove
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_running_installation_ends_in_order_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    with Up(tmp_path / "data") as victim:
        assert victim.stop(number) == 0
        assert not processes_of(victim.folder)
        assert "Stopping" in victim.output.read_text()
        assert "Traceback" not in victim.output.read_text()
    assert run_assay(tmp_path / "data", "status").returncode == 3


@pytest.mark.prove
def test_a_second_up_leaves_the_first_alone(up: Up) -> None:
    before = up.pids
    second = run_assay(up.folder, "up")
    assert second.returncode == 0
    assert "Already up" in second.stdout
    assert up.installation.api_url in second.stdout
    assert up.pids == before
    assert_works(up)


@pytest.mark.prove
def test_of_two_at_once_one_starts_and_the_other_says_who_holds_the_folder(tmp_path: Path) -> None:
    first, lock = Up(tmp_path / "data"), tmp_path / "data" / "lock"
    try:
        until(lambda: (lock.exists() and lock.read_text()) or None, "the lock's holder", 60)
        # otherwise it may be up before the second one has come to its question
        first.process.send_signal(signal.SIGSTOP)
        second = run_assay(tmp_path / "data", "up")
        first.process.send_signal(signal.SIGCONT)
        assert second.returncode == 3, second.stdout + second.stderr
        assert str(first.process.pid) in second.stderr
        assert "Traceback" not in second.stderr
        first.wait_ready()
        assert_works(first)
        assert first.stop() == 0
    finally:
        first.kill()


@pytest.mark.prove
@pytest.mark.parametrize("name", ["worker-orchestration", "worker-cognition", "api"])
def test_a_killed_worker_or_api_is_started_again(up: Up, name: str) -> None:
    others = {each: pid for each, pid in up.pids.items() if each != name}
    began = time.monotonic()
    dead = up.kill_child(name)
    up.wait_child(name, other_than=dead)
    until(lambda: run_assay(up.folder, "status").returncode == 0 or None, "ready again", 90)
    assert {each: pid for each, pid in up.pids.items() if each != name} == others
    print(f"{name} was back after {time.monotonic() - began:.1f} s")  # noqa: T201  figures, shown by -rP


@pytest.mark.prove
def test_without_the_secret_nobody_gets_in(up: Up) -> None:
    postgres, redis = up.addresses.postgres_url, up.addresses.redis_url
    for password in ("", ":wrong"):
        stranger = f"postgresql://assay{password}@{postgres.rpartition('@')[2]}"
        with pytest.raises(psycopg.OperationalError, match=r"password|authentication"):
            psycopg.connect(stranger)
    server = f"redis://{redis.rpartition('@')[2]}"
    for url in (server, server.replace("redis://", "redis://:wrong@")):
        with Redis.from_url(url) as client, pytest.raises(AuthenticationError):
            client.ping()
    api = up.installation.api_url
    paths = ("/v1/batches", "/v1/exams", "/v1/census", "/metrics", "/v1/batches/x/events")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "wrong"}):
        for path in paths:
            assert httpx.get(f"{api}{path}", headers=headers).status_code == 401, path
        assert httpx.post(f"{api}/v1/batches", headers=headers, json={}).status_code == 401


@pytest.mark.prove
def test_every_server_listens_on_this_machine_only(up: Up) -> None:
    listening = {
        (process.name(), connection.laddr.ip)
        for process in map(psutil.Process, processes_of(up.folder))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {"postgres", "valkey-server", "temporal"} <= {name for name, _ in listening}
    assert {address for _, address in listening} == {"127.0.0.1"}, listening


@pytest.mark.prove
def test_the_folder_is_private(up: Up) -> None:
    for path in (up.folder, *up.folder.rglob("*")):
        status = path.lstat()
        private = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
        assert stat.S_IMODE(status.st_mode) & ~private == 0, f"{path} {status.st_mode:o}"


@pytest.mark.prove
def test_no_secret_is_on_a_command_line_or_in_a_log(up: Up) -> None:
    secrets = secrets_of(up)
    assert len(set(secrets)) == 3
    for pid in processes_of(up.folder):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        assert not [each for each in secrets if each in command], command
    logs = [up.output, *(up.folder / "logs").iterdir()]
    assert len(logs) >= 7
    for log in logs:
        assert not [each for each in secrets if each in log.read_text(errors="replace")], log

"""kill -9 of the workers in the middle of a batch: no marks lost, nothing durable paid for twice."""

import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest
from psycopg import AsyncConnection

from db.postgres.checkpoints import FencedPostgresSaver
from db.postgres.pool import open_pool
from domain.identity import LogicalStep, file_workflow_id
from runtime.client import ApiClient
from tests.river.classroom import OPEN, Classroom, write_script
from tests.river.installation import Up, calls_in, until, wait_ended, wait_finished

STUDENTS = 100
KILLS_AT = (8, 32, 56)
#: files that an event is sent to, once: most of them run on while a worker is killed
TOLD = 60
Answered = tuple[str, str]


def answered(call: dict[str, str]) -> Answered:
    """The file and the question that a call of the scripted model is about."""
    step = LogicalStep.parse(call["key"].rpartition("/")[0])
    return step.file_id, step.question_id


def in_flight(calls: list[dict[str, str]], pid: int) -> set[str]:
    """The calls that this process has begun and that have not returned to it."""
    mine = [call for call in calls if call["pid"] == pid]
    begun = {call["key"] for call in mine if call["event"] == "begun"}
    returned = {call["key"] for call in mine if call["event"] == "returned"}
    return begun - returned


def suspended_in_flight(worker: psutil.Process, log: Path) -> bool:
    """Whether the worker was stopped while it waits for calls: none returns until it is killed."""
    worker.suspend()
    if in_flight(calls_in(log), worker.pid):
        return True
    worker.resume()
    time.sleep(0.05)  # it must get on before it is stopped again
    return False


async def durable_answers(postgres_url: str) -> set[Answered]:
    """Every (file, question) whose result is in Postgres, as a checkpoint or as a pending write."""
    found: set[Answered] = set()
    pool = open_pool(
        postgres_url, min_size=1, max_size=1, acquire_timeout_seconds=5, check_on_acquire=False, name="test"
    )
    await pool.open()
    try:
        saver = FencedPostgresSaver(pool, epoch=0)
        async with pool.connection() as connection:
            query = "SELECT thread_id, file_id::text FROM agent_threads"
            threads = await (await connection.execute(query)).fetchall()
        for thread_id, file_id in (row.values() for row in threads):
            checkpoint = await saver.aget_tuple({"configurable": {"thread_id": thread_id}})
            if checkpoint is None:
                continue
            results = [checkpoint.checkpoint["channel_values"].get("results") or {}]
            results += [
                value for _, channel, value in checkpoint.pending_writes or () if channel == "results"
            ]
            found |= {(file_id, question) for each in results for question in each}
    finally:
        await pool.close()
    return found


def tell_the_last(client: ApiClient, batch_id: str) -> list[str]:
    """Send an event to each of the files that begin last; answers their ids."""
    files = client.get(f"/v1/batches/{batch_id}/files", page_size=100)["items"][-TOLD:]
    for file in files:
        workflow_id = file_workflow_id(batch_id, file["file_id"], 1)
        client.post(f"/v1/workflows/{workflow_id}/events", {"event_id": "announced", "type": "notice"})
    return [file["file_id"] for file in files]


async def wait_until_disconnected(postgres_url: str, ports: set[int]) -> None:
    """Wait for the backends of a dead process: a statement that it had sent may still be committed."""
    async with await AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE client_port = ANY(%s)"
        while (await (await connection.execute(query, [list(ports)])).fetchone()) != (0,):
            pass


@pytest.mark.prove
async def test_three_kills_of_the_cognition_worker_lose_nothing_and_repeat_nothing_durable(
    tmp_path: Path,
) -> None:
    classroom = Classroom.of(tmp_path / "class", STUDENTS)
    log = tmp_path / "calls.jsonl"
    script = write_script(tmp_path / "script.yaml", log, latency_seconds=0.3)
    with (
        Up(
            tmp_path / "data",
            ASSAY_MODELS__SCRIPT=str(script),
            ASSAY_WORKER__HEARTBEAT_TIMEOUT_SECONDS="2",
            ASSAY_WORKER__TASK_TIMEOUT_SECONDS="2",
        ) as up,
        up.client() as client,
    ):
        batch_id = classroom.hand_in(client)
        told = tell_the_last(client, batch_id)
        kills: list[tuple[int, set[Answered]]] = []
        for finished in KILLS_AT:
            wait_finished(client, batch_id, finished)
            worker = psutil.Process(up.pids["worker-cognition"])
            until(partial(suspended_in_flight, worker, log), "calls in flight", 60)
            ports = {each.laddr.port for each in worker.net_connections()}
            dead = up.kill_child("worker-cognition")
            await wait_until_disconnected(up.addresses.postgres_url, ports)
            seen = len(calls_in(log))
            kills.append((seen, await durable_answers(up.addresses.postgres_url)))
            assert len(calls_in(log)) == seen, "the next worker began before the reading had ended"
            assert dead in {call["pid"] for call in calls_in(log)}
            up.wait_child("worker-cognition", other_than=dead)
        up.wait_child("worker-orchestration", other_than=up.kill_child("worker-orchestration"))
        assert wait_ended(client, batch_id) == "completed"

        classroom.assert_exact(client, batch_id)
        classroom.assert_events_exact(client, batch_id)
        for file_id in told:
            state = client.get(f"/v1/submissions/{file_id}/state")
            assert (state["stage"], state["external_events"]) == ("done", ["announced"])
        calls = calls_in(log)
        for number, (seen, durable) in enumerate(kills, start=1):
            begun_after = {answered(call) for call in calls[seen:] if call["event"] == "begun"}
            unfinished = {answered(call) for call in calls[:seen] if call["event"] == "begun"} - durable
            assert durable
            assert unfinished, f"kill {number} met nothing in flight, and proves little"
            assert not durable & begun_after, f"kill {number}: durable, and asked for again"
        assert len({call["pid"] for call in calls}) == len(KILLS_AT) + 1
        begun = Counter(call["key"] for call in calls if call["event"] == "begun")
        assert len(begun) == STUDENTS * len(OPEN)
        print(  # noqa: T201  figures, shown by -rP
            f"{begun.total()} calls for {len(begun)} answers; "
            f"durable at the kills: {[len(durable) for _, durable in kills]}; "
            f"most calls of one answer: {max(begun.values())}"
        )

"""The checkpointer: fenced by epoch, checksummed, plain data only."""

import asyncio
import logging
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from db.postgres.checkpoint_values import StoredValues
from db.postgres.checkpoints import FencedPostgresSaver
from db.postgres.grading import PostgresAssessments, PostgresSubmissions, PostgresThreads
from db.postgres.pool import Postgres
from domain.errors import CorruptCheckpoint, EpochSuperseded
from domain.exam import Exam
from tests.db.stage import RunningFile, a_start, an_assessment, running_file, waiting_for_a_lock

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def config(file: RunningFile, checkpoint_id: str | None = None) -> Any:
    known = {} if checkpoint_id is None else {"checkpoint_id": checkpoint_id}
    return {"configurable": {"thread_id": file.thread_id, "checkpoint_ns": "", **known}}


async def put(saver: FencedPostgresSaver, file: RunningFile, **values: Any) -> Any:
    """One checkpoint with these channels, all of them new."""
    checkpoint = empty_checkpoint()
    versions: dict[str, Any] = dict.fromkeys(values, checkpoint["id"])
    checkpoint["channel_values"] = values
    checkpoint["channel_versions"] = versions
    return await saver.aput(config(file), checkpoint, {"source": "loop", "step": 1}, versions)


async def rows(postgres: Postgres, file: RunningFile) -> dict[str, Any] | None:
    return await postgres.row(
        """SELECT (SELECT count(*) FROM checkpoints WHERE thread_id = %(id)s) AS checkpoints,
                  (SELECT count(*) FROM checkpoint_blobs WHERE thread_id = %(id)s) AS blobs,
                  (SELECT count(*) FROM checkpoint_writes WHERE thread_id = %(id)s) AS writes""",
        {"id": file.thread_id},
    )


async def test_a_checkpoint_comes_back_as_it_was_written(postgres: Postgres, exam: Exam) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    values = {"plan": ["q1", "q2"], "results": {"q1": {"points": 1.5, "评语": "好"}}, "stage": "grading"}
    stored = await put(saver, file, **values)
    await saver.aput_writes(stored, [("results", {"q2": [None, True, b"\x00"]})], "task-1")
    found = await saver.aget_tuple(config(file))
    assert found is not None
    assert found.checkpoint["channel_values"] == values
    assert found.pending_writes == [("task-1", "results", {"q2": [None, True, b"\x00"]})]


@pytest.mark.parametrize("special", [True, False])
async def test_a_superseded_epoch_writes_nothing(postgres: Postgres, exam: Exam, special: bool) -> None:
    file = await running_file(postgres, exam)
    old = FencedPostgresSaver(postgres.pool, file.epoch)
    stored = await put(old, file, results={"q1": 1})
    before = await rows(postgres, file)
    epoch = await PostgresThreads(postgres).begin(a_start(file.file_id, file.thread_id))
    assert epoch == file.epoch + 1
    with pytest.raises(EpochSuperseded):
        await put(old, file, results={"q1": 2}, more=[1], stage="late")
    # the two statements for writes: special channels are upserted, others inserted
    channel = "__error__" if special else "results"
    with pytest.raises(EpochSuperseded):
        await old.aput_writes(stored, [(channel, {"q1": 2}), (channel, {"q2": 2})], "task-1")
    with pytest.raises(EpochSuperseded):
        await old.adelete_thread(file.thread_id)
    with pytest.raises(EpochSuperseded):
        await PostgresSubmissions(postgres).propose(
            file.file_id, 1, file.thread_id, file.epoch, an_assessment(exam)
        )
    assert await rows(postgres, file) == before
    await put(FencedPostgresSaver(postgres.pool, epoch), file, results={"q1": 3})
    assert await rows(postgres, file) == {"checkpoints": 2, "blobs": 2, "writes": 0}


async def test_a_thread_that_was_never_begun_takes_no_checkpoint(postgres: Postgres) -> None:
    file = RunningFile("", "", "nobody's", 1)
    with pytest.raises(EpochSuperseded):
        await put(FencedPostgresSaver(postgres.pool, 1), file, results={"q1": 1})
    assert await rows(postgres, file) == {"checkpoints": 0, "blobs": 0, "writes": 0}


async def test_a_new_epoch_waits_for_a_fenced_write_under_way(postgres: Postgres, exam: Exam) -> None:
    file = await running_file(postgres, exam)
    async with postgres.transaction() as writing:
        await writing.execute("SELECT fenced_thread(%s, %s)", [file.thread_id, file.epoch])
        start = a_start(file.file_id, file.thread_id)
        beginning = asyncio.create_task(PostgresThreads(postgres).begin(start))
        await waiting_for_a_lock(postgres)
        assert not beginning.done()
    assert await beginning == file.epoch + 1


async def test_a_write_behind_a_new_epoch_waits_for_it_and_is_refused(postgres: Postgres, exam: Exam) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    async with postgres.transaction() as beginning:
        await beginning.execute(
            "UPDATE agent_threads SET epoch = epoch + 1 WHERE thread_id = %s", [file.thread_id]
        )
        writing = asyncio.create_task(put(saver, file, results={"q1": 1}))
        await waiting_for_a_lock(postgres)
    with pytest.raises(EpochSuperseded):
        await writing
    assert await rows(postgres, file) == {"checkpoints": 0, "blobs": 0, "writes": 0}


async def test_simultaneous_starts_take_different_epochs(postgres: Postgres, exam: Exam) -> None:
    file = await running_file(postgres, exam)
    start = a_start(file.file_id, file.thread_id)
    epochs = await asyncio.gather(*(PostgresThreads(postgres).begin(start) for _ in range(5)))
    assert sorted(each for each in epochs if each) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("table", ["checkpoint_blobs", "checkpoint_writes"])
@pytest.mark.parametrize(
    "damage",
    [
        "set_byte(blob, length(blob) - 1, get_byte(blob, length(blob) - 1) # 1)",
        "set_byte(blob, 0, get_byte(blob, 0) # 255)",
        "substring(blob FROM 1 FOR length(blob) - 1)",
        "substring(blob FROM 1 FOR 2)",
        "''::bytea",
        "blob || '\\x00'",
    ],
)
async def test_a_damaged_value_is_told_and_not_believed(
    postgres: Postgres, exam: Exam, table: str, damage: str
) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    stored = await put(saver, file, results={"q1": {"points": 1.5}})
    await saver.aput_writes(stored, [("results", {"q2": 1})], "task-1")
    damaging = f"UPDATE {table} SET blob = {damage} WHERE thread_id = %s"  # noqa: S608  # the cases above
    changed = await postgres.run(damaging, [file.thread_id])
    assert changed == 1
    with pytest.raises(CorruptCheckpoint):
        await saver.aget_tuple(config(file))


async def test_a_missing_value_is_not_taken_for_an_empty_one(postgres: Postgres, exam: Exam) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    await put(saver, file, results={"q1": 1})
    await postgres.run("UPDATE checkpoint_blobs SET blob = NULL WHERE thread_id = %s", [file.thread_id])
    with pytest.raises(CorruptCheckpoint):
        await saver.aget_tuple(config(file))


@settings(max_examples=100)
@given(value=PLAIN)
def test_plain_values_come_back_exactly(value: object) -> None:
    serializer = StoredValues(JsonPlusSerializer())
    assert serializer.loads_typed(serializer.dumps_typed(value)) == value


@settings(max_examples=100)
@given(value=PLAIN, data=st.data())
def test_one_flipped_bit_anywhere_is_noticed(value: object, data: st.DataObject) -> None:
    serializer = StoredValues(JsonPlusSerializer())
    kind, stored = serializer.dumps_typed(value)
    bit = data.draw(st.integers(0, 8 * len(stored) - 1))
    damaged = bytearray(stored)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptCheckpoint):
        serializer.loads_typed((kind, bytes(damaged)))


@dataclass
class Foreign:
    """A class that has no business in a checkpoint."""

    secret: str


async def test_a_foreign_class_never_comes_out_of_a_checkpoint(
    postgres: Postgres, exam: Exam, caplog: pytest.LogCaptureFixture
) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    await put(saver, file, results=Foreign("shh"))
    with caplog.at_level(logging.CRITICAL):
        found = await saver.aget_tuple(config(file))
    assert found is not None
    assert not isinstance(found.checkpoint["channel_values"]["results"], Foreign)


async def test_the_saver_is_strict_whatever_the_environment_says(postgres: Postgres) -> None:
    code = (
        "import asyncio, db.postgres.checkpoints as c\n"
        "from db.postgres.pool import open_pool\n"
        "async def main():\n"
        "    sizes = {'min_size': 0, 'max_size': 1, 'acquire_timeout_seconds': 1}\n"
        "    return c.FencedPostgresSaver(open_pool('', check_on_acquire=False, **sizes), 1).serde\n"
        "serde = asyncio.run(main())\n"
        "print(serde._serializer._allowed_msgpack_modules)\n"
    )
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"LANGGRAPH_STRICT_MSGPACK": "false", "PATH": "/usr/bin:/bin"},
    )
    assert ran.stdout.strip() == "None"


async def test_a_straggler_of_an_older_run_can_change_nothing_of_the_newer_one(
    postgres: Postgres, exam: Exam
) -> None:
    old = await running_file(postgres, exam)
    before = datetime.now(UTC)
    newer = a_start(old.file_id)
    epoch = await PostgresThreads(postgres).begin(newer)
    assert epoch == 1
    submissions, assessments = PostgresSubmissions(postgres), PostgresAssessments(postgres)
    await submissions.propose(old.file_id, 1, newer.thread_id, epoch, an_assessment(exam))
    with pytest.raises(EpochSuperseded):
        await submissions.propose(old.file_id, 1, old.thread_id, old.epoch, an_assessment(exam, share=0.0))
    with pytest.raises(EpochSuperseded):
        await put(FencedPostgresSaver(postgres.pool, old.epoch), old, results={"q1": 1})
    # nor does an attempt begin that was scheduled before
    late = replace(a_start(old.file_id, old.thread_id), scheduled_at=before)
    assert await PostgresThreads(postgres).begin(late) is None
    recorded = await assessments.record(old.file_id, 1, newer.thread_id)
    assert recorded.score == recorded.max_score


async def test_of_two_runs_that_begin_at_once_the_later_one_goes_on(postgres: Postgres, exam: Exam) -> None:
    threads, file = PostgresThreads(postgres), await running_file(postgres, exam)
    now = datetime.now(UTC)
    older = replace(a_start(file.file_id, file.thread_id), scheduled_at=now)
    newer = replace(a_start(file.file_id), scheduled_at=now + timedelta(seconds=1))
    epoch, old = await asyncio.gather(threads.begin(newer), threads.begin(older))
    # whichever came first, the newer run owns the file now and the older one owns nothing
    assert epoch == 1
    assert old in (None, 2)
    await put(
        FencedPostgresSaver(postgres.pool, 1), RunningFile("", file.file_id, newer.thread_id, 1), results={}
    )
    with pytest.raises(EpochSuperseded):
        await put(FencedPostgresSaver(postgres.pool, old or file.epoch), file, results={})


async def test_a_value_of_five_megabytes_is_compressed_and_comes_back(postgres: Postgres, exam: Exam) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    notes = ["光合作用 needs light. " * 10 + str(number) for number in range(25_000)]
    stored = await put(saver, file, notes=notes, stage="grading")
    found = await saver.aget_tuple(stored)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"notes": notes, "stage": "grading"}
    seen = await postgres.row("SELECT * FROM langgraph_checkpoints WHERE thread_id = %s", [file.thread_id])
    assert seen is not None
    assert seen["is_compressed"]
    assert not seen["is_delta"]
    assert 50_000 < seen["data_size_bytes"] < 1_000_000


async def test_a_long_string_stands_once_beside_the_checkpoints_that_have_it(
    postgres: Postgres, exam: Exam
) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    essay = "An essay. " * 100
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"essay": essay, "stage": "grading"}
    checkpoint["channel_versions"] = {"essay": "1", "stage": "1"}
    versions: Any = checkpoint["channel_versions"]
    first = await saver.aput(config(file), checkpoint, {"step": 1}, versions)
    second = {**checkpoint, "id": empty_checkpoint()["id"], "channel_versions": {"essay": "1", "stage": "2"}}
    last = await saver.aput(first, second, {"step": 2}, {"stage": "2"})
    found = await saver.aget_tuple(last)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"essay": essay, "stage": "grading"}
    inline = await postgres.rows(
        "SELECT checkpoint -> 'channel_values' AS inline FROM checkpoints WHERE thread_id = %s",
        [file.thread_id],
    )
    assert [each["inline"] for each in inline] == [{"stage": "grading"}] * 2
    assert await rows(postgres, file) == {"checkpoints": 2, "blobs": 1, "writes": 0}
    seen = await postgres.row(
        "SELECT is_delta, base_checkpoint_id FROM langgraph_checkpoints WHERE checkpoint_id = %s",
        [second["id"]],
    )
    assert seen == {"is_delta": True, "base_checkpoint_id": checkpoint["id"]}


async def test_deleting_a_run_keeps_the_values_that_another_runs_checkpoint_refers_to(
    postgres: Postgres, exam: Exam
) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    first = empty_checkpoint()
    first["channel_values"] = {"kept": [1], "lost": [1]}
    first["channel_versions"] = {"kept": "1", "lost": "1"}
    before = await saver.aput(config(file), first, {"run_id": "one"}, {"kept": "1", "lost": "1"})
    second = {**first, "id": empty_checkpoint()["id"], "channel_values": {"kept": [1], "lost": [2]}}
    second["channel_versions"] = {"kept": "1", "lost": "2"}
    after = await saver.aput(before, second, {"run_id": "two"}, {"lost": "2"})
    await saver.adelete_for_runs(["one"])
    assert await saver.aget_tuple(before) is None
    found = await saver.aget_tuple(after)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"kept": [1], "lost": [2]}
    assert await rows(postgres, file) == {"checkpoints": 1, "blobs": 2, "writes": 0}


async def test_only_the_owner_of_a_thread_deletes_its_runs_and_copies_into_it(
    postgres: Postgres, exam: Exam
) -> None:
    file = await running_file(postgres, exam)
    saver = FencedPostgresSaver(postgres.pool, file.epoch)
    await saver.aput(config(file), empty_checkpoint(), {"run_id": "one"}, {})
    before = await rows(postgres, file)
    stranger = FencedPostgresSaver(postgres.pool, file.epoch + 1)
    with pytest.raises(EpochSuperseded):
        await stranger.adelete_for_runs(["one"])
    with pytest.raises(EpochSuperseded):
        await stranger.acopy_thread(file.thread_id, file.thread_id)
    assert await rows(postgres, file) == before

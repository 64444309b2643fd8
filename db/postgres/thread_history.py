"""What agents' threads were: every retained checkpoint listed and read, without LangGraph (G2.6).

Reads the tables that `db/postgres/checkpoints.py` writes. Values are decoded to plain data only: no
stored bytes ever make an object of a class.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ormsgpack
from psycopg.rows import DictRow

from db.postgres.checkpoint_values import unsealed
from db.postgres.pool import Postgres
from domain.errors import CorruptCheckpoint, NotFound
from domain.threads import PendingWrite, SavedCheckpoint, SavedState

#: LangGraph's own channels: the input, the tasks of the next step, and the edges to its nodes
_START, _TASKS, _EDGE = "__start__", "__pregel_tasks", "branch:to:"
#: how LangGraph writes a `Send`, as (module, class, arguments), and a snapshot of increments
_POSITIONAL, _SNAPSHOT = 1, 7
_MSGPACK = ormsgpack.OPT_NON_STR_KEYS

THREADS_SQL = (
    "SELECT thread_id, generation, forked_thread_id, forked_checkpoint_id FROM agent_threads "
    "WHERE file_id = %s ORDER BY created_at DESC"
)
# the view is asked by constant ids: a join would make it compute every thread there is
CHECKPOINTS_SQL = """
SELECT c.thread_id, c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint, b.type AS tasks_type, b.blob AS tasks,
       l.step, l.created_at, l.data_size_bytes, l.is_delta, l.is_compressed, l.base_checkpoint_id
FROM checkpoints c
JOIN langgraph_checkpoints l USING (thread_id, checkpoint_ns, checkpoint_id)
LEFT JOIN checkpoint_blobs b ON (b.thread_id, b.checkpoint_ns, b.channel) = (c.thread_id, '', '__pregel_tasks')
    AND c.checkpoint -> 'updated_channels' ? b.channel AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version
WHERE c.thread_id = ANY(%(thread_ids)s) AND c.checkpoint_ns = '' AND l.thread_id = ANY(%(thread_ids)s)
"""
VALUES_SQL = """
SELECT b.channel, b.type, b.blob FROM checkpoints c, jsonb_each_text(c.checkpoint -> 'channel_versions') v
JOIN checkpoint_blobs b ON (b.channel, b.version) = (v.key, v.value)
WHERE (c.thread_id, c.checkpoint_ns, c.checkpoint_id) = (%(thread_id)s, '', %(checkpoint_id)s)
  AND (b.thread_id, b.checkpoint_ns) = (%(thread_id)s, '')
"""
WRITES_SQL = """
SELECT task_id, channel, type, blob FROM checkpoint_writes
WHERE (thread_id, checkpoint_ns, checkpoint_id) = (%(thread_id)s, '', %(checkpoint_id)s) ORDER BY task_path, task_id, idx
"""


class PostgresThreadHistory:
    """The checkpoints of a file's threads."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def checkpoints(self, file_id: str) -> list[SavedCheckpoint]:
        """Those of all threads of the file, the newest thread's newest first."""
        return [_summary(row) for row in await self._rows(file_id)]

    async def read(
        self, file_id: str, checkpoint_id: str, thread_id: str | None = None
    ) -> tuple[SavedCheckpoint, SavedState]:
        """One of them with its state as saved; raises `NotFound` for a pruned or unknown one."""
        for row in await self._rows(file_id):
            if row["checkpoint_id"] == checkpoint_id and thread_id in (None, row["thread_id"]):
                return _summary(row), await self._state(row)
        raise NotFound(
            f"Submission {file_id} has no checkpoint {checkpoint_id}: it never had, or it has been pruned.",
            field="checkpoint_id",
        )

    async def _rows(self, file_id: str) -> list[DictRow]:
        """The checkpoints with the generation of their thread and the nodes before and after them."""
        threads = await self._postgres.rows(THREADS_SQL, [file_id])
        order = {row["thread_id"]: place for place, row in enumerate(threads)}
        of_thread = {row.pop("thread_id"): row for row in threads}
        rows = await self._postgres.rows(CHECKPOINTS_SQL, {"thread_ids": list(order)})
        next_nodes = {(row["thread_id"], row["checkpoint_id"]): following(row) for row in rows}
        for row in rows:
            row.update(of_thread[row["thread_id"]])
            row["next_nodes"] = next_nodes[row["thread_id"], row["checkpoint_id"]]
            row["nodes"] = next_nodes.get((row["thread_id"], row["parent_checkpoint_id"]), ())
        newest_first = sorted(rows, key=lambda row: row["checkpoint_id"], reverse=True)
        return sorted(newest_first, key=lambda row: order[row["thread_id"]])

    async def _state(self, row: DictRow) -> SavedState:
        place = {"thread_id": row["thread_id"], "checkpoint_id": row["checkpoint_id"]}
        beside = await self._postgres.rows(VALUES_SQL, place)
        writes = await self._postgres.rows(WRITES_SQL, place)
        # tens of milliseconds for a state of some megabytes
        return await asyncio.to_thread(_decoded, row["checkpoint"]["channel_values"], beside, writes)


def following(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The nodes that run after a checkpoint, of its row with its tasks; none after the last one."""
    checkpoint = row["checkpoint"]
    if _START in (checkpoint.get("updated_channels") or ()):
        return (_START,)
    pulled = {name.removeprefix(_EDGE) for name in checkpoint["channel_values"] if name.startswith(_EDGE)}
    try:
        pushed = set(_sent_to(row["tasks_type"], row["tasks"]))
    except CorruptCheckpoint:
        pushed = set()  # the state says so to whoever reads it
    return tuple(sorted(pulled | pushed))


def _sent_to(type_: str | None, tasks: bytes | None) -> Iterator[str]:
    if type_ is not None and tasks is not None:
        for module, name, arguments in _decode(type_, tasks, tasks=True):
            if (module, name) == ("langgraph.types", "Send"):
                yield arguments[0]


def _summary(row: Mapping[str, Any]) -> SavedCheckpoint:
    same = SavedCheckpoint.__dataclass_fields__.keys() - {"nodes", "next_nodes"}
    return SavedCheckpoint(
        nodes=row["nodes"], next_nodes=row["next_nodes"], **{name: row[name] for name in same}
    )


def _decoded(inline: Mapping[str, Any], beside: Sequence[DictRow], writes: Sequence[DictRow]) -> SavedState:
    stored = {row["channel"] for row in beside}
    # what stands beside the checkpoint has a mark in it at the most
    values = {name: value for name, value in inline.items() if _is_state(name) and name not in stored}
    unreadable: dict[str, str] = {}
    for row in beside:
        if _is_state(row["channel"]):
            try:
                values[row["channel"]] = _decode(row["type"], row["blob"])
            except CorruptCheckpoint as error:
                unreadable[row["channel"]] = error.message
    return SavedState(values, tuple(_pending(writes, unreadable)), unreadable)


def _pending(writes: Sequence[DictRow], unreadable: dict[str, str]) -> Iterator[PendingWrite]:
    for row in writes:
        if _is_state(row["channel"]):
            try:
                yield PendingWrite(row["task_id"], row["channel"], _decode(row["type"], row["blob"]))
            except CorruptCheckpoint as error:
                unreadable[f"{row['channel']} of task {row['task_id']}"] = error.message


def _is_state(channel: str) -> bool:
    return not channel.startswith(("__", _EDGE))


def _decode(type_: str, stored: bytes, *, tasks: bool = False) -> Any:
    """The value as plain data; raises `CorruptCheckpoint` for what is damaged or none."""
    type_, content = unsealed(type_, stored)
    if type_ == "null":
        return None
    if type_ != "msgpack":
        raise CorruptCheckpoint(f"A stored {type_} value is no plain data.")
    try:
        value = ormsgpack.unpackb(content, ext_hook=_task if tasks else _plain, option=_MSGPACK)
        json.dumps(value)  # it is told as JSON, which has no bytes
    except (TypeError, ValueError) as error:
        raise CorruptCheckpoint(f"A stored {type_} value is no plain data.") from error
    return value


def _plain(code: int, data: bytes) -> Any:
    if code == _SNAPSHOT:
        return ormsgpack.unpackb(data, ext_hook=_plain, option=_MSGPACK)
    raise ValueError(f"extension type {code} is no plain data")


def _task(code: int, data: bytes) -> Any:
    """A task's description: names and arguments, of which no object is made."""
    if code == _POSITIONAL:
        return ormsgpack.unpackb(data, ext_hook=_plain, option=_MSGPACK)
    return _plain(code, data)

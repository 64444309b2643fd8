"""The checkpointer: LangGraph's Postgres saver with a fence, in one round trip a save (G2.5).

What it adds to the stock saver: only the attempt that owns a thread may write; a save is one statement and
is tried again; large strings stand beside the checkpoint and not in every one; threads can be copied, and
deleted by run. Channels are versioned: a checkpoint stores those that changed and refers to the others.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.postgres import base
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from psycopg import AsyncCursor
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from db.postgres.checkpoint_values import StoredValues
from db.postgres.pool import Pool, translated_errors
from domain.errors import CheckpointNotSaved, CorruptCheckpoint, PostgresUnavailable

#: waits before a save is tried again: three times, and then a human should look (G2.7)
RETRY_SECONDS = (0.5, 2.0, 8.0)
#: a longer string is stored once, beside the checkpoints that have it
MAX_INLINE_CHARACTERS = 256

# `MATERIALIZED`: once for all rows of the statement
FENCE = "own AS MATERIALIZED (SELECT fenced_thread(%(thread_id)s, %(epoch)s) AS thread_id)"
PUT_SQL = f"""
WITH {FENCE}, stored AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT own.thread_id, %(namespace)s, each.*
    FROM own, unnest(%(channels)s::text[], %(versions)s::text[], %(types)s::text[], %(blobs)s::bytea[]) each
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
)
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT own.thread_id, %(namespace)s, %(checkpoint_id)s, %(parent_id)s, %(checkpoint)s, %(metadata)s FROM own
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) DO UPDATE
SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
"""
PUT_WRITES_SQL = f"""
WITH {FENCE}
INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
SELECT own.thread_id, %(namespace)s, %(checkpoint_id)s, %(task_id)s, %(task_path)s, each.*
FROM own, unnest(%(numbers)s::integer[], %(channels)s::text[], %(types)s::text[], %(blobs)s::bytea[]) each
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO NOTHING
"""
# an error or an interrupt of a task replaces the one before
REPLACE_WRITES_SQL = PUT_WRITES_SQL.replace(
    "DO NOTHING", "DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob"
)
FENCE_SQL = "SELECT fenced_thread(%s, %s)"
COPY_THREAD_SQL = f"""
WITH {FENCE}, checkpoints_copied AS (
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT own.thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM own, checkpoints c WHERE c.thread_id = %(source)s ON CONFLICT DO NOTHING
), blobs_copied AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT own.thread_id, checkpoint_ns, channel, version, type, blob
    FROM own, checkpoint_blobs b WHERE b.thread_id = %(source)s ON CONFLICT DO NOTHING
)
INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
SELECT own.thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
FROM own, checkpoint_writes w WHERE w.thread_id = %(source)s ON CONFLICT DO NOTHING
"""
# the fence stands where every row passes it; values that no other checkpoint of the thread refers to go as well
DELETE_RUNS_SQL = """
WITH gone AS (
    DELETE FROM checkpoints WHERE metadata ->> 'run_id' = ANY(%(run_ids)s)
    RETURNING fenced_thread(thread_id, %(epoch)s) AS thread_id, checkpoint_ns, checkpoint_id,
              checkpoint -> 'channel_versions' AS versions
), writes_gone AS (
    DELETE FROM checkpoint_writes w USING gone
    WHERE (w.thread_id, w.checkpoint_ns, w.checkpoint_id) = (gone.thread_id, gone.checkpoint_ns, gone.checkpoint_id)
)
DELETE FROM checkpoint_blobs b USING gone, jsonb_each_text(gone.versions) v
WHERE (b.thread_id, b.checkpoint_ns, b.channel, b.version) = (gone.thread_id, gone.checkpoint_ns, v.key, v.value)
  AND NOT EXISTS (
    SELECT FROM checkpoints c WHERE c.thread_id = b.thread_id AND c.checkpoint_ns = b.checkpoint_ns
      AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version
      AND COALESCE(c.metadata ->> 'run_id', '') <> ALL(%(run_ids)s))
"""


class FencedPostgresSaver(AsyncPostgresSaver):
    """A saver for one run over the shared pool, writing only while its epoch is the thread's newest.

    One for each run: a shared saver holds one lock over all (5.4 s against 1.1 s for 100 runs).
    Raises `EpochSuperseded` where the stock saver would overwrite a newer attempt's work, and
    `CheckpointNotSaved` when a save has failed three times more.
    """

    def __init__(self, pool: Pool, epoch: int, *, retry_seconds: Sequence[float] = RETRY_SECONDS) -> None:
        # no classes but LangGraph's own, whatever LANGGRAPH_STRICT_MSGPACK says
        serializer = JsonPlusSerializer(allowed_msgpack_modules=None)
        super().__init__(conn=pool, serde=StoredValues(serializer))
        self._epoch = epoch
        self._retry_seconds = retry_seconds

    # --- saving ---

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Save the checkpoint with the channels that changed, in one statement."""
        configurable = config["configurable"]
        thread_id, namespace = configurable["thread_id"], configurable["checkpoint_ns"]
        inline, beside = _apart(checkpoint["channel_values"])
        changed = {name: version for name, version in new_versions.items() if name in beside}
        blobs = await asyncio.to_thread(self._dump_blobs, thread_id, namespace, beside, changed)
        await self._save(
            PUT_SQL,
            {
                "thread_id": thread_id,
                "namespace": namespace,
                "checkpoint_id": checkpoint["id"],
                "parent_id": configurable.get("checkpoint_id"),
                "checkpoint": Jsonb({**checkpoint, "channel_values": inline}),
                "metadata": Jsonb(get_serializable_checkpoint_metadata(config, metadata)),
                **_columns(("channels", "versions", "types", "blobs"), [each[2:] for each in blobs]),
            },
        )
        saved = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint["id"]}
        return {"configurable": saved}

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Save what a task wrote, in one statement."""
        configurable = config["configurable"]
        place = (configurable["thread_id"], configurable["checkpoint_ns"], configurable["checkpoint_id"])
        rows = await asyncio.to_thread(self._dump_writes, *place, task_id, task_path, writes)
        replaced = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        await self._save(
            REPLACE_WRITES_SQL if replaced else PUT_WRITES_SQL,
            {
                **dict(zip(("thread_id", "namespace", "checkpoint_id"), place, strict=True)),
                "task_id": task_id,
                "task_path": task_path,
                **_columns(("numbers", "channels", "types", "blobs"), [each[5:] for each in rows]),
            },
        )

    def get_next_version(self, current: str | None, channel: None) -> str:
        """The version after: 15 characters where the stock saver takes 50, twice a channel and checkpoint.

        Ordered as text; the random part tells two forks of one checkpoint apart.
        """
        number = 0 if current is None else int(str(current).partition(".")[0], 16)
        return f"{number + 1:06x}.{random.getrandbits(32):08x}"  # tells apart, hides nothing

    # --- reading ---

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint; raises `CorruptCheckpoint` for one that cannot be read back."""
        try:
            return await super().aget_tuple(config)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCheckpoint(f"The checkpoint cannot be read: {error!r}") from error

    # --- threads ---

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete the thread's checkpoints; raises `EpochSuperseded` if a newer attempt owns them."""
        async with self._cursor() as cursor, cursor.connection.transaction():
            await cursor.execute(FENCE_SQL, [thread_id, self._epoch])
            for sql in base.PRUNE_DELETE_THREADS_SQL:
                await cursor.execute(sql, [[thread_id]])

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints and writes; the target is the one that this saver's epoch owns."""
        await self._save(COPY_THREAD_SQL, {"thread_id": target_thread_id, "source": source_thread_id})

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete what these runs have saved; raises `EpochSuperseded` for threads of newer attempts."""
        if run_ids:
            await self._save(DELETE_RUNS_SQL, {"run_ids": list(run_ids)})

    # --- the inside ---

    async def _save(self, sql: str, parameters: dict[str, Any]) -> None:
        await tried_again(lambda: self._execute(sql, parameters), self._retry_seconds)

    async def _execute(self, sql: str, parameters: dict[str, Any]) -> None:
        async with self._cursor() as cursor:
            await cursor.execute(sql, {**parameters, "epoch": self._epoch})

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        with translated_errors():
            async with super()._cursor(pipeline=pipeline) as cursor:
                yield cursor


async def tried_again(save: Callable[[], Awaitable[None]], retry_seconds: Sequence[float]) -> None:
    """Save, again after each of these waits while Postgres does not answer; raises `CheckpointNotSaved`."""
    for wait in retry_seconds:
        try:
            return await save()
        except PostgresUnavailable as error:
            structlog.get_logger("assay.agents").warning("checkpoint_not_saved_yet", code=error.code)
        await asyncio.sleep(wait)
    try:
        return await save()
    except PostgresUnavailable as error:
        message = f"A checkpoint could not be saved in {len(retry_seconds) + 1} tries: {error.message}"
        raise CheckpointNotSaved(message) from error


def _apart(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in the checkpoint itself, and what beside it, by version."""
    beside = {name: value for name, value in values.items() if not _is_small(value)}
    inline = {name: value for name, value in values.items() if name not in beside}
    # the mark that the stock saver's history of increments looks for
    inline |= {name: True for name, value in beside.items() if isinstance(value, _DeltaSnapshot)}
    return inline, beside


def _is_small(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_INLINE_CHARACTERS
    return value is None or isinstance(value, (int, float, bool))


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """The rows turned, a list a column."""
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}

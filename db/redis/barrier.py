"""The batch's set of finished files (B4): idempotent under any repetition and order."""

from collections.abc import Sequence

from db.redis.connection import RedisLink

BARRIER_SECONDS = 24 * 3600


def barrier_key(batch_id: str) -> str:
    """Where the set is."""
    return f"batch:{batch_id}:processed_files"


class RedisBarrier:
    """SADD and SCARD: fast, and never the truth."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def arrive(self, batch_id: str, file_id: str) -> int:
        """1 for a file's first arrival, 0 for a repetition; raises `RedisUnavailable`."""
        return await self._add(batch_id, [file_id])

    async def count(self, batch_id: str) -> int:
        """How many have arrived; raises `RedisUnavailable`."""
        with self._link.use() as client:
            return int(await client.scard(barrier_key(batch_id)))

    async def rebuild(self, batch_id: str, file_ids: Sequence[str]) -> int:
        """Put in what Postgres knows; answers the count."""
        for first in range(0, len(file_ids), 1000):
            await self._add(batch_id, file_ids[first : first + 1000])
        return await self.count(batch_id)

    async def withdraw(self, batch_id: str, file_ids: Sequence[str]) -> None:
        """Take out files that are assessed anew; raises `RedisUnavailable`."""
        if file_ids:
            with self._link.use() as client:
                await client.srem(barrier_key(batch_id), *file_ids)

    async def _add(self, batch_id: str, file_ids: Sequence[str]) -> int:
        key = barrier_key(batch_id)
        with self._link.use() as client:
            async with client.pipeline(transaction=True) as pipeline:
                pipeline.sadd(key, *file_ids)
                pipeline.expire(key, BARRIER_SECONDS)
                added, _ = await pipeline.execute()
        return int(added)

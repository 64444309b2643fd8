"""Hot results and reports; absence is never an error, and Postgres has the truth."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from db.redis.connection import GONE_OR_REFUSED, RedisLink

RESULT_SECONDS = 3600
REPORT_SECONDS = 600

#: a rebuild that took longer than its lease must not replace a newer one's
WRITE_FENCED = """
local newest = redis.call('GET', KEYS[2])
if newest and tonumber(newest) > tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


def result_key(submission_id: str, question_id: str) -> str:
    """Where the result of one question is cached."""
    return f"hot_cache:grading_result:{submission_id}:{question_id}"


def report_key(batch_id: str) -> str:
    """Where a batch's report is cached."""
    return f"report:{batch_id}"


def report_fence_key(batch_id: str) -> str:
    """Where the fence is with which it was last rebuilt; it outlives the report, not its own time."""
    return f"report:{batch_id}:fence"


class RedisResultCache:
    """Hot results of one submission (G3.5)."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def write(self, submission_id: str, results: Sequence[Mapping[str, Any]]) -> None:
        """Cache each question's result for an hour; raises `RedisUnavailable` or the driver's refusal."""
        with self._link.use() as client:
            async with client.pipeline(transaction=True) as pipeline:
                for result in results:
                    key = result_key(submission_id, result["question_id"])
                    pipeline.set(key, json.dumps(result, ensure_ascii=False), ex=RESULT_SECONDS)
                await pipeline.execute()

    async def read(self, submission_id: str, question_ids: Sequence[str]) -> list[dict[str, Any]] | None:
        """All of them, or `None` if one is missing or Redis is gone."""
        if not question_ids:
            return None
        try:
            with self._link.use() as client:
                found = await client.mget([result_key(submission_id, each) for each in question_ids])
        except GONE_OR_REFUSED:
            return None
        results = [json.loads(each) for each in found if each is not None]
        return results if len(results) == len(question_ids) else None

    async def forget(self, submission_id: str, question_ids: Sequence[str]) -> None:
        """Drop them; raises `RedisUnavailable`."""
        if question_ids:
            with self._link.use() as client:
                await client.delete(*(result_key(submission_id, each) for each in question_ids))


class RedisReportCache:
    """Reports for ten minutes."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._write_fenced = link.client.register_script(WRITE_FENCED)
        self._log = structlog.get_logger("assay.cache")

    async def read(self, batch_id: str) -> dict[str, Any] | None:
        """The cached report, or `None` (also when Redis is gone)."""
        try:
            with self._link.use() as client:
                text = await client.get(report_key(batch_id))
        except GONE_OR_REFUSED:
            return None
        return None if text is None else json.loads(text)

    async def write(self, batch_id: str, report: Mapping[str, Any], *, fence: int | None = None) -> None:
        """Cache the report, if that is possible; with a fence only where none is that had a newer one."""
        text = json.dumps(report, ensure_ascii=False)
        try:
            with self._link.use() as client:
                if fence is None:
                    await client.set(report_key(batch_id), text, ex=REPORT_SECONDS)
                else:
                    keys = [report_key(batch_id), report_fence_key(batch_id)]
                    await self._write_fenced(keys, [text, REPORT_SECONDS, fence], client)
        except GONE_OR_REFUSED as error:
            self._log.info("report_not_cached", batch_id=batch_id, reason=type(error).__name__)

    async def forget(self, batch_id: str) -> None:
        """Drop the cached report, if that is possible."""
        try:
            with self._link.use() as client:
                await client.delete(report_key(batch_id))
        except GONE_OR_REFUSED as error:
            # it expires by itself; a report is cached for final batches only
            self._log.info("report_not_forgotten", batch_id=batch_id, reason=type(error).__name__)

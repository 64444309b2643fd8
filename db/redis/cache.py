"""Hot results and reports; absence is never an error, and Postgres has the truth."""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from db.redis.connection import GONE_OR_REFUSED, RedisLink

RESULT_SECONDS = 3600
REPORT_SECONDS = 600

#: a mark outlives every entry that has it
MARK_SECONDS = 2 * RESULT_SECONDS
_MARK_BYTES = 8

WRITE_MARKED = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for n = 2, #KEYS do redis.call('SET', KEYS[n], ARGV[n + 1], 'EX', ARGV[2]) end
return 1
"""
#: a rebuild that took longer than its lease must not replace a newer one's, nor one what was forgotten meanwhile
WRITE_FENCED = """
if redis.call('GET', KEYS[3]) ~= ARGV[4] then return 0 end
if ARGV[3] ~= '' then
    local newest = redis.call('GET', KEYS[2])
    if newest and tonumber(newest) > tonumber(ARGV[3]) then return 0 end
    redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


def result_key(submission_id: str, question_id: str) -> str:
    """Where the result of one question is cached."""
    return f"hot_cache:grading_result:{submission_id}:{question_id}"


def result_mark_key(submission_id: str) -> str:
    """Where the mark is that the submission's entries must have to be believed."""
    return f"hot_cache:grading_results_mark:{submission_id}"


def report_key(batch_id: str) -> str:
    """Where a batch's report is cached."""
    return f"report:{batch_id}"


def report_fence_key(batch_id: str) -> str:
    """Where the fence is with which it was last rebuilt; it outlives the report, not its own time."""
    return f"report:{batch_id}:fence"


def report_mark_key(batch_id: str) -> str:
    """Where the mark is that a rebuilt report must have been begun with."""
    return f"report:{batch_id}:mark"


class RedisResultCache:
    """Hot results of one submission (G3.5): those of its newest mark, and no older ones.

    Whoever is about to change results or to cache them takes a mark first, which voids all others': a late
    writer of an earlier generation writes nothing that anybody believes.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._write_marked = link.client.register_script(WRITE_MARKED)

    async def mark(self, submission_id: str) -> str:
        """Void what is cached, and what others are about to cache; raises as `write`.

        Results are read between this and `write`: then they are no older than what they replace.
        """
        mark = secrets.token_hex(_MARK_BYTES)
        with self._link.use() as client:
            await client.set(result_mark_key(submission_id), mark, ex=MARK_SECONDS)
        return mark

    async def write(self, submission_id: str, results: Sequence[Mapping[str, Any]], mark: str) -> None:
        """Cache each question's result for an hour, if the mark is still the newest.

        Raises `RedisUnavailable` or the driver's refusal.
        """
        keys = [result_key(submission_id, each["question_id"]) for each in results]
        texts = [json.dumps({"mark": mark, "result": each}, ensure_ascii=False) for each in results]
        with self._link.use() as client:
            arguments: list[str | int] = [mark, RESULT_SECONDS, *texts]
            await self._write_marked([result_mark_key(submission_id), *keys], arguments, client)

    async def read(self, submission_id: str, question_ids: Sequence[str]) -> list[dict[str, Any]] | None:
        """All of them, or `None` if one is missing or void, or Redis is gone."""
        if not question_ids:
            return None
        keys = [result_key(submission_id, each) for each in question_ids]
        try:
            with self._link.use() as client:
                mark, *found = await client.mget([result_mark_key(submission_id), *keys])
        except GONE_OR_REFUSED:
            return None
        entries = [json.loads(each) for each in found if each is not None]
        results = [each["result"] for each in entries if each["mark"] == mark]
        return results if len(results) == len(question_ids) else None

    async def forget(self, submission_id: str) -> None:
        """Void what is cached, and what is about to be; raises `RedisUnavailable`."""
        with self._link.use() as client:
            # the entries go by themselves, and without their mark nobody believes them; a full server deletes, too
            await client.delete(result_mark_key(submission_id))


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

    async def newest_mark(self, batch_id: str) -> str | None:
        """The mark that is valid now; `None` where none is, or Redis is gone.

        A copy of a report that was read after its mark is as new as the cached one for as long as this is it.
        """
        try:
            mark: str | None = await self._link.ask("GET", report_mark_key(batch_id))
        except GONE_OR_REFUSED:
            return None
        return mark

    async def mark(self, batch_id: str) -> str | None:
        """What a report is written with that is read from now on; `None` when Redis is gone."""
        key, mark = report_mark_key(batch_id), secrets.token_hex(_MARK_BYTES)
        try:
            with self._link.use() as client:
                # answers the mark that was there
                known = await client.set(key, mark, ex=MARK_SECONDS, nx=True, get=True)
        except GONE_OR_REFUSED:
            return None
        return str(known) if known else mark

    async def write(
        self, batch_id: str, report: Mapping[str, Any], *, mark: str | None, fence: int | None = None
    ) -> None:
        """Cache the report, if that is possible and it was not forgotten since the mark was taken.

        With a fence only where none is that had a newer one.
        """
        if mark is None:
            return
        keys = [report_key(batch_id), report_fence_key(batch_id), report_mark_key(batch_id)]
        text = json.dumps(report, ensure_ascii=False)
        try:
            with self._link.use() as client:
                await self._write_fenced(
                    keys, [text, REPORT_SECONDS, "" if fence is None else fence, mark], client
                )
        except GONE_OR_REFUSED as error:
            self._log.info("report_not_cached", batch_id=batch_id, reason=type(error).__name__)

    async def forget(self, batch_id: str) -> None:
        """Drop the cached report, if that is possible; one that is being rebuilt now is not cached."""
        try:
            with self._link.use() as client:
                await client.delete(report_key(batch_id), report_mark_key(batch_id))
        except GONE_OR_REFUSED as error:
            # it expires by itself; a report is cached for final batches only
            self._log.info("report_not_forgotten", batch_id=batch_id, reason=type(error).__name__)

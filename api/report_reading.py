"""Reading reports: as written before, from the cache, or from Postgres, which one asks for all (B8)."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from domain.batch import BatchKind
from domain.errors import LockTimeout, NotFound
from domain.states import BATCH_MACHINE

if TYPE_CHECKING:
    from api.dependencies import Services
    from domain.diagnosis import DiagnosisReports
    from domain.ports import Results

Report = Mapping[str, Any]

#: for a rebuild in another process
REBUILD_WAIT_SECONDS = 10.0
#: written reports that one process keeps
MAX_WRITTEN_BYTES = 64 * 1024**2
#: after that the cache is asked again, whose reports expire
WRITTEN_SECONDS = 60.0

#: what every report of a kind has; an older version of this program may have cached one with less
_COMMON = frozenset({"batch", "counts", "total_files", "failures", "usage", "timing"})
PARTS: Mapping[str, frozenset[str]] = {
    BatchKind.GRADING: _COMMON
    | {
        "needs_review",
        "advisory",
        "scores",
        "distribution",
        "questions",
        "criteria_hardest_first",
        "confidence",
        "review_reasons",
        "review_queue",
        "submissions",
    },
    BatchKind.DIAGNOSIS: _COMMON
    | {"diagnosis", "summary", "baseline", "anomalies", "templates", "vehicles", "timeline", "files"},
}


@dataclass(frozen=True)
class WrittenReport:
    """A report as it is answered."""

    body: bytes
    media_type: str
    headers: Mapping[str, str]


class WrittenReports:
    """Written reports of this process, the least recently read dropped first.

    A copy counts only as long as its mark is the report's newest in Redis: whatever changes a batch takes the
    mark away, and so every process's copies.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._copies: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    def has(self, batch_id: str, form: str) -> bool:
        """Whether it is worth asking for."""
        return (batch_id, form) in self._copies

    def find(self, key: tuple[str, str, str], mark: str | None) -> WrittenReport | None:
        """The copy of that tenant, batch and form, if it has that mark."""
        tenant_id, batch_id, form = key
        place = (batch_id, form)
        copy = self._copies.get(place)
        if copy is None or copy.tenant_id != tenant_id:
            return None
        if copy.mark != mark or self._clock() >= copy.until:
            self._drop(place)
            return None
        self._copies.move_to_end(place)
        return copy.written

    def keep(self, key: tuple[str, str, str], mark: str, written: WrittenReport) -> None:
        """Keep a report that was read after its mark was."""
        tenant_id, batch_id, form = key
        if len(written.body) > MAX_WRITTEN_BYTES // 8:
            return
        self._drop((batch_id, form))
        self._copies[batch_id, form] = _Kept(tenant_id, mark, self._clock() + WRITTEN_SECONDS, written)
        self._bytes += len(written.body)
        while self._bytes > MAX_WRITTEN_BYTES:
            self._drop(next(iter(self._copies)))

    def _drop(self, place: tuple[str, str]) -> None:
        copy = self._copies.pop(place, None)
        if copy is not None:
            self._bytes -= len(copy.written.body)


@dataclass(frozen=True)
class _Kept:
    tenant_id: str
    mark: str
    until: float
    written: WrittenReport


async def written_report(
    services: "Services",
    key: tuple[str, str, str],
    mark: str | None,
    write: Callable[[Report], WrittenReport],
) -> WrittenReport:
    """The report written once for all who ask for it at the same time; raises `NotFound`.

    `key` is tenant, batch and form; `mark` the report's newest, read before: what is read now is no older.
    """
    copy = services.written_reports.find(key, mark)
    if copy is not None:
        return copy
    tenant_id, batch_id, _ = key

    async def made() -> WrittenReport:
        report = await read_report(services, tenant_id, batch_id, mark)
        # a batch of thousands takes long enough to write that other requests would wait for it
        written = await asyncio.to_thread(write, report)
        if mark is not None and report["batch"]["status"] in BATCH_MACHINE.final:
            services.written_reports.keep(key, mark, written)
        return written

    return await services.report_writings.run((*key, mark), made)


async def read_report(services: "Services", tenant_id: str, batch_id: str, mark: str | None = None) -> Report:
    """The report, from the cache if the batch is final and it is there; raises `NotFound`.

    Only those share a reading who have seen the same mark before.
    """
    # the tenant is part of the key: nobody shares the flight of a batch that is not theirs
    return await services.reports.run(
        (tenant_id, batch_id, mark), lambda: _find(services, tenant_id, batch_id)
    )


async def _find(services: "Services", tenant_id: str, batch_id: str) -> Report:
    cached = await _cached(services, tenant_id, batch_id)
    if cached is not None:
        return cached
    try:
        final = await _rebuilt(services, tenant_id, batch_id)
    except LockTimeout:
        # the lock saves work, and nobody's answer depends on it
        final = None
    return final or await _source(services, await _kind(services, tenant_id, batch_id)).report(
        tenant_id, batch_id
    )


async def _rebuilt(services: "Services", tenant_id: str, batch_id: str) -> Report | None:
    """The report of a final batch, which one process computes for all (G3.1); `None` while the batch runs."""
    async with services.locks.held("report", batch_id, wait_seconds=REBUILD_WAIT_SECONDS) as lease:
        # whoever waited finds what was rebuilt meanwhile
        cached = await _cached(services, tenant_id, batch_id)
        if cached is not None:
            return cached
        mark = await services.report_cache.mark(batch_id)
        batch = await services.batches.read(tenant_id, batch_id)
        # what a running batch says is old in a moment
        if batch.state not in BATCH_MACHINE.final:
            return None
        report = await _source(services, batch.opening.kind).report(tenant_id, batch_id)
        await services.report_cache.write(batch_id, report, mark=mark, fence=lease.fence)
        return report


async def _cached(services: "Services", tenant_id: str, batch_id: str) -> Report | None:
    report = await services.report_cache.read(batch_id)
    if report is None or not report.keys() >= PARTS.get(report["batch"].get("kind"), _COMMON):
        return None
    if report["batch"]["tenant_id"] != tenant_id:
        raise NotFound(f"There is no batch {batch_id}.", field="batch_id")
    return report


async def _kind(services: "Services", tenant_id: str, batch_id: str) -> BatchKind:
    return (await services.batches.read(tenant_id, batch_id)).opening.kind


def _source(services: "Services", kind: BatchKind) -> "Results | DiagnosisReports":
    return services.diagnosis_reports if kind is BatchKind.DIAGNOSIS else services.results

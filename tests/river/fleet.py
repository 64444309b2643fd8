"""A fleet's made-up logs, whose lines, templates and faults are known beforehand."""

import gzip
from dataclasses import dataclass
from pathlib import Path

from runtime.client import ApiClient

#: every so many-th log is no log at all
BROKEN_EVERY = 15
#: every so many-th is packed
PACKED_EVERY = 4
#: lines of the fault at the end of every second log
FAULTS = 7
VEHICLES = 6

_BROKEN = bytes(range(256)) * 64


@dataclass(frozen=True)
class Fleet:
    """Logs on disk; each line but the faults follows one of five templates."""

    files: list[Path]
    lines: int

    @classmethod
    def of(cls, folder: Path, logs: int, lines: int) -> "Fleet":
        """So many logs of so many lines in this folder."""
        folder.mkdir(parents=True)
        files = []
        for number in range(logs):
            packed = number % PACKED_EVERY == 1
            path = folder / (f"log-{number:03}.log" + (".gz" if packed else ""))
            content = _BROKEN if is_broken(number) else _content(number, lines)
            path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
            files.append(path)
        return cls(files, lines)

    def hand_in(self, client: ApiClient, *, max_concurrent: int = 8) -> str:
        """A started batch; answers its id."""
        batch_id: str = client.post("/v1/batches", {"kind": "diagnosis", "max_concurrent": max_concurrent})[
            "batch_id"
        ]
        for path in self.files:
            client.upload(batch_id, path)
        client.post(f"/v1/batches/{batch_id}/complete")
        return batch_id

    @property
    def readable(self) -> list[int]:
        """The numbers of the logs that can be parsed."""
        return [number for number in range(len(self.files)) if not is_broken(number)]

    @property
    def total_lines(self) -> int:
        """Lines of all logs that can be parsed."""
        return sum(lines_of(number, self.lines) for number in self.readable)


def is_broken(number: int) -> bool:
    """Whether the log is none."""
    return number % BROKEN_EVERY == 7


def lines_of(number: int, lines: int) -> int:
    """How many lines the log has."""
    return lines + (FAULTS if number % 2 else 0)


def _content(number: int, lines: int) -> bytes:
    written = [
        (
            f"heartbeat {n} of unit {number}",
            f"wrote block {n * 512} in {n % 17} ms",
            f"battery at {12 + n % 3}.{n % 10} V",
            f"request {n:08x} answered with 200",
            f"temperature sensor {n % 8} reads {20 + n % 30}",
        )[n % 5]
        for n in range(lines)
    ]
    unit = number % VEHICLES
    text = [
        f"2026-03-01T{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}Z INFO vehicle-{unit} {line}"
        for n, line in enumerate(written)
    ]
    if number % 2:
        text += [f"2026-03-02T00:00:{n:02}Z ERROR slot B failed to verify, code {n}" for n in range(FAULTS)]
    return "\n".join(text).encode() + b"\n"

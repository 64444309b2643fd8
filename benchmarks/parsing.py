"""Parsing logs beside Drain3: lines a second on one core, and how well lines are grouped.

The rate: whole parsing (bytes to document: lines, times, levels, templates, signals) beside Drain3 on the
decoded lines of the same bytes, bare and with the masks that its own documentation gives, in CPU seconds.
The accuracy is Loghub's: a line counts if the lines grouped with it are exactly those of its true template.
It is taken of raw lines as parsing reads them, and of Loghub's column `Content`, with one set of masks and
parameters; and once more for each log with the parameters that are best for the other three. Without the
folder of Loghub's logs, logs of invented systems are used alone.
"""

import argparse
import csv
import json
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from drain3.drain import Drain  # type: ignore[import-untyped]  # it has annotations, but no py.typed
from rich.console import Console
from rich.table import Table

from activities.parsing.mining import Evidence, Miner
from activities.parsing.parser import parse
from activities.parsing.reader import open_log
from benchmarks.figures import machine
from benchmarks.written_logs import SYSTEMS, written_log
from domain.documents import encode
from domain.logs import LogLine

AIM_ACCURACY = 0.90
LOGHUB = ("HDFS", "Linux", "Android", "OpenSSH")
WRITTEN_LINES = 2_000
RATE_LINES = 100_000
#: Loghub's lines have no year
WRITTEN_AT = datetime(2026, 1, 1, tzinfo=UTC)

#: the masks of Drain3's own documentation
PLAIN_MASKS = [
    (re.compile(pattern), f"<{name}>")
    for pattern, name in (
        (r"((?<=[^A-Za-z0-9])|^)(([0-9a-f]{2,}:){3,}([0-9a-f]{2,}))((?=[^A-Za-z0-9])|$)", "ID"),
        (r"((?<=[^A-Za-z0-9])|^)(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})((?=[^A-Za-z0-9])|$)", "IP"),
        (r"((?<=[^A-Za-z0-9])|^)([0-9a-f]{6,} ?){3,}((?=[^A-Za-z0-9])|$)", "SEQ"),
        (r"((?<=[^A-Za-z0-9])|^)([0-9A-F]{4} ?){4,}((?=[^A-Za-z0-9])|$)", "SEQ"),
        (r"((?<=[^A-Za-z0-9])|^)(0x[a-f0-9A-F]+)((?=[^A-Za-z0-9])|$)", "HEX"),
        (r"((?<=[^A-Za-z0-9])|^)([\-\+]?\d+)((?=[^A-Za-z0-9])|$)", "NUM"),
        (r"(?<=executed cmd )(\".+?\")", "CMD"),
    )
]
#: what the parameters of the table are chosen from; the ones in use come first, and win where equal
CHOICES = tuple(
    Evidence(words=words, constants=constants, likeness=likeness)
    for words, constants, likeness in product((5, 3, 4, 6, 8), (3, 1, 2, 4), (0.5, 0.4, 0.7))
)


@dataclass(frozen=True)
class Truth:
    """A log whose true groups are known: its bytes, its messages without heads, and each line's template."""

    name: str
    raw: bytes
    messages: Sequence[str]
    templates: Sequence[str]


def measure(folder: Path | None, lines: int) -> dict[str, Any]:
    """All figures."""
    loghub = [_loghub(folder, name) for name in LOGHUB] if folder is not None else []
    written = [_written(name) for name in SYSTEMS]
    figures: dict[str, Any] = {
        "machine": machine(),
        "rates": [_rates(log, lines) for log in (loghub or written)],
        "accuracy": {
            "loghub": [_accuracy(log) for log in loghub],
            "written": [_accuracy(log) for log in written],
        },
    }
    if loghub:
        figures["left_out"] = _left_out(loghub)
        mean = _mean(each["raw"] for each in figures["accuracy"]["loghub"])
        figures["aim"] = {"mean_accuracy": AIM_ACCURACY, "measured": mean, "reached": mean >= AIM_ACCURACY}
    return figures


def _loghub(folder: Path, name: str) -> Truth:
    raw = (folder / name / f"{name}_2k.log").read_bytes()
    with (folder / name / f"{name}_2k.log_structured.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return Truth(name, raw, [row["Content"] for row in rows], [row["EventId"] for row in rows])


def _written(name: str) -> Truth:
    lines = written_log(SYSTEMS[name], WRITTEN_LINES)
    raw = "\n".join(f"2026-01-01T10:00:00Z INFO {message}" for message, _ in lines).encode()
    return Truth(name, raw, [message for message, _ in lines], [template for _, template in lines])


# --- rates ---


def _rates(log: Truth, lines: int) -> dict[str, Any]:
    content = grown(log.raw, lines)
    texts = content.decode("utf-8", "replace").split("\n")
    seconds = {
        "assay": _cpu_seconds(lambda: encode(parse(log.name, [content], written_at=WRITTEN_AT))),
        "drain3": _cpu_seconds(lambda: _drained(texts)),
        "drain3_masked": _cpu_seconds(lambda: _drained(map(_plainly_masked, texts))),
    }
    rates = {
        name: {
            "lines_per_second": round(len(texts) / each),
            "mb_per_second": round(len(content) / each / 1e6, 1),
        }
        for name, each in seconds.items()
    }
    ratios = {
        f"of_{name}": round(seconds[name] / seconds["assay"], 2) for name in ("drain3", "drain3_masked")
    }
    return {"log": log.name, "lines": len(texts), "bytes": len(content), **rates, **ratios}


_NUMBER = re.compile(rb"\d{3,}")


def grown(raw: bytes, lines: int) -> bytes:
    """The log again and again until it has so many lines, each time with other numbers after the head."""
    drawn = random.Random(1)  # noqa: S311  # numbers, not secrets
    once = raw.strip().split(b"\n")

    def other(found: re.Match[bytes]) -> bytes:
        return b"".join(b"%d" % drawn.randrange(10) for _ in found[0])

    times = -(-lines // len(once))
    heads = 30
    return b"\n".join(line[:heads] + _NUMBER.sub(other, line[heads:]) for _ in range(times) for line in once)


def _cpu_seconds(work: Callable[[], object]) -> float:
    """The least of three, as whatever else the machine does can only add to it."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def _plainly_masked(text: str) -> str:
    for pattern, name in PLAIN_MASKS:
        text = pattern.sub(name, text)
    return text


def _drained(texts: Iterable[str]) -> list[Hashable]:
    drain = Drain()
    return [drain.add_log_message(text)[0].cluster_id for text in texts]


# --- accuracy ---


def _accuracy(log: Truth) -> dict[str, Any]:
    raw = _raw_messages(log)
    return {
        "log": log.name,
        "raw": accuracy(_grouped(raw, Evidence()), log.templates),
        "content": accuracy(_grouped(log.messages, Evidence()), log.templates),
        "drain3_content": accuracy(_drained(log.messages), log.templates),
        "drain3_masked_content": accuracy(_drained(map(_plainly_masked, log.messages)), log.templates),
    }


def accuracy(groups: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Loghub's grouping accuracy, 0 to 1."""
    lines: dict[Hashable, set[int]] = defaultdict(set)
    true_lines: dict[Hashable, set[int]] = defaultdict(set)
    for number, (group, template) in enumerate(zip(groups, truth, strict=True)):
        lines[group].add(number)
        true_lines[template].add(number)
    right = sum(len(each) for each in lines.values() if true_lines[truth[min(each)]] == each)
    return round(right / len(truth), 4)


def _raw_messages(log: Truth) -> list[str]:
    return [line.content for line in open_log(log.name, [log.raw], written_at=WRITTEN_AT)]


def _grouped(messages: Iterable[str], evidence: Evidence) -> list[Hashable]:
    miner, texts = Miner(evidence=evidence), list(messages)
    for number, text in enumerate(texts, 1):
        miner.add(LogLine(number, text, text))
    miner.templates()
    return [miner.template_of(text) for text in texts]


def _left_out(logs: Sequence[Truth]) -> list[dict[str, Any]]:
    """Each log with the parameters that are best for the others, on raw lines."""
    raw = {log.name: _raw_messages(log) for log in logs}
    by_choice = [
        {log.name: accuracy(_grouped(raw[log.name], choice), log.templates) for log in logs}
        for choice in CHOICES
    ]
    rows = []
    for log in logs:
        others = [_mean(value for name, value in each.items() if name != log.name) for each in by_choice]
        best = others.index(max(others))
        chosen = CHOICES[best]
        rows.append(
            {
                "log": log.name,
                "words": chosen.words,
                "constants": chosen.constants,
                "likeness": chosen.likeness,
                "mean_of_others": round(others[best], 4),
                "accuracy": by_choice[best][log.name],
                "worst_choice": min(each[log.name] for each in by_choice),
            }
        )
    return rows


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 4)


# --- shown ---


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures for people."""
    rates = Table("log", "assay lines/s", "MB/s", "Drain3 lines/s", "masked", "ratio", "to masked", box=None)
    for each in figures["rates"]:
        rates.add_row(
            each["log"],
            *(f"{each['assay'][name]:,}" for name in ("lines_per_second", "mb_per_second")),
            *(f"{each[name]['lines_per_second']:,}" for name in ("drain3", "drain3_masked")),
            f"{each['of_drain3']}",
            f"{each['of_drain3_masked']}",
        )
    console.print("CPU seconds of one core, the whole way from bytes to document", rates)
    grouped = Table("log", "raw lines", "Content", "Drain3 on Content", "with plain masks", box=None)
    for kind in ("loghub", "written"):
        for each in figures["accuracy"][kind]:
            grouped.add_row(*(str(value) for value in each.values()))
    console.print("Grouping accuracy", grouped)
    if "aim" in figures:
        chosen = Table("left out", "words", "constants", "likeness", "others", "accuracy", "worst", box=None)
        for each in figures["left_out"]:
            chosen.add_row(*(str(value) for value in each.values()))
        console.print("With the parameters that are best for the other three", chosen)
        aim = figures["aim"]
        console.print(
            f"Aim: mean {aim['mean_accuracy']}; measured {aim['measured']}, reached {aim['reached']}."
        )


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parsing", description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder with Loghub's folders HDFS, Linux, …")
    parser.add_argument("--lines", type=int, default=RATE_LINES, help="of each log whose rate is measured")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    figures = measure(options.data, options.lines)
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        show(figures, Console())


if __name__ == "__main__":
    main()

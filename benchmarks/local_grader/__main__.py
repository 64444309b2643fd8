"""`python -m benchmarks.local_grader fit|measure --data FOLDER`: the embedded grader's numbers."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.local.parameters import PATH
from benchmarks.local_grader.data import SOURCES, read_source, split
from benchmarks.local_grader.fitting import EXAMPLES, cross_validate, fit, measure_question
from benchmarks.local_grader.measuring import cost, figures, peak_memory_mib, unseen
from benchmarks.local_grader.writing import to_document


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local_grader", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fitting = commands.add_parser("fit", help="fit on half of the questions and write parameters.json")
    fitting.add_argument("--data", type=Path, required=True, help="folder with the public data")
    fitting.add_argument("--to", type=Path, default=PATH, help="where to write (default: what ships)")
    measuring = commands.add_parser("measure", help="figures on the questions that were not fitted on")
    measuring.add_argument("--data", type=Path, required=True, help="folder with the public data")
    measuring.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.command == "fit":
        _fit(arguments.data, arguments.to)
    else:
        _measure(arguments.data, as_json=arguments.json)


def _fit(folder: Path, path: Path) -> None:
    halves = [split(read_source(source, folder))[0] for source in SOURCES]
    chosen = [each for half in halves for each in half]
    questions = [measure_question(each) for each in chosen]
    found = cross_validate(questions)
    document = to_document(fit(questions), chosen, found, datetime.now(UTC).date().isoformat())
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Fitted on {len(chosen)} questions; Pearson r, cross-validated by question: {found}")  # noqa: T201  # a command's answer
    print(f"Written to {path}.")  # noqa: T201  # a command's answer


def _measure(folder: Path, *, as_json: bool) -> None:
    report: dict[str, Any] = {}
    every = []
    for source in SOURCES:
        everything = read_source(source, folder)
        every += [measure_question(each) for each in everything]
        questions = unseen(everything)
        report[source.name] = {
            "without_examples": figures(questions, 0),
            "with_examples": figures(questions, EXAMPLES),
            **cost(questions),
        }
    report["peak_memory_mib"] = peak_memory_mib()
    report["cross_validated_on_all"] = cross_validate(every)
    print(json.dumps(report, indent=2) if as_json else _as_text(report))  # noqa: T201  # a command's answer


def _as_text(report: dict[str, Any]) -> str:
    lines = []
    for source in SOURCES:
        found = report[source.name]
        lines += [f"{source.name}: {source.origin}"]
        lines += [_line(found[kind]) for kind in ("without_examples", "with_examples")]
        lines += [
            f"  {found['milliseconds_an_answer']:.2f} ms an answer of "
            f"{found['mean_answer_characters']:.0f} characters on average"
        ]
    lines += [f"at most {report['peak_memory_mib']:.0f} MiB of memory"]
    lines += [f"r over all questions, each by a fit on others: {report['cross_validated_on_all']}"]
    return "\n".join(lines)


def _line(found: dict[str, Any]) -> str:
    surer, other = found["surer_half"], found["other_half"]
    return (
        f"  {found['examples']:>2} examples, {found['questions']} questions, {found['answers']} answers:"
        f" r {found['pearson']:.3f} (words alone {found['baseline_pearson']:.3f},"
        f" ratio {found['ratio_to_baseline']:.2f}), rho {found['spearman']:.3f},"
        f" kappa {found['weighted_kappa']:.3f}, accuracy {found['accuracy']:.3f};\n"
        f"     surer half r {surer['pearson']:.3f}, error {surer['mean_error']:.3f};"
        f" other half r {other['pearson']:.3f}, error {other['mean_error']:.3f};"
        f" {found['below_review_threshold']:.0%} below the review threshold"
    )


if __name__ == "__main__":
    main()

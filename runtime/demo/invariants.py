"""What must hold of a class's batch, whatever the marks are."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain.injection import SUSPECTED_INJECTION
from domain.states import FILE_MACHINE
from runtime.demo.classes import SchoolClass, student_of


@dataclass(frozen=True)
class Outcome:
    """What a class's batch ended with; `answers` are those read from its files, by submission."""

    school_class: SchoolClass
    batch_id: str
    state: str
    report: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]
    answers: Mapping[str, Mapping[str, str]]
    page: Path


def broken_invariants(outcome: Outcome) -> Iterator[str]:
    """What is not as it must be, a sentence each."""
    for check in _CHECKS:
        for sentence in check(outcome):
            yield f"{outcome.school_class.name}: {sentence}"


def _counts(outcome: Outcome) -> Iterator[str]:
    counts, handed_in = outcome.report["counts"], len(outcome.school_class.students)
    if not handed_in == sum(counts.values()) == outcome.report["total_files"]:
        yield f"{handed_in} submissions were handed in, the counts add up to {sum(counts.values())}"
    expected = "partial" if outcome.school_class.unreadable else "completed"
    if outcome.state != expected:
        yield f"the batch ended {outcome.state}"


def _states(outcome: Outcome) -> Iterator[str]:
    """One final state a submission, and nobody lost or invented."""
    if unfinished := [each["name"] for each in outcome.results if each["state"] not in FILE_MACHINE.final]:
        yield f"not in a final state: {', '.join(unfinished)}"
    came_out = Counter(student_of(each["name"]) for each in outcome.results)
    if came_out != Counter(outcome.school_class.students):
        yield "the students that came out are not those that went in"


def _failures(outcome: Outcome) -> Iterator[str]:
    """The broken files failed, each for its reason and with a message, and nothing else did."""
    failed = {row["name"]: row for row in outcome.report["submissions"] if row["state"] == "failed"}
    if {name: row["failure_code"] for name, row in failed.items()} != outcome.school_class.unreadable:
        yield f"{', '.join(sorted(failed)) or 'nothing'} failed, other than the files that are broken"
    yield from (
        f"{name}: failed without a message" for name, row in failed.items() if not row["failure_message"]
    )


def _sums(outcome: Outcome) -> Iterator[str]:
    for each in outcome.results:
        total = round(sum(question["score"] for question in each["results"]), 2)
        if each["results"] and each["score"] != total:
            yield f"{each['name']}: score {each['score']} is not the sum {total}"
        for question in each["results"]:
            points = round(sum(criterion["points"] for criterion in question["criteria"]), 2)
            if question["score"] != min(points, question["max_score"]):
                yield f"{each['name']} {question['question_id']}: the score is not the sum of its criteria"


def _quotes(outcome: Outcome) -> Iterator[str]:
    """Evidence stands verbatim in the answer as it was read."""
    for each in outcome.results:
        for question in each["results"]:
            answer = outcome.answers.get(each["name"], {}).get(question["question_id"], "")
            for criterion in question["criteria"]:
                if criterion["quote"] not in answer:
                    yield f"{each['name']} {question['question_id']}: a quote is not in the answer"


def _injections(outcome: Outcome) -> Iterator[str]:
    """Each attempt is suspected, and waits for a person."""
    queued = {student_of(each["name"]) for each in outcome.report["review_queue"]}
    suspected = {student_of(each["name"]) for each in outcome.results if is_suspected(each)}
    for student in sorted(outcome.school_class.injections - suspected):
        yield f"{student}: the injection is not suspected"
    for student in sorted(outcome.school_class.injections - queued):
        yield f"{student}: the injection is not in the review queue"


def is_suspected(result: Mapping[str, Any]) -> bool:
    """Whether an answer of the submission is taken for an attempt to talk to the grader."""
    return any(SUSPECTED_INJECTION in each["review_reasons"] for each in result["results"])


def _honesty(outcome: Outcome) -> Iterator[str]:
    if not outcome.report["advisory"]:
        yield "the embedded model's marks are not said to be advisory"


def _page(outcome: Outcome) -> Iterator[str]:
    """The report for reading is there, and nobody is missing from it."""
    page = outcome.page.read_text(encoding="utf-8") if outcome.page.is_file() else ""
    if missing := [each["name"] for each in outcome.results if each["name"] not in page]:
        yield f"{outcome.page} does not name {', '.join(missing)}"


_CHECKS = (_counts, _states, _failures, _sums, _quotes, _injections, _honesty, _page)

"""A class's outcome in a terminal: report, agreement, review queue, evidence."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from domain.agreement import Agreement, Interval, SurerHalf
from domain.assessment import restore_quote
from domain.injection import SUSPECTED_INJECTION, suspected_injection
from runtime.demo.classes import MARKED_BY
from runtime.demo.comparison import Comparison
from runtime.demo.invariants import Outcome
from runtime.grading import look_at, show_report

_ROWS_SHOWN = 6
_QUEUE_SHOWN = 8
_QUOTES_SHOWN = 4
_QUOTE_WIDTH = 80


def show_outcome(outcome: Outcome, comparison: Comparison, console: Console) -> None:
    """Everything about one class; the report lists what has failed first, each with its message."""
    console.rule(escape(outcome.school_class.exam.title))
    show_report(outcome.report, console, rows=_ROWS_SHOWN)
    _show_agreement(outcome, comparison, console)
    _show_queue(outcome, console)
    _show_evidence(outcome, console)


# --- agreement ---------------------------------------------------------------------------------------


def _show_agreement(outcome: Outcome, comparison: Comparison, console: Console) -> None:
    if comparison.totals is None:
        console.print("\nNothing was graded that could be compared.")
        return
    columns = (_right("answers"), "Pearson r", "quadratic kappa", "same mark", "mean error")
    table = Table("question", *columns, box=None)
    exam = outcome.school_class.exam
    for question_id, agreement in comparison.questions.items():
        table.add_row(question_id, *_figures(agreement, exam.question(question_id).points))
    table.add_row("total", *_figures(comparison.totals, exam.max_points))
    console.print("\n[bold]Agreement with the reference marks[/bold], with 95 % intervals")
    console.print(table)
    if comparison.surer_half is not None:
        console.print(_surer_half(comparison.surer_half))
    count = comparison.totals.count
    console.print(f"Stated, never claimed: n = {count} submissions, marked once, by {MARKED_BY}.")


def _figures(agreement: Agreement, points: float) -> tuple[str, ...]:
    error = agreement.mean_absolute_error
    return (
        str(agreement.count),
        interval_text(agreement.pearson),
        interval_text(agreement.qwk),
        f"{agreement.exact.value:.0%}",
        f"{error.value:.2f} of {points:g}",
    )


def interval_text(interval: Interval | None) -> str:
    """A figure with its interval, where it is defined."""
    return "–" if interval is None else f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _surer_half(half: SurerHalf) -> str:
    surer, rest = (
        f"r {interval_text(each.pearson)}, mean error {each.mean_absolute_error.value:.0%} of the points"
        for each in (half.surer, half.rest)
    )
    return (
        f"Of the answers to open questions, the {half.surer.count} with a confidence from "
        f"{half.from_confidence:.2f} on: {surer}; the other {half.rest.count}: {rest}."
    )


# --- what a person looks at --------------------------------------------------------------------------


def _show_queue(outcome: Outcome, console: Console) -> None:
    count = outcome.report["needs_review"]
    console.print(f"\n[bold]Review queue[/bold], {count} in all, the most urgent first")
    table = Table(Column("submission", no_wrap=True), "look at", "quote", box=None)
    for each in outcome.report["review_queue"][:_QUEUE_SHOWN]:
        question = most_urgent(each["questions"])
        reasons = sorted(question["reasons"], key=_is_doubt)
        why = look_at([f"{question['question_id']}: {reason}" for reason in reasons])
        answer = outcome.answers.get(each["name"], {}).get(question["question_id"], "")
        table.add_row(escape(each["name"]), escape(why), _quoted(telling_quote(question, answer)))
    console.print(table)


def most_urgent(questions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The question of a queued submission to look at first: any other reason comes before a doubt."""
    return min(questions, key=lambda question: all(map(_is_doubt, question["reasons"])))


def telling_quote(question: Mapping[str, Any], answer: str) -> str:
    """What to read first: the suspicious words, or else the evidence of a mark that is in doubt."""
    if SUSPECTED_INJECTION in question["reasons"]:
        # the words are found in the text's plain form
        phrase = suspected_injection(answer) or ""
        return restore_quote(answer, phrase) or phrase
    return next((each["quote"] for each in question["criteria"] if each["quote"]), "")


def _is_doubt(reason: str) -> bool:
    return reason.startswith("low_confidence")


def _show_evidence(outcome: Outcome, console: Console) -> None:
    console.print("\n[bold]Evidence, verbatim[/bold]")
    table = Table(Column("submission", no_wrap=True), "criterion", "points", "quote", box=None)
    for submission, question, criterion in list(_evidence(outcome))[:_QUOTES_SHOWN]:
        points = f"{criterion['points']:g}/{criterion['max_points']:g}"
        where = f"{question['question_id']}/{criterion['criterion_id']}"
        table.add_row(escape(submission), where, points, _quoted(criterion["quote"]))
    console.print(table)


def _evidence(outcome: Outcome) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """One well-earned criterion of an open question for each submission, not always the same one."""
    for number, result in enumerate(outcome.results):
        earned = [
            (question, criterion)
            for question in result["results"]
            for criterion in question["criteria"]
            if question["advisory"] and criterion["quote"] and criterion["points"]
        ]
        if earned:
            yield result["name"], *earned[number * 3 % len(earned)]


def _quoted(quote: str) -> str:
    return escape(shorten(quote, _QUOTE_WIDTH, placeholder=" …"))


def _right(name: str) -> Column:
    return Column(name, justify="right")

"""An evaluation in words, numbers and tables: what the terminal and the page both say."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from domain.agreement import Agreement, Interval, SurerHalf
from runtime.evaluation.labelled import printable
from runtime.evaluation.measuring import Basis, Comparison, Evaluation, Usage

#: of many questions the terminal shows those with the least agreement; the page and `--json` have all
SHOWN_QUESTIONS = 15
SHOWN_FAILURES = 5
SHOWN_FURTHEST = 5
_EXCERPT = 60
_LABEL = 24

CLAIM = "Agreement with these marks on these answers; not a claim about others."
ADVISORY = "Advisory: this model's marks are proposals; a human decides."


@dataclass(frozen=True)
class Figure:
    """One figure with its interval, as both are printed, and what it says."""

    name: str
    value: str
    between: str
    meaning: str


def figures(comparison: Comparison) -> list[Figure]:
    """The figures of all answers, with what each of them means."""
    found: Agreement = comparison.agreement
    near = adjacent(comparison)
    return [
        _figure("Pearson r", found.pearson, "marks rise and fall together"),
        _figure("Spearman ρ", found.spearman, "answers are ranked alike"),
        _figure("QWK", found.qwk, "same levels, beyond what chance gives"),
        _figure("exact", found.exact, f"same level, steps of {comparison.step:.3g}", percent=True),
        _figure(
            "adjacent", near, "at most one step apart" if near else "says nothing of two levels", percent=True
        ),
        _figure("mean error", found.mean_absolute_error, f"points off, of {comparison.maximum:g}"),
    ]


def _figure(name: str, interval: Interval | None, meaning: str, *, percent: bool = False) -> Figure:
    between = ends(interval, percent=percent) if interval else ""
    return Figure(name, value(interval, percent=percent), between, meaning)


def value(interval: Interval | None, *, percent: bool = False) -> str:
    """`0.71`, and a dash where the figure is not defined."""
    return "–" if interval is None else _written(interval.value, percent)


def ends(interval: Interval, *, percent: bool = False) -> str:
    """`0.65 to 0.77`."""
    return f"{_written(interval.low, percent)} to {_written(interval.high, percent)}"


def between(interval: Interval | None, *, percent: bool = False) -> str:
    """`0.71 [0.65, 0.77]`."""
    if interval is None:
        return "–"
    low, high = (_written(each, percent) for each in (interval.low, interval.high))
    return f"{_written(interval.value, percent)} [{low}, {high}]"


def _written(number: float, percent: bool) -> str:
    return f"{number:.0%}" if percent else f"{number:z.2f}"


def adjacent(comparison: Comparison) -> Interval | None:
    """The adjacent agreement; of two levels all are adjacent, so it says nothing there."""
    return comparison.agreement.adjacent if comparison.step < comparison.maximum else None


def grounds(basis: Basis, count: int) -> list[tuple[str, str]]:
    """What the figures rest on."""
    drawn = basis.examples_per_question
    return [
        ("answers", f"{count:,}" + (f", and {basis.blank_answers:,} blank" if basis.blank_answers else "")),
        ("data", f"{basis.data}, sha256 {basis.sha256[:16]}…"),
        ("graded against", basis.exam or "an exam made from the set"),
        (
            "model",
            basis.model + (f", parameters {basis.parameters_version}" if basis.parameters_version else ""),
        ),
        ("examples", f"{drawn} a question" if drawn else "none"),
        ("intervals", f"95 %, {basis.resamples:,} resamples, seed {basis.seed}"),
    ]


def lowest_first(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those with the least agreement first: they are worth a look."""
    return sorted(comparisons, key=_agreed)


def _agreed(comparison: Comparison) -> tuple[bool, float]:
    qwk = comparison.agreement.qwk
    return (qwk is not None, qwk.value if qwk else comparison.agreement.exact.value)


def cost(usage: Usage) -> str:
    """Tokens and money."""
    tokens = f"{usage.tokens_in:,} tokens in, {usage.tokens_out:,} out"
    return f"{tokens}, " + (f"${usage.cost_est_usd}" if usage.cost_est_usd else "no price known")


def time_taken(usage: Usage) -> str:
    """Wall time, and how long a call to the model waits for its answer."""
    return (
        f"{usage.seconds:.1f} s, {usage.milliseconds_per_answer:.1f} ms an answer; "
        f"{usage.model_calls:,} model calls, answered after {usage.model_milliseconds_per_call:.1f} ms"
    )


def review_effect(evaluation: Evaluation) -> str:
    """What the review queue would catch."""
    review, most = evaluation.review, evaluation.overall.maximum
    queue = f"{review.flagged:,} of {len(evaluation.answers):,} answers ({review.share:.0%}) ask for a human"
    if review.error_flagged is None or review.error_unflagged is None:
        return f"{queue}."
    return (
        f"{queue}: error {review.error_flagged:z.2f} of {most:g} there, "
        f"{review.error_unflagged:z.2f} in the others."
    )


def surer_half(half: SurerHalf) -> list[str]:
    """What is gained by believing only the surer part."""
    parts = ((f"Confidence from {half.from_confidence:.2g} on", half.surer), ("Below it", half.rest))
    return [
        f"{name} (n {part.count:,}): r {between(part.pearson)}, error {between(part.mean_absolute_error)}."
        for name, part in parts
    ]


def interrupted(evaluation: Evaluation) -> str:
    """What a run that was stopped has measured."""
    count = len(evaluation.answers) + len(evaluation.failures)
    return (
        f"Interrupted: the first {count:,} of {evaluation.basis.chosen_answers:,} answers in the set's order."
    )


def failures_by_code(evaluation: Evaluation) -> dict[str, int]:
    """How many answers failed for which reason."""
    return dict(Counter(each.code for each in evaluation.failures).most_common())


# --- in a terminal -------------------------------------------------------------------------------


def show_evaluation(evaluation: Evaluation, console: Console) -> None:
    """The evaluation as tables, the most important first."""
    if evaluation.interrupted:
        console.print(f"[yellow]{interrupted(evaluation)}[/yellow]")
    _show_grounds(evaluation, console)
    _show_figures(evaluation, console)
    _show_comparisons("question", evaluation.questions, console)
    if evaluation.criteria:
        _show_comparisons("criterion", evaluation.criteria, console)
    _show_confidence(evaluation, console)
    _show_furthest(evaluation, console)
    _show_failures(evaluation, console)
    console.print(f"\n[bold]{CLAIM}[/bold]")
    if evaluation.advisory:
        console.print(f"[yellow]{ADVISORY}[/yellow]")


def _show_grounds(evaluation: Evaluation, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    rows = grounds(evaluation.basis, len(evaluation.answers))
    rows += [("cost", cost(evaluation.usage)), ("time", time_taken(evaluation.usage))]
    for name, value in rows:
        table.add_row(f"[dim]{name}[/dim]", escape(value))
    console.print(table)
    for note in evaluation.basis.notes:
        console.print(f"[dim]·[/dim] {escape(note)}")


def _show_figures(evaluation: Evaluation, console: Console) -> None:
    table = Table("agreement", _number("value"), _number("95 % interval"), "which says", box=None)
    for each in figures(evaluation.overall):
        table.add_row(each.name, f"[bold]{each.value}[/bold]", each.between, f"[dim]{each.meaning}[/dim]")
    console.print()
    console.print(table)
    all_ = evaluation.overall
    console.print(
        f"Mean mark: human {all_.mean_human:z.2f}, machine {all_.mean_machine:z.2f} of {all_.maximum:g}; "
        "bias below is machine less human."
    )


def _show_comparisons(name: str, comparisons: Sequence[Comparison], console: Console) -> None:
    if len(comparisons) < 2 and name == "question":
        return
    shown = lowest_first(comparisons)[:SHOWN_QUESTIONS]
    columns = [_number(each) for each in ("n", "bias", "r", "QWK", "exact", "error")]
    table = Table(Column(name, overflow="ellipsis", no_wrap=True, max_width=_LABEL), *columns, box=None)
    for each in shown:
        table.add_row(
            escape(each.label),
            str(each.agreement.count),
            f"{each.mean_machine - each.mean_human:+z.2f}",
            between(each.agreement.pearson),
            between(each.agreement.qwk),
            f"{each.agreement.exact.value:.0%}",
            f"{each.agreement.mean_absolute_error.value:z.2f}",
        )
    console.print()
    console.print(table)
    if len(comparisons) > len(shown):
        rest = len(comparisons) - len(shown)
        console.print(f"[dim]… and {rest} more with more agreement: --html FILE or --json shows all.[/dim]")


def _show_confidence(evaluation: Evaluation, console: Console) -> None:
    columns = [_number(name) for name in ("n", "mean", "error", "same level", "within a step")]
    table = Table("confidence", *columns, box=None)
    for band in evaluation.reliability:
        table.add_row(
            f"{band.low:g} to {band.high:g}",
            str(band.count),
            f"{band.mean_confidence:z.2f}",
            f"{band.mean_absolute_error:z.2f}",
            f"{band.exact:.0%}",
            f"{band.adjacent:.0%}" if evaluation.overall.step < evaluation.overall.maximum else "–",
        )
    console.print()
    console.print(table)
    if half := evaluation.surer_half:
        for each in surer_half(half):
            console.print(each)
    console.print(review_effect(evaluation))


def _show_furthest(evaluation: Evaluation, console: Console) -> None:
    furthest = evaluation.furthest(SHOWN_FURTHEST)
    if not furthest:
        return
    columns = [_number(name) for name in ("line", "human", "machine", "sure")]
    table = Table(*columns, Column("question", no_wrap=True, max_width=_LABEL), "furthest apart", box=None)
    for each in furthest:
        excerpt = printable(each.answer)
        table.add_row(
            str(each.line),
            f"{each.human:.2g}",
            f"{each.machine:.2g}",
            f"{each.confidence:z.2f}",
            escape(each.question),
            escape(excerpt if len(excerpt) <= _EXCERPT else excerpt[:_EXCERPT] + "…"),
        )
    console.print()
    console.print(table)


def _show_failures(evaluation: Evaluation, console: Console) -> None:
    if not evaluation.failures:
        return
    counts = ", ".join(f"{count} {code}" for code, count in failures_by_code(evaluation).items())
    console.print(f"\n[red]{len(evaluation.failures)} answers were not graded:[/red] {escape(counts)}")
    for each in evaluation.failures[:SHOWN_FAILURES]:
        console.print(f"  line {each.task.answer.line}: {escape(printable(each.message))}")


def _number(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)

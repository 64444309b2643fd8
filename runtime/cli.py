"""The `assay` command. Every import that costs time stands in the command that needs it."""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Column, Table

from domain.errors import AssayError
from runtime.baseline_commands import baseline_commands
from runtime.exam_commands import exam_commands
from runtime.key_commands import key_commands
from runtime.ledger_commands import ledger_commands
from runtime.override_commands import override_commands
from runtime.price_commands import price_commands
from runtime.rerun_commands import installed_client, rerun_commands
from runtime.settings import Settings
from runtime.tenant_commands import tenant_commands
from runtime.terminal import terminal
from runtime.thread_commands import thread_commands

OK, FAILED, BAD_INPUT, UNAVAILABLE, PARTIAL = 0, 1, 2, 3, 4

EPILOG = (
    "Exit codes: 0 done; 1 failed; 2 wrong input; 3 something does not answer; 4 done in part. "
    "Settings: ASSAY_<PART>__<NAME>, see docs/operating.md."
)

app = typer.Typer(
    name="assay",
    help="Durable, budgeted AI assessment of batches of files.",
    epilog=EPILOG,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(rerun_commands)
app.add_typer(override_commands)
app.add_typer(thread_commands)
app.add_typer(exam_commands)
app.add_typer(baseline_commands)
app.add_typer(ledger_commands)
app.add_typer(price_commands)
app.add_typer(key_commands)
app.add_typer(tenant_commands)

out = terminal(soft_wrap=False)
err = terminal(stderr=True, soft_wrap=False)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]


def main() -> None:
    """The console command: one message for each error, and an exit code that means something."""
    code = FAILED
    try:
        code = app(standalone_mode=False) or OK
    except typer.Exit as exit_:
        code = exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
        # typer's own usage errors know how to show themselves
    except Exception as error:  # noqa: BLE001  # the last place where an error can get a message
        code = _say(error)
    _leave(code)


def _say(error: Exception) -> int:
    from runtime.embedded import StackError
    from runtime.processes import ProcessError

    if isinstance(error, typer.TyperException):
        from typer.rich_utils import rich_format_error

        rich_format_error(error)  # type: ignore[arg-type]  # each of them is typer's own ClickException
        return BAD_INPUT
    if isinstance(error, ValidationError):
        for problem in error.errors():
            name = "ASSAY_" + "__".join(str(part).upper() for part in problem["loc"])
            err.print(f"[red]Wrong setting[/red] {escape(name)}: {escape(problem['msg'])}", soft_wrap=True)
        return BAD_INPUT
    if isinstance(error, (AssayError, StackError, ProcessError)):
        for line in _mistakes(error) or [str(error)]:
            err.print(f"[red]{escape(line)}[/red]", soft_wrap=True)
        return _code_of(error)
    err.print_exception()
    return FAILED


def _mistakes(error: Exception) -> list[str]:
    """Every mistake of an exam that the API has refused."""
    from runtime.client import RequestRefused

    problems = error.problem.get("errors") or () if isinstance(error, RequestRefused) else ()
    return [
        f"line {each['line']}: {each['field']}: {each['message']}. {each['remedy']}"
        for each in problems
        if each.get("line") is not None
    ]


def _code_of(error: Exception) -> int:
    from domain.errors import (
        Conflict,
        InvalidInput,
        LimitExceeded,
        ModelRefused,
        NotFound,
        Unavailable,
        UnknownModel,
    )
    from runtime.client import ApiUnreachable, RequestRefused
    from runtime.embedded import StackError
    from runtime.resources import MissingAddress

    if isinstance(error, RequestRefused):
        return UNAVAILABLE if error.status >= 500 else BAD_INPUT
    if isinstance(error, (Unavailable, ApiUnreachable, MissingAddress, StackError)):
        return UNAVAILABLE
    wrong = (InvalidInput, NotFound, Conflict, LimitExceeded, ModelRefused, UnknownModel)
    return BAD_INPUT if isinstance(error, wrong) else FAILED


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    # temporalio's threads sometimes crash the interpreter while it is taken down (sdk-python #300);
    # everything is flushed, so nothing needs to be taken down
    os._exit(code)


def _print_json(document: Any) -> None:
    out.print_json(json.dumps(document, ensure_ascii=False))


# --- the installation ------------------------------------------------------------------------------


@app.command()
def up(
    json_: Json = False,
) -> None:
    """Start servers, workers and API in the foreground, and keep them alive until Ctrl-C.

    Example: assay up
    """
    from runtime.local import local_installation, running_installation
    from runtime.telemetry import configure_logs

    settings = Settings()
    configure_logs(settings.log, process="up")
    if running := running_installation(settings.folder.resolve()):
        _show_installation(running, "Already up", json_)
        return

    async def run() -> None:
        async with local_installation(settings) as installation:
            # not before: until here a signal ends the start
            stop = _stop_signal()
            _show_installation(installation, "Up", json_)
            await stop.wait()
            err.print("Stopping: agents finish their step, then the servers end.")

    _run(run)


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(each, stop.set)
    return stop


def _run(
    main_: Callable[[], Awaitable[None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run to the end; a signal during the start or the stop ends it in order, too."""

    async def guarded() -> None:
        task = asyncio.ensure_future(main_())
        loop = asyncio.get_running_loop()
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(each, task.cancel)
        await task

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _show_installation(installation: Any, title: str, json_: bool) -> None:
    if json_:
        _print_json(
            {
                "pid": installation.pid,
                "api": installation.api_url,
                "api_docs": f"{installation.api_url}/docs",
                "temporal_ui": installation.temporal_ui_url,
            }
        )
        return
    table = Table.grid(padding=(0, 2))
    table.add_row("API", installation.api_url)
    table.add_row("API docs", f"{installation.api_url}/docs")
    table.add_row("Temporal Web UI", installation.temporal_ui_url)
    out.print(f"[bold green]{title}[/bold green] (pid {installation.pid})")
    out.print(table)


@app.command()
def down() -> None:
    """Stop what `assay up` has started over this data folder.

    Example: assay down
    """
    import time

    from runtime.processes import ProcessIdentity

    folder = Settings().folder.resolve()
    holder = _lock_holder(folder)
    identity = ProcessIdentity.of("assay", holder) if holder else None
    if identity is None:
        out.print("Nothing runs here.")
        return
    identity.send(signal.SIGTERM)
    deadline = time.monotonic() + 60
    while identity.alive:
        if time.monotonic() > deadline:
            err.print(f"[red]Process {identity.pid} is still stopping after 60 s.[/red]")
            raise typer.Exit(UNAVAILABLE)
        time.sleep(0.1)
    out.print("Stopped.")


def _lock_holder(folder: Path) -> int | None:
    """The process that holds the data folder, also while it is starting or stopping."""
    from runtime.embedded import StackAlreadyRunning, take_lock

    if not (folder / "lock").exists():
        return None
    try:
        os.close(take_lock(folder))
    except StackAlreadyRunning as error:
        return error.pid
    return None


@app.command()
def status(json_: Json = False) -> None:
    """Say what runs over this data folder, and whether it is ready. Exit code 3 if it is not.

    Example: assay status --json
    """
    import httpx

    from runtime.local import running_installation

    running = running_installation(Settings().folder.resolve())
    if running is None:
        _print_json({"running": False}) if json_ else out.print(
            "Nothing runs here. Start it with `assay up`."
        )
        raise typer.Exit(UNAVAILABLE)
    try:
        health = httpx.get(f"{running.api_url}/health/ready", timeout=10).json()
    except (httpx.HTTPError, ValueError):
        health = {"status": "unreachable"}
    ready = health.get("status") == "ready"
    if json_:
        _print_json(
            {
                "running": True,
                "ready": ready,
                "health": health,
                "api": running.api_url,
                "temporal_ui": running.temporal_ui_url,
            }
        )
    else:
        _show_installation(running, "Ready" if ready else "Not ready", json_)
        out.print(f"Health: {escape(json.dumps(health))}")
    raise typer.Exit(OK if ready else UNAVAILABLE)


@app.command()
def doctor(json_: Json = False) -> None:
    """Check this machine and this installation; every failed check names its remedy.

    Example: assay doctor
    """
    from runtime.doctor import run_checks

    checks = asyncio.run(run_checks(Settings().folder.resolve()))
    if json_:
        _print_json([vars_of(check) for check in checks])
    else:
        table = Table("", "check", "result", "what to do", box=None)
        for check in checks:
            mark = "[green]ok[/green]" if check.ok else "[red]no[/red]"
            table.add_row(mark, escape(check.name), escape(check.detail), escape(check.remedy))
        out.print(table)
    raise typer.Exit(OK if all(check.ok for check in checks) else FAILED)


def vars_of(check: Any) -> dict[str, Any]:
    """A check as plain data."""
    return {"name": check.name, "ok": check.ok, "detail": check.detail, "remedy": check.remedy}


@app.command()
def migrate() -> None:
    """Bring the schema of ASSAY_POSTGRES__URL up to date; safe to run from many places at once.

    Example: ASSAY_POSTGRES__URL=postgresql://… assay migrate
    """
    from db.postgres.migrate import migrate as run_migrations
    from runtime.database import postgres_url

    applied = asyncio.run(run_migrations(postgres_url(Settings())))
    out.print(f"Applied: {', '.join(applied)}." if applied else "The schema is up to date.")


@app.command()
def worker(
    kind: Annotated[
        Literal["all", "orchestration", "cognition", "parsing"], typer.Option(help="Which queues to serve.")
    ] = "all",
) -> None:
    """Serve Temporal's task queues until SIGTERM; running agents are drained at their next step.

    Example: assay worker --kind cognition
    """
    from runtime.telemetry import configure_logs
    from runtime.worker import KINDS, run_worker

    settings = Settings()
    configure_logs(settings.log, process=f"worker-{kind}")
    _log_settings(settings)
    asyncio.run(run_worker(settings, KINDS if kind == "all" else [kind]))


@app.command()
def api() -> None:
    """Serve the HTTP API until SIGTERM.

    Example: ASSAY_API__PORT=8080 assay api
    """
    import uvloop

    from runtime.server import serve
    from runtime.telemetry import configure_logs

    settings = Settings()
    configure_logs(settings.log, process="api")
    _log_settings(settings)
    # What was imported stays: going through it again took a tenth of a second in the middle of calls, and
    # the collector a tenth of all CPU. With uvloop a call of the gateway takes a sixth less of it.
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    uvloop.run(serve(settings))


def _log_settings(settings: Settings) -> None:
    import structlog

    # secrets are SecretStr and mask themselves
    structlog.get_logger("assay").info("settings", settings=settings.model_dump(mode="json"))


# --- the work -----------------------------------------------------------------------------------------

Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Follow the batch until it has ended.")]
StudentColumn = Annotated[
    str | None,
    typer.Option("--student", metavar="COLUMN", help="The column of a .csv that names the student."),
]
QuestionColumns = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="QUESTION=COLUMN", help="Where a .csv has a question's answers."),
]


@app.command()
def grade(
    exam: Annotated[
        Path, typer.Argument(metavar="EXAM", help="The exam, YAML or JSON.", exists=True, dir_okay=False)
    ],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="The submissions.", exists=True, dir_okay=False)
    ],
    watch_: Watch = False,
    json_: Json = False,
    model: Annotated[str, typer.Option(help="Which model grades open questions.")] = "local",
    max_concurrent: Annotated[int, typer.Option(min=1, help="Submissions graded at once.")] = 10,
    name: Annotated[str, typer.Option(help="A name for the batch.")] = "",
    limit_usd: Annotated[
        str | None, typer.Option("--limit", metavar="USD", help="The most that it may cost, such as 2.50.")
    ] = None,
    student: StudentColumn = None,
    map_: QuestionColumns = None,
) -> None:
    """Grade submissions against an exam. A .csv is a table with a row a student.

    Example: assay grade exam.yaml answers/*.docx class.csv --map q1="Response 1" --watch
    """
    from runtime.grading import grade as grade_files
    from runtime.grading import show_report, show_tables
    from runtime.handing_in import Submissions, TableColumns
    from runtime.watching import exit_code, watch_batch

    _check_limit(limit_usd)
    tables: list[dict[str, Any]] = []

    def tell(submissions: Submissions) -> None:
        show_tables(submissions, err)
        tables.extend(each.mapping for each in submissions.tables)

    with installed_client() as client:
        refused: list[str] = []
        batch_id = grade_files(
            client,
            exam,
            files,
            console=err,
            model=model,
            max_concurrent=max_concurrent,
            name=name,
            limit_usd=limit_usd,
            columns=TableColumns(student, map_ or ()),
            on_read=tell,
            on_refused=refused.append,
        )
        read = {"tables": tables} if tables else {}
        for line in refused:
            err.print(f"[red]Not handed in[/red] {escape(line)}", soft_wrap=True)
        if not watch_:
            _print_json({"batch_id": batch_id, **read}) if json_ else out.print(
                f"Batch {batch_id} is running. Follow it with: assay watch {batch_id}"
            )
            raise typer.Exit(PARTIAL if refused else OK)
        state = watch_batch(client, batch_id, console=err)
        report = client.report(batch_id)
    _print_json({**report, **read}) if json_ else show_report(report, out)
    code = exit_code(state)
    raise typer.Exit(PARTIAL if refused and code == OK else code)


@app.command()
def diagnose(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES", help="Logs; .gz, .zst and .zip are unpacked.", exists=True, dir_okay=False
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME|BATCH", help="What they are compared with: see assay baseline."),
    ] = None,
    vehicle: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Its first group in a file's name is the vehicle's id."),
    ] = None,
    watch_: Watch = False,
    json_: Json = False,
    model: Annotated[str, typer.Option(help="Which model diagnoses; local goes by rules.")] = "local",
    max_concurrent: Annotated[int, typer.Option(min=1, help="Logs parsed at once.")] = 10,
    name: Annotated[str, typer.Option(help="A name for the batch.")] = "",
    limit_usd: Annotated[
        str | None, typer.Option("--limit", metavar="USD", help="The most that it may cost, such as 2.50.")
    ] = None,
) -> None:
    """Diagnose a batch of logs: what stands out against the baseline, and the cause, line by line.

    Example: assay diagnose logs/*.log.gz --baseline week-12 --vehicle "^(V[0-9]+)-" --watch
    """
    from runtime.diagnosing import diagnose as diagnose_files
    from runtime.diagnosing import show_diagnosis
    from runtime.watching import exit_code, watch_batch

    _check_limit(limit_usd)
    with installed_client() as client:
        batch_id = diagnose_files(
            client,
            files,
            console=err,
            model=model,
            max_concurrent=max_concurrent,
            name=name,
            baseline=baseline,
            vehicle=vehicle,
            limit_usd=limit_usd,
        )
        if not watch_:
            _print_json({"batch_id": batch_id}) if json_ else out.print(
                f"Batch {batch_id} is running. Follow it with: assay watch {batch_id}"
            )
            return
        state = watch_batch(client, batch_id, console=err)
        report = client.report(batch_id)
    _print_json(report) if json_ else show_diagnosis(report, out)
    raise typer.Exit(exit_code(state))


def _check_limit(usd: str | None) -> None:
    """Raise `InvalidInput` for what is no amount."""
    from domain.errors import InvalidInput
    from domain.money import parse_usd

    try:
        parse_usd("0" if usd is None else usd)
    except ValueError as error:
        raise InvalidInput(f"--limit: {error}.", field="limit") from error


@app.command()
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Marked answers, .jsonl or .csv.", exists=True, dir_okay=False),
    ],
    exam: Annotated[
        Path | None,
        typer.Option(help="The exam; without, one is made of the set.", exists=True, dir_okay=False),
    ] = None,
    model: Annotated[str, typer.Option(help="Whose marks are measured.")] = "local",
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Where a field stands.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=MARK,…", help="What labels are worth.")
    ] = None,
    skip_answer: Annotated[list[str] | None, typer.Option(help="An answer that stands for none.")] = None,
    maximum: Annotated[float | None, typer.Option(min=0, help="Full marks of the human's marks.")] = None,
    step: Annotated[
        float | None, typer.Option(min=0, help="Points from level to level; fitted to the marks by default.")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, max=200, help="Answers of each question that become graded examples.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many answers, drawn.")] = None,
    questions: Annotated[str, typer.Option(metavar="GLOB", help="Only questions of such ids.")] = "*",
    include_fitted: Annotated[
        bool, typer.Option("--include-fitted", help="Also questions the embedded model was fitted on.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=100, help="Answers graded at once.")] = 8,
    resamples: Annotated[int, typer.Option(min=100, max=100_000, help="For the intervals.")] = 1000,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.", dir_okay=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Measure how far a model's marks agree with a human's, on answers that the human has marked.

    Needs no `assay up`. Example: assay evaluate marked.csv --map answer=Response --map score=Grade
    """
    from runtime.evaluation.command import Options, run_evaluation, write_page
    from runtime.evaluation.measuring import evaluation_document
    from runtime.evaluation.showing import show_evaluation
    from runtime.settings import LogSettings
    from runtime.telemetry import configure_logs

    configure_logs(LogSettings(level="error"), process="evaluate")
    options = Options(
        data=data,
        exam=exam,
        model=model,
        columns=map_ or [],
        labels=labels or [],
        skipped_answers=skip_answer or [],
        maximum=maximum,
        step=step,
        examples=examples,
        seed=seed,
        limit=limit,
        pattern=questions,
        include_fitted=include_fitted,
        concurrency=concurrency,
        resamples=resamples,
        html=html,
    )
    outcome: list[Any] = []

    async def run() -> None:
        outcome.append(await run_evaluation(options, Settings(), err))

    _run(run)
    (evaluation,) = outcome
    _print_json(evaluation_document(evaluation)) if json_ else show_evaluation(evaluation, out)
    if html is not None:
        write_page(evaluation, html)
        err.print(f"Page: {html}", soft_wrap=True, markup=False)
    raise typer.Exit(PARTIAL if evaluation.failures or evaluation.interrupted else OK)


@app.command()
def estimate(
    exam: Annotated[
        Path, typer.Argument(metavar="EXAM", help="The exam, YAML or JSON.", exists=True, dir_okay=False)
    ],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="The submissions.", exists=True, dir_okay=False)
    ],
    model: Annotated[str, typer.Option(help="Which model grades open questions.")] = "local",
    json_: Json = False,
    student: StudentColumn = None,
    map_: QuestionColumns = None,
) -> None:
    """Say what grading would cost: as usual, and at the very most. Nothing is handed in.

    Example: assay estimate exam.yaml class.csv answers/*.txt --model openai:gpt-4o-mini
    """
    from runtime.grading import estimate as estimate_cost
    from runtime.grading import show_estimate
    from runtime.handing_in import TableColumns

    refused: list[str] = []
    with installed_client() as client:
        columns = TableColumns(student, map_ or ())
        estimated = estimate_cost(client, exam, files, model, columns, refused.append)
    for line in refused:
        err.print(f"[red]Not counted[/red] {escape(line)}", soft_wrap=True)
    _print_json(estimated) if json_ else show_estimate(estimated, out)
    raise typer.Exit(PARTIAL if refused else OK)


@app.command()
def batches(
    state: Annotated[str | None, typer.Option(help="Only batches in this state.")] = None,
    page: Annotated[int, typer.Option(min=1)] = 1,
    json_: Json = False,
) -> None:
    """List the batches, newest first.

    Example: assay batches --state completed
    """
    with installed_client() as client:
        parameters = {"page": page, "page_size": 20} | ({"state": state} if state else {})
        answer = client.get("/v1/batches", **parameters)
    if json_:
        _print_json(answer)
        return
    table = Table(Column("batch", no_wrap=True), "name", "state", "files", "model", "opened", box=None)
    for each in answer["items"]:
        table.add_row(
            each["batch_id"],
            escape(each["name"]),
            each["status"],
            str(each["total_files"]),
            each["model"],
            each["created_at"][:16].replace("T", " "),
        )
    out.print(table)
    out.print(f"{answer['total']} in all, page {answer['page']}.")


@app.command()
def watch(batch_id: Annotated[str, typer.Argument(metavar="BATCH", help="The batch.")]) -> None:
    """Follow a batch: stage, counts, rate and time left. The exit code tells how it ended.

    Example: assay watch 0197c1de-…
    """
    from runtime.watching import exit_code, watch_batch

    with installed_client() as client:
        state = watch_batch(client, batch_id, console=err)
    out.print(state)
    raise typer.Exit(exit_code(state))


@app.command()
def cancel(batch_id: Annotated[str, typer.Argument(metavar="BATCH", help="The batch.")]) -> None:
    """Cancel a batch; what has been graded stays.

    Example: assay cancel 0197c1de-…
    """
    from domain.states import BATCH_MACHINE

    with installed_client() as client:
        answer = client.post(f"/v1/batches/{batch_id}/cancel")
    # the workflow of a running or paused batch ends it in a moment
    over = answer["status"] in BATCH_MACHINE.final
    out.print(f"{answer['batch_id']}: {answer['status'] if over else 'cancelling'}")


@app.command()
def limit(
    batch_id: Annotated[str, typer.Argument(metavar="BATCH", help="The batch.")],
    usd: Annotated[str, typer.Argument(metavar="USD", help='Decimal dollars such as 12.50, or "none".')],
) -> None:
    """Set what a batch may cost in all; a batch that is paused goes on.

    Example: assay limit 0197c1de-… 12.50
    """
    stated = None if usd == "none" else usd
    _check_limit(stated)
    with installed_client() as client:
        answer = client.post(f"/v1/batches/{batch_id}/limit", {"limit_usd": stated})
    shown = "no limit" if answer["limit_usd"] is None else f"at most ${answer['limit_usd']}"
    out.print(f"{answer['batch_id']}: {answer['status']}, {shown}")


@app.command()
def resume(batch_id: Annotated[str, typer.Argument(metavar="BATCH", help="The batch.")]) -> None:
    """Let a paused batch try again, such as on the next day of a daily limit.

    Example: assay resume 0197c1de-…
    """
    with installed_client() as client:
        answer = client.post(f"/v1/batches/{batch_id}/resume")
    out.print(f"{answer['batch_id']}: {answer['status']}")


@app.command()
def report(
    batch_id: Annotated[str, typer.Argument(metavar="BATCH", help="The batch.")],
    json_: Json = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="For spreadsheets, a row a submission or anomaly.")
    ] = False,
    html: Annotated[bool, typer.Option("--html", help="A page for reading and printing.")] = False,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there: .html, .csv or .json.", dir_okay=False),
    ] = None,
    criteria: Annotated[
        bool,
        typer.Option("--criteria", help="With each criterion's points and quote, in CSV and JSON of marks."),
    ] = False,
) -> None:
    """Show a batch's report, marks or a diagnosis; or write it as a page, for spreadsheets or for programs.

    Example: assay report 0197c1de-… --out marks.csv --criteria
    """
    from runtime.diagnosing import show_diagnosis
    from runtime.grading import show_report

    chosen = _report_format({"json": json_, "csv": csv, "html": html}, file)
    with installed_client() as client:
        if chosen is None:
            report = client.report(batch_id)
            show = show_diagnosis if "diagnosis" in report else show_report
            show(report, out)
        elif chosen == "json" and file is None:
            _print_json(client.report(batch_id, criteria=criteria))
        else:
            _write(client.report_file(batch_id, chosen, criteria=criteria), file)


def _report_format(asked: dict[str, bool], file: Path | None) -> str | None:
    """The one format that flags and the file's name ask for; `None` for the terminal."""
    chosen = {name for name, wanted in asked.items() if wanted}
    if file is not None:
        suffix = file.suffix.lower().removeprefix(".")
        if suffix not in asked and not chosen:
            raise typer.BadParameter(
                "name it .html, .csv or .json, or add --html, --csv or --json", param_hint="--out"
            )
        chosen |= {suffix} & asked.keys()
    if len(chosen) > 1:
        raise typer.BadParameter(f"one format at a time; asked for {', '.join(sorted(chosen))}")
    return chosen.pop() if chosen else None


def _write(content: bytes, file: Path | None) -> None:
    if file is None:
        sys.stdout.buffer.write(content)
        return
    try:
        file.write_bytes(content)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be written: {error.strerror}", param_hint="--out") from error
    err.print(f"Written: {escape(str(file))}", soft_wrap=True)


@app.command()
def states(
    machine: Annotated[Literal["batch", "file"], typer.Argument(help="Which machine.")] = "batch",
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid diagram.")] = False,
) -> None:
    """Show the legal moves of a state machine, with what is where right now.

    Example: assay states file
    """
    from domain.states import BATCH_MACHINE, FILE_MACHINE
    from runtime.grading import show_machine

    chosen = BATCH_MACHINE if machine == "batch" else FILE_MACHINE
    if mermaid:
        out.print(chosen.mermaid(), markup=False)
        return
    show_machine(chosen, _census(machine), out)


def _census(machine: str) -> dict[str, int]:
    """Live counts by state; none where nothing runs."""
    from runtime.client import ApiUnreachable

    try:
        with installed_client() as client:
            census: dict[str, int] = client.get("/v1/census")[machine]
            return census
    except ApiUnreachable:
        return {}


class Demonstration(StrEnum):
    """What is demonstrated."""

    GRADING = "grading"
    DIAGNOSIS = "diagnosis"


@app.command()
def demo(
    what: Annotated[
        Demonstration, typer.Argument(help="Two classes' answers, or the logs of a failed update campaign.")
    ] = Demonstration.GRADING,
    json_: Json = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up until Ctrl-C.")] = False,
) -> None:
    """Grade two classes, or diagnose a campaign, with everything real, and check that the outcome is whole.

    Example: assay demo diagnosis --keep
    """
    from runtime.campaign_demonstration import run_campaign_demonstration
    from runtime.demonstration import run_demonstration
    from runtime.local import local_installation, running_installation
    from runtime.settings import LogSettings
    from runtime.telemetry import configure_logs

    settings = Settings()
    configure_logs(LogSettings(level="error"), process="demo")
    outcome: dict[str, Any] = {}
    reports = settings.folder.resolve() / "reports"
    run_it = run_demonstration if what is Demonstration.GRADING else run_campaign_demonstration
    demonstrate = partial(run_it, folder=reports, console=out, progress=err, json_=json_)

    async def run() -> None:
        if running := running_installation(settings.folder.resolve()):
            outcome.update(await asyncio.to_thread(demonstrate, running, staying=True))
            return
        err.print("Starting PostgreSQL, Valkey, Temporal, three workers and the API …")
        async with local_installation(settings) as installation:
            outcome.update(await asyncio.to_thread(demonstrate, installation, staying=keep))
            if keep:
                _show_installation(installation, "Still up, until Ctrl-C", json_=False)
                await _stop_signal().wait()

    _run(run)
    if json_:
        _print_json(outcome["summary"])
    for broken in outcome["broken"]:
        err.print(f"[red]Broken invariant:[/red] {escape(broken)}")
    raise typer.Exit(FAILED if outcome["broken"] else OK)


@app.command("simulate-upstream")
def simulate_upstream(
    host: Annotated[str, typer.Option(help="Where it listens; it asks for no key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 0,
    latency: Annotated[
        str, typer.Option(metavar="SHAPE", help="0.05, uniform:0.1,0.4 or lognormal:0.2,0.5, in seconds.")
    ] = "0",
    tokens: Annotated[int, typer.Option(min=1, help="Of each reply.")] = 16,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="How fast a reply is written; at once by default.")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="FAULT=SHARE", help="Such as rate_limited=0.1, hanging=0.01.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    json_: Json = False,
) -> None:
    """Simulate a server of models that speaks OpenAI's protocol, with faults to order; for tests.

    Example: assay simulate-upstream --latency lognormal:0.2,0.5 --fault rate_limited=0.1 --seed 7
    """
    import uvloop

    from runtime.simulated_upstream import SimulatedUpstream, stated_behaviour

    behaviour = stated_behaviour(
        latency=latency, tokens=tokens, tokens_per_second=tokens_per_second, faults=fault or ()
    )

    async def run() -> None:
        stop = _stop_signal()
        async with SimulatedUpstream(behaviour, seed=seed).serving(host, port) as upstream:
            _print_json({"pid": os.getpid(), "url": upstream.url}) if json_ else out.print(
                f"Simulated upstream at {upstream.url}/v1 (pid {os.getpid()}), until Ctrl-C"
            )
            sys.stdout.flush()
            await stop.wait()

    _run(run, loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    main()

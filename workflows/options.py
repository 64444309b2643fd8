"""Every timeout, retry policy, window and limit of the workflows, named, with its reason."""

from datetime import timedelta

from temporalio.common import RetryPolicy

#: windows at a time; they share the batch's `max_concurrent`
WINDOWS_AT_ONCE = 4
#: window reports that one batch may receive in all: at four events each, a third of a history
REPORTS_PER_BATCH = 4_000
#: a window reports to its batch at most once in this time
REPORT_INTERVAL = timedelta(seconds=2)

#: one file's state change is one transaction of milliseconds, and idempotent: a worker that died with it is
#: noticed after this time, and so is a Postgres that hangs; twice what a full pool lets a step wait (5 s)
FILE_STEP_TIMEOUT = timedelta(seconds=10)
#: a batch's one may write 100,000 rows, or compute a report of them
STEP_TIMEOUT = timedelta(seconds=60)
#: a step waits for Postgres as long as an operator may need to bring it back
STEP_DEADLINE = timedelta(hours=24)
#: cache and bell together have 3 s as local activities (G4.1); what fails is tried again as a normal one
PROMPT_TIMEOUT = timedelta(seconds=1.5)
#: an agent's attempt may be long: its worker's death is told by the heartbeat, not by this
ASSESS_TIMEOUT = timedelta(hours=2)
#: a log may be large and its parser busy: the parser's death is told by the heartbeat, not by this
PARSE_TIMEOUT = timedelta(hours=6)
#: as many logs are read again for a gathering as a batch has, its baseline's beside them
GATHER_TIMEOUT = timedelta(hours=2)
#: the wait for a child that a run before a reset has started
AWAIT_TIMEOUT = timedelta(days=7)

#: infrastructure that is away comes back: soon, and then every 10 s
STEP_RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=10),
)
#: at once, as the workflow task waits; then the normal activity takes over
PROMPT_RETRY = RetryPolicy(maximum_attempts=1)
#: kills and upstream failures; 30 attempts are about ten minutes of a failing upstream
ASSESS_RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=500),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=30,
)
#: kills of parsers; a log that ends every parser fails after these, its batch goes on
PARSE_RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=500),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=10),
    maximum_attempts=20,
)

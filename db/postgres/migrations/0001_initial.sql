-- Tenants and keys -------------------------------------------------------------------------------

CREATE TABLE tenants (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id  text NOT NULL REFERENCES tenants,
    name       text NOT NULL,
    prefix     text NOT NULL,
    sha256     bytea NOT NULL UNIQUE,   -- keys are 256 random bits: a plain hash is enough
    scopes     text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE idempotency_keys (
    tenant_id      text NOT NULL REFERENCES tenants,
    key            text NOT NULL,
    request_sha256 text NOT NULL,
    created_id     uuid NOT NULL,       -- given at the claim: a repetition creates the same thing
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);

-- Exams: a rubric is versioned and never edited in place -------------------------------------------

CREATE TABLE exams (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id  text NOT NULL REFERENCES tenants,
    title      text NOT NULL,
    language   text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX exams_by_tenant ON exams (tenant_id, created_at DESC);

CREATE TABLE questions (
    exam_id     uuid NOT NULL REFERENCES exams,
    question_id text NOT NULL,
    position    integer NOT NULL,
    type        text NOT NULL,
    prompt      text NOT NULL,
    points      double precision NOT NULL CHECK (points > 0),
    PRIMARY KEY (exam_id, question_id)
);

CREATE TABLE rubrics (
    exam_id     uuid NOT NULL,
    question_id text NOT NULL,
    version     integer NOT NULL CHECK (version >= 1),
    hash        text NOT NULL,
    content     jsonb NOT NULL,         -- answer, accept, tolerance, unit, reference
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (exam_id, version, question_id),
    FOREIGN KEY (exam_id, question_id) REFERENCES questions
);

CREATE TABLE criteria (
    exam_id      uuid NOT NULL,
    question_id  text NOT NULL,
    version      integer NOT NULL,
    criterion_id text NOT NULL,
    position     integer NOT NULL,
    points       double precision NOT NULL CHECK (points > 0),
    description  text NOT NULL,
    PRIMARY KEY (exam_id, version, question_id, criterion_id),
    FOREIGN KEY (exam_id, version, question_id) REFERENCES rubrics (exam_id, version, question_id)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is never changed in place; write a new version', TG_TABLE_NAME;
END $$;
CREATE TRIGGER rubrics_are_immutable BEFORE UPDATE OR DELETE ON rubrics
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER criteria_are_immutable BEFORE UPDATE OR DELETE ON criteria
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Batches and files --------------------------------------------------------------------------------

CREATE TABLE batches (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id         text NOT NULL REFERENCES tenants,
    kind              text NOT NULL,
    name              text NOT NULL DEFAULT '',
    exam_id           uuid REFERENCES exams,
    rubric_version    integer NOT NULL DEFAULT 1,
    baseline          text,
    model             text NOT NULL,
    vehicle_id        varchar(255) NOT NULL DEFAULT '',
    vin               varchar(17) NOT NULL DEFAULT '',
    status            varchar(50) NOT NULL,
    generation        integer NOT NULL DEFAULT 1,
    total_files       integer NOT NULL DEFAULT 0,
    processed_files   integer NOT NULL DEFAULT 0,   -- set when gathered: no row lock per file
    expected_workers  integer NOT NULL CHECK (expected_workers >= 1),
    max_concurrent    integer NOT NULL CHECK (max_concurrent >= 1),
    limit_nanodollars bigint CHECK (limit_nanodollars >= 0),
    trace_id          text NOT NULL,
    failure_code      text,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX batches_by_tenant ON batches (tenant_id, created_at DESC, id);

CREATE TABLE files (
    id                     uuid PRIMARY KEY,
    batch_id               uuid NOT NULL REFERENCES batches,
    tenant_id              text NOT NULL REFERENCES tenants,
    name                   text NOT NULL,
    ordinal                integer NOT NULL DEFAULT 0,   -- 1… once the batch is complete
    size_bytes             bigint NOT NULL,
    sha256                 text NOT NULL,
    object_key             text NOT NULL,
    vehicle_id             varchar(255) NOT NULL DEFAULT '',
    vin                    varchar(17) NOT NULL DEFAULT '',
    state                  text NOT NULL,
    generation             integer NOT NULL DEFAULT 1,
    workflow_id            text,
    run_id                 text,
    first_execution_run_id text,                         -- survives resets
    failure_code           text,
    failure_message        text,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    UNIQUE (batch_id, name)
);
CREATE INDEX files_by_state ON files (batch_id, state);
CREATE INDEX files_by_ordinal ON files (batch_id, ordinal);

-- Grading ------------------------------------------------------------------------------------------

CREATE TABLE submissions (
    id           uuid PRIMARY KEY REFERENCES files,     -- a submission is a file of a grading batch
    batch_id     uuid NOT NULL REFERENCES batches,
    status       text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'graded', 'retracted')),
    generation   integer NOT NULL DEFAULT 1,
    score        double precision,
    max_score    double precision,
    needs_review boolean NOT NULL DEFAULT false,
    updated_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX submissions_by_batch ON submissions (batch_id);

-- What a reader found; official only once the saga has recorded it in grading_results.
CREATE TABLE assessments (
    submission_id uuid NOT NULL REFERENCES submissions,
    generation    integer NOT NULL,
    reader        text NOT NULL,
    thread_id     text NOT NULL,
    epoch         bigint NOT NULL,
    document      jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (submission_id, generation, reader)
);

CREATE TABLE grading_results (
    submission_id  uuid NOT NULL REFERENCES submissions,
    generation     integer NOT NULL,
    question_id    text NOT NULL,
    position       integer NOT NULL,
    score          double precision NOT NULL,
    max_score      double precision NOT NULL,
    result         jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (submission_id, generation, question_id),
    CHECK (score >= 0 AND score <= max_score)
);

CREATE TABLE saga_transactions (
    saga_id       varchar(200) PRIMARY KEY,
    steps         jsonb NOT NULL,
    final_status  varchar(20) NOT NULL,
    started_at    timestamptz NOT NULL,
    completed_at  timestamptz,
    error_message text,
    created_at    timestamptz DEFAULT now()
);
CREATE INDEX idx_saga_status ON saga_transactions (final_status);

-- Progress: written in the transaction of the state, numbered per batch by one relay -----------------

CREATE TABLE progress_events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id    uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    batch_id    uuid NOT NULL REFERENCES batches,
    file_id     uuid,
    event_type  text NOT NULL,
    number      bigint,
    occurred_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    data        jsonb NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX progress_events_by_number ON progress_events (batch_id, number);
CREATE INDEX progress_events_unnumbered ON progress_events (id) WHERE number IS NULL;

-- What the relay has not numbered yet.
CREATE VIEW outbox AS
    SELECT id, event_id, batch_id, file_id, event_type, occurred_at, data
    FROM progress_events WHERE number IS NULL;

-- Agents: LangGraph's tables come from its own setup, run before this file ---------------------------

CREATE TABLE agent_threads (
    thread_id   text PRIMARY KEY,                        -- the run id of the file's workflow
    workflow_id text NOT NULL,
    file_id     uuid,
    generation  integer NOT NULL DEFAULT 1,
    epoch       bigint NOT NULL DEFAULT 1,               -- the newest attempt; older ones may not write
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX agent_threads_by_workflow ON agent_threads (workflow_id);

-- The fence: answers the thread's id to the attempt that owns it, and refuses every other one.
-- FOR SHARE makes a newer attempt's epoch wait for this statement, so nothing is written behind it.
CREATE FUNCTION fenced_thread(thread text, attempt_epoch bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM agent_threads WHERE thread_id = thread AND epoch = attempt_epoch FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'epoch % of thread % is superseded', attempt_epoch, thread USING ERRCODE = 'AS001';
    END IF;
    RETURN thread;
END $$;

CREATE VIEW workflow_state_cache AS
    SELECT t.workflow_id,
           jsonb_build_object(
               'thread_id', t.thread_id,
               'checkpoint_id', c.checkpoint_id,
               'stage', CASE WHEN c.checkpoint -> 'channel_versions' ? 'total' THEN 'done' ELSE 'grading' END,
               'step', c.metadata -> 'step'
           ) AS state,
           (c.checkpoint ->> 'ts')::timestamptz AS updated_at
    FROM (SELECT DISTINCT ON (workflow_id) workflow_id, thread_id
          FROM agent_threads ORDER BY workflow_id, created_at DESC) t
    CROSS JOIN LATERAL (
        SELECT checkpoint_id, checkpoint, metadata FROM checkpoints
        WHERE checkpoints.thread_id = t.thread_id AND checkpoint_ns = ''
        ORDER BY checkpoint_id DESC LIMIT 1
    ) c;

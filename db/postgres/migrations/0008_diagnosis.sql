-- Logs: what parsing and gathering found -------------------------------------------------------------

-- A log is a file of a diagnosis batch; its templates are in a document in the object store.
CREATE TABLE logs (
    id             uuid PRIMARY KEY REFERENCES files,
    batch_id       uuid NOT NULL REFERENCES batches,
    generation     integer NOT NULL,
    format         text NOT NULL,
    parser         text NOT NULL,
    parsed_key     text NOT NULL,
    parsed_sha256  text NOT NULL,
    expanded_bytes bigint NOT NULL CHECK (expanded_bytes >= 0),
    lines          bigint NOT NULL CHECK (lines >= 0),
    parsed_lines   bigint NOT NULL CHECK (parsed_lines BETWEEN 0 AND lines),
    templates      integer NOT NULL,
    signals        integer NOT NULL,
    levels         jsonb NOT NULL DEFAULT '{}',
    first_at       timestamptz,
    last_at        timestamptz,
    incomplete     text NOT NULL DEFAULT '',
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX logs_by_batch ON logs (batch_id);

-- A gathered batch; the whole summary is a document in the object store, what a report shows is here.
CREATE TABLE log_summaries (
    batch_id       uuid NOT NULL REFERENCES batches,
    generation     integer NOT NULL,
    signature      text NOT NULL,
    summary_key    text NOT NULL,
    summary_sha256 text NOT NULL,
    document       jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (batch_id, generation)
);

-- The batches that others are compared with, by name.
CREATE TABLE baselines (
    tenant_id  text NOT NULL REFERENCES tenants,
    name       varchar(255) NOT NULL,
    batch_id   uuid NOT NULL REFERENCES batches,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, name)
);

-- Which batch the baseline stood for when this one was opened.
ALTER TABLE batches ADD COLUMN baseline_batch_id uuid REFERENCES batches;

-- The thread of a diagnosis belongs to a batch as a whole, and to no file.
ALTER TABLE agent_threads ADD COLUMN batch_id uuid REFERENCES batches;
CREATE INDEX agent_threads_by_batch ON agent_threads (batch_id) WHERE batch_id IS NOT NULL;

CREATE TABLE ai_diagnoses (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    batch_id        uuid NOT NULL REFERENCES batches (id),
    generation      integer NOT NULL DEFAULT 1,
    -- a proposal becomes official with its batch's last step; NULL until then
    recorded_at     timestamptz,
    verdict         text NOT NULL,
    root_cause      text,
    risk_level      varchar(50),
    recommendations text,
    signature       text NOT NULL DEFAULT '',
    model           text NOT NULL,
    thread_id       text NOT NULL,
    epoch           bigint NOT NULL,
    document        jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (batch_id, generation)
);
CREATE INDEX ai_diagnoses_by_signature ON ai_diagnoses (signature, model, created_at DESC);

-- Uploads that go on after a break (tus): part objects, joined at the end ------------------------------

CREATE TABLE resumable_uploads (
    id           uuid PRIMARY KEY,
    tenant_id    text NOT NULL REFERENCES tenants,
    batch_id     uuid NOT NULL REFERENCES batches,
    name         text NOT NULL,
    size_bytes   bigint CHECK (size_bytes >= 0),     -- unknown while its length is deferred
    offset_bytes bigint NOT NULL DEFAULT 0 CHECK (offset_bytes >= 0),
    metadata     jsonb NOT NULL DEFAULT '{}',
    file_id      uuid,                               -- once it has become a file
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL
);
CREATE INDEX resumable_uploads_by_expiry ON resumable_uploads (expires_at);
CREATE INDEX resumable_uploads_by_tenant ON resumable_uploads (tenant_id) WHERE file_id IS NULL;

CREATE TABLE resumable_upload_parts (
    upload_id    uuid NOT NULL REFERENCES resumable_uploads ON DELETE CASCADE,
    offset_bytes bigint NOT NULL,
    size_bytes   bigint NOT NULL CHECK (size_bytes > 0),
    object_key   text NOT NULL UNIQUE,
    PRIMARY KEY (upload_id, offset_bytes)
);

-- How much each tenant has stored (B2.3): changed with the file's row, in its transaction.
CREATE TABLE tenant_storage (
    tenant_id    text PRIMARY KEY REFERENCES tenants,
    stored_bytes bigint NOT NULL
);
INSERT INTO tenant_storage SELECT tenant_id, sum(size_bytes) FROM files GROUP BY tenant_id;

-- Agents' threads: their history, their size, and one newest run a file (G2.5, G2.6, X14) ---------------

-- The primary keys begin with the thread's id: these three are written with every checkpoint and read by nothing.
DROP INDEX IF EXISTS checkpoints_thread_id_idx, checkpoint_blobs_thread_id_idx, checkpoint_writes_thread_id_idx;
CREATE INDEX checkpoints_by_run ON checkpoints ((metadata ->> 'run_id')) WHERE metadata ? 'run_id';

CREATE INDEX agent_threads_by_file ON agent_threads (file_id, generation);

-- When Temporal scheduled the newest attempt: it orders attempts and runs, whoever comes first (X14).
ALTER TABLE agent_threads ADD COLUMN scheduled_at timestamptz NOT NULL DEFAULT now();
UPDATE agent_threads SET scheduled_at = created_at;

-- What retention has left of the thread's checkpoints (G2.8).
ALTER TABLE agent_threads ADD COLUMN kept text NOT NULL DEFAULT 'history'
    CHECK (kept IN ('history', 'latest', 'nothing'));
CREATE INDEX agent_threads_to_prune ON agent_threads (updated_at) WHERE kept <> 'nothing';

-- Where a re-run's thread begins: as a copy of this thread up to this checkpoint (G2.6).
ALTER TABLE files ADD COLUMN forked_thread_id text, ADD COLUMN forked_checkpoint_id text;

-- One row a checkpoint. `is_delta`: some of its channels are the base's, by version; the size is of what was
-- stored with this one alone.
CREATE VIEW langgraph_checkpoints AS
    SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id,
           COALESCE(bool_or(b.type LIKE '%+zlib'), false) AS is_compressed,
           COALESCE(bool_or(base.checkpoint -> 'channel_versions' ->> v.key = v.value), false) AS is_delta,
           CASE WHEN bool_or(base.checkpoint -> 'channel_versions' ->> v.key = v.value)
                THEN c.parent_checkpoint_id END AS base_checkpoint_id,
           (pg_column_size(c.checkpoint) + pg_column_size(c.metadata) + COALESCE(sum(octet_length(b.blob)) FILTER (
               WHERE base.checkpoint -> 'channel_versions' ->> v.key IS DISTINCT FROM v.value), 0))::bigint
               AS data_size_bytes,
           (c.metadata ->> 'step')::integer AS step,
           (c.checkpoint ->> 'ts')::timestamptz AS created_at
    FROM checkpoints c
    LEFT JOIN checkpoints base ON (base.thread_id, base.checkpoint_ns, base.checkpoint_id)
        = (c.thread_id, c.checkpoint_ns, c.parent_checkpoint_id)
    LEFT JOIN LATERAL jsonb_each_text(c.checkpoint -> 'channel_versions') v ON true
    LEFT JOIN checkpoint_blobs b ON (b.thread_id, b.checkpoint_ns, b.channel, b.version)
        = (c.thread_id, c.checkpoint_ns, v.key, v.value)
    GROUP BY c.thread_id, c.checkpoint_ns, c.checkpoint_id;

-- Events from outside, each delivered to its workflow once (G6.2) -----------------------------------------

CREATE TABLE external_events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   text NOT NULL REFERENCES tenants,
    batch_id    uuid NOT NULL REFERENCES batches ON DELETE CASCADE,
    file_id     uuid REFERENCES files ON DELETE CASCADE,
    generation  integer NOT NULL CHECK (generation >= 1),
    workflow_id text NOT NULL,
    event_id    text NOT NULL,
    type        text NOT NULL,
    data        jsonb NOT NULL,
    state       text NOT NULL DEFAULT 'stored' CHECK (state IN ('stored', 'delivered', 'undeliverable')),
    reason      text NOT NULL DEFAULT '',
    attempts    integer NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now(),     -- not before then is it tried (again)
    received_at timestamptz NOT NULL DEFAULT now(),
    settled_at  timestamptz,
    trace_id    text NOT NULL DEFAULT '',
    UNIQUE (workflow_id, event_id)
);
CREATE INDEX external_events_due ON external_events (due_at) WHERE state = 'stored';
CREATE INDEX external_events_in_order ON external_events (workflow_id, id);
CREATE INDEX external_events_settled ON external_events (settled_at) WHERE settled_at IS NOT NULL;

-- The newest holder of each lock; its number never goes back, not even when its row was pruned (G6.3) ------

CREATE SEQUENCE lock_fence_numbers;
CREATE TABLE lock_fences (
    name       text PRIMARY KEY,
    fence      bigint NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now()
);

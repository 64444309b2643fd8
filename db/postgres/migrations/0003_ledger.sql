-- The ledger: events are the truth, everything else here is a projection of them (L1) ---------------

CREATE TABLE ledger_events (
    event_id                   uuid PRIMARY KEY,     -- made of call, dispatch and kind: a repetition collides
    event_type                 text NOT NULL CHECK (event_type IN ('precheck_hold', 'commit', 'cancel', 'adjust')),
    call_id                    uuid NOT NULL,
    attempt                    integer NOT NULL CHECK (attempt >= 1),
    reference                  text NOT NULL,
    tenant_id                  text NOT NULL,
    api_key_id                 text NOT NULL,
    batch_id                   text NOT NULL,
    profile                    text NOT NULL,
    file_id                    text NOT NULL,
    trace_id                   text NOT NULL,
    provider                   text NOT NULL,
    model                      text NOT NULL,
    usage                      jsonb NOT NULL,
    cost_estimated_nanodollars bigint NOT NULL CHECK (cost_estimated_nanodollars >= 0),
    cost_actual_nanodollars    bigint NOT NULL,
    rates                      jsonb NOT NULL,
    status                     text NOT NULL CHECK (status IN ('ok', 'error', 'cancelled')),
    ttft_ms                    integer,
    total_ms                   integer,
    day                        date NOT NULL,        -- in the tenant's time zone
    hold_day                   date NOT NULL,
    occurred_at                timestamptz NOT NULL
);
-- time only grows, give or take a clock: a block range index costs an append next to nothing
CREATE INDEX ledger_events_by_time ON ledger_events USING brin (occurred_at);
CREATE INDEX ledger_events_by_tenant ON ledger_events (tenant_id, day);
CREATE INDEX ledger_events_by_trace ON ledger_events (trace_id);

CREATE TABLE ledger_facts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL,
    call_id     uuid,
    attempt     integer,
    tenant_id   text NOT NULL,
    api_key_id  text NOT NULL,
    batch_id    text NOT NULL,
    profile     text NOT NULL,
    trace_id    text NOT NULL,
    data        jsonb NOT NULL,
    occurred_at timestamptz NOT NULL
);
CREATE INDEX ledger_facts_by_time ON ledger_facts USING brin (occurred_at);

CREATE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only; correct it with another row', TG_TABLE_NAME;
END $$;
CREATE TRIGGER ledger_events_are_appended BEFORE UPDATE OR DELETE ON ledger_events
    FOR EACH ROW EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER ledger_events_stay BEFORE TRUNCATE ON ledger_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER ledger_facts_are_appended BEFORE UPDATE OR DELETE ON ledger_facts
    FOR EACH ROW EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER ledger_facts_stay BEFORE TRUNCATE ON ledger_facts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_rewriting();

-- Projections: written in the transaction of their events -------------------------------------------

CREATE TABLE ledger_tenants (
    tenant_id              text PRIMARY KEY,
    time_zone              text NOT NULL DEFAULT 'UTC',
    call_limit_nanodollars bigint CHECK (call_limit_nanodollars >= 0),
    day_limit_nanodollars  bigint CHECK (day_limit_nanodollars >= 0),
    mode                   text CHECK (mode IN ('strict_budget', 'best_effort'))
);

-- The subject is an id, for `tenant_day` a day. A limit is null where there is none; that of a
-- tenant's day stands in ledger_tenants.
CREATE TABLE ledger_accounts (
    tenant_id         text NOT NULL,
    scope             text NOT NULL CHECK (scope IN ('api_key', 'batch', 'profile', 'tenant_day')),
    subject           text NOT NULL,
    limit_nanodollars bigint CHECK (limit_nanodollars >= 0),
    mode              text CHECK (mode IN ('strict_budget', 'best_effort')),
    held_nanodollars  bigint NOT NULL DEFAULT 0,
    spent_nanodollars bigint NOT NULL DEFAULT 0,
    requests          bigint NOT NULL DEFAULT 0,
    tokens            bigint NOT NULL DEFAULT 0,
    version           bigint NOT NULL DEFAULT 0,
    updated_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, scope, subject)
) WITH (fillfactor = 20);  -- a hot account is rewritten hundreds of times a second: room for it in its own page

-- One row for each dispatch of a call. Never deleted: the attempt's number is part of its events' ids.
CREATE TABLE ledger_holds (
    call_id               uuid NOT NULL,
    attempt               integer NOT NULL,
    request_hash          text NOT NULL,
    tenant_id             text NOT NULL,
    api_key_id            text NOT NULL,
    batch_id              text NOT NULL,
    profile               text NOT NULL,
    file_id               text NOT NULL,
    trace_id              text NOT NULL,
    provider              text NOT NULL,
    model                 text NOT NULL,
    state                 text NOT NULL,
    estimated_nanodollars bigint NOT NULL,
    likely_nanodollars    bigint NOT NULL,
    open_nanodollars      bigint NOT NULL,   -- what is still set aside
    charged_nanodollars   bigint NOT NULL,   -- what was spent in all
    doubt_rule            text NOT NULL,
    rates                 jsonb NOT NULL,
    token                 text NOT NULL,     -- tells the owner from every other attempt
    journaled             boolean NOT NULL,
    reply_seconds         double precision NOT NULL,
    day                   date NOT NULL,
    due_at                timestamptz NOT NULL,  -- held: expires; dispatched: the reply's deadline; in_doubt: the rule
    updated_at            timestamptz NOT NULL,
    PRIMARY KEY (call_id, attempt),
    CHECK (state IN ('held', 'dispatched', 'in_doubt') OR open_nanodollars = 0)
) WITH (fillfactor = 70);
CREATE INDEX ledger_holds_due ON ledger_holds (due_at) WHERE state IN ('held', 'dispatched', 'in_doubt');
CREATE INDEX ledger_holds_of_batch ON ledger_holds (batch_id) WHERE state = 'in_doubt';

CREATE TABLE ledger_journal (
    call_id            uuid NOT NULL,
    request_hash       text NOT NULL,
    tenant_id          text NOT NULL,
    step               text NOT NULL,
    generation         integer NOT NULL,
    number             integer NOT NULL,
    attempt            integer NOT NULL,
    batch_id           text NOT NULL,
    reply              text NOT NULL,
    usage              jsonb NOT NULL,
    finish_reason      text NOT NULL,
    advisory           boolean NOT NULL,
    provider           text NOT NULL,
    model              text NOT NULL,
    actual_nanodollars bigint NOT NULL,
    created_at         timestamptz NOT NULL,
    PRIMARY KEY (call_id, request_hash)
);
CREATE INDEX ledger_journal_by_time ON ledger_journal USING brin (created_at);

-- A batch's limit is written in one place and known in both.
CREATE FUNCTION follow_batch_limit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger_accounts SET limit_nanodollars = NEW.limit_nanodollars, version = version + 1, updated_at = now()
    WHERE tenant_id = NEW.tenant_id AND scope = 'batch' AND subject = NEW.id::text;
    RETURN NULL;
END $$;
CREATE TRIGGER ledger_follows_batch_limit AFTER UPDATE OF limit_nanodollars ON batches
    FOR EACH ROW WHEN (OLD.limit_nanodollars IS DISTINCT FROM NEW.limit_nanodollars)
    EXECUTE FUNCTION follow_batch_limit();

-- The application's role: it may not rewrite what happened. Migrations run as the owner --------------

DO $$
BEGIN
    -- roles belong to the cluster: another database's migration may have made it
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'assay_app') THEN
        CREATE ROLE assay_app NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'the role assay_app is missing, and % may not make it', current_user
            USING HINT = 'Run once as a superuser: CREATE ROLE assay_app NOLOGIN; GRANT assay_app TO <owner>;';
END $$;
DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'assay_app', 'MEMBER') THEN
        EXECUTE format('GRANT assay_app TO %I', current_user);
    END IF;
END $$;
GRANT USAGE ON SCHEMA public TO assay_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO assay_app;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO assay_app;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO assay_app;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO assay_app;
REVOKE UPDATE, DELETE ON ledger_events, ledger_facts FROM assay_app;
REVOKE DELETE ON ledger_accounts, ledger_holds FROM assay_app;
REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM assay_app;

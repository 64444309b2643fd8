-- The gateway: what keys may do, calls from outside, conversations (O) --------------------------------

-- null: no such limit; an empty list of models: all of them. Patterns as `openai:*`.
ALTER TABLE api_keys
    ADD COLUMN profile             text NOT NULL DEFAULT '',
    ADD COLUMN models              text[] NOT NULL DEFAULT '{}',
    ADD COLUMN default_max_tokens  integer NOT NULL DEFAULT 2000 CHECK (default_max_tokens >= 1),
    ADD COLUMN requests_per_minute integer CHECK (requests_per_minute >= 1),
    ADD COLUMN tokens_per_minute   integer CHECK (tokens_per_minute >= 1),
    ADD COLUMN max_concurrent      integer CHECK (max_concurrent >= 1);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, created_at DESC);
ALTER TABLE tenants
    ADD COLUMN requests_per_minute integer CHECK (requests_per_minute >= 1),
    ADD COLUMN tokens_per_minute   integer CHECK (tokens_per_minute >= 1),
    ADD COLUMN max_concurrent      integer CHECK (max_concurrent >= 1);

-- The `choices` of a reply in OpenAI's protocol, as JSON; empty for an agent's call, which needs the text alone.
ALTER TABLE ledger_journal ADD COLUMN choices text NOT NULL DEFAULT '';

-- An outside caller's call by the id that it was given; a client's own retry is found by its request (O10).
ALTER TABLE ledger_holds ADD COLUMN client_call_id text NOT NULL DEFAULT '';
CREATE INDEX ledger_holds_of_clients ON ledger_holds (api_key_id, request_hash) WHERE client_call_id <> '';

-- For the copies in Redis: what changed lately. A block range index leaves a hot account's updates in their page.
CREATE INDEX ledger_accounts_by_change ON ledger_accounts USING brin (updated_at) WITH (pages_per_range = 16);

-- Conversations: turns in order, one at a time -------------------------------------------------------

-- A turn is taken with a token and given back with its messages; one that nobody gives back ends by itself.
CREATE TABLE conversations (
    tenant_id   text NOT NULL REFERENCES tenants,
    session_id  text NOT NULL,
    last_seq    integer NOT NULL DEFAULT 0,
    summary     text NOT NULL DEFAULT '',
    summary_seq integer NOT NULL DEFAULT 0,     -- the summary is of the messages up to here
    turn_token  text,
    turn_until  timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, session_id),
    CHECK (summary_seq <= last_seq)
);

CREATE INDEX conversations_by_tenant ON conversations (tenant_id, updated_at DESC);

CREATE TABLE conversation_messages (
    tenant_id  text NOT NULL,
    session_id text NOT NULL,
    seq        integer NOT NULL CHECK (seq >= 1),
    message    jsonb NOT NULL,                  -- as OpenAI's protocol has it
    call_id    uuid NOT NULL,                   -- the call whose turn it belongs to: appended once
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, session_id, seq),
    FOREIGN KEY (tenant_id, session_id) REFERENCES conversations ON DELETE CASCADE
);
CREATE INDEX conversation_messages_by_call ON conversation_messages (tenant_id, session_id, call_id);

-- Prices: dated lists, added and never changed (L11); the rates used are in each ledger event, too.

CREATE TABLE price_lists (
    version    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source     text NOT NULL,           -- 'own', or a catalogue with its version
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX price_lists_imported_once ON price_lists (source) WHERE source <> 'own';

CREATE TABLE prices (
    version                 bigint NOT NULL REFERENCES price_lists,
    provider                text NOT NULL,
    model                   text NOT NULL,
    unit                    text NOT NULL,
    above_tokens            integer NOT NULL DEFAULT 0 CHECK (above_tokens >= 0),
    nanodollars_per_million bigint NOT NULL CHECK (nanodollars_per_million >= 0),
    PRIMARY KEY (provider, model, version, unit, above_tokens)
);
CREATE TRIGGER price_lists_are_immutable BEFORE UPDATE OR DELETE ON price_lists
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prices_are_immutable BEFORE UPDATE OR DELETE ON prices
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What comes along costs nothing, until its operator says otherwise; calls to it pass the whole ledger.
INSERT INTO price_lists (source) VALUES ('embedded');
INSERT INTO prices (version, provider, model, unit, nanodollars_per_million)
SELECT version, 'assay', model, unit, 0
FROM price_lists,
     unnest(ARRAY['local', 'scripted']) model,
     unnest(ARRAY['tokens_in', 'tokens_out', 'tokens_cached']) unit;

-- How many tokens a family of models makes of a byte: calls by hundredths of a token, rounded up (L2).
CREATE TABLE token_ratios (
    family     text NOT NULL,
    hundredths smallint NOT NULL CHECK (hundredths BETWEEN 0 AND 1000),
    calls      bigint NOT NULL,
    PRIMARY KEY (family, hundredths)
);

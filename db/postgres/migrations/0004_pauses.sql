-- A batch that waits for money: where it came from, what refused, and by how much.

ALTER TABLE batches
    ADD COLUMN paused_from         varchar(50),
    ADD COLUMN paused_scope        text,
    ADD COLUMN missing_nanodollars bigint,
    ADD COLUMN resumptions         integer NOT NULL DEFAULT 0,  -- a pause dated before one is out of date
    ADD COLUMN resumptions_told    integer NOT NULL DEFAULT 0;  -- those that the workflow has heard of

CREATE INDEX batches_to_tell ON batches (updated_at) WHERE resumptions_told < resumptions;

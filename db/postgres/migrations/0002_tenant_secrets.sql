-- What only this database and its workers know of a tenant: it makes the marks that fence student text off
-- in prompts. Drawn for each row, from the server's strong random numbers.
ALTER TABLE tenants
    ADD COLUMN secret bytea NOT NULL DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

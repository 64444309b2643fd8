-- What a thread began as a copy of: the files' columns say it of their newest generation only (G2.6) ---------

ALTER TABLE agent_threads ADD COLUMN forked_thread_id text, ADD COLUMN forked_checkpoint_id text;

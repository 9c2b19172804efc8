-- One entry of the outbox may have many decisions, each of which may become a dead letter by itself. An entry that is none at
-- all has no number.
ALTER TABLE dead_letters DROP CONSTRAINT dead_letters_pk;
CREATE UNIQUE INDEX dead_letters_once ON dead_letters (partition, stream_id, coalesce(seq, -1));

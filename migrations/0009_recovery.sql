-- What a rebuild of Redis has to know even if it is interrupted, or followed by another one.
ALTER TABLE projection_positions
    -- A rebuild that withholds what lost decisions may have taken has begun, and has not ended.
    ADD COLUMN in_doubt   boolean NOT NULL DEFAULT false,
    -- An order of this partition that was PENDING by then may have been paid by a decision that is lost. Null: never.
    ADD COLUMN doubted_at timestamptz;

-- Whether a decision is a dead letter, and which is the last one.
CREATE INDEX dead_letters_by_seq ON dead_letters (partition, seq);

-- How far a rebuild in progress is: shown to operators.
ALTER TABLE recoveries
    -- prepare | empty | load | finish; null before the first
    ADD COLUMN step          text,
    ADD COLUMN rows_done     bigint NOT NULL DEFAULT 0,
    -- Null while it is unknown.
    ADD COLUMN rows_expected bigint,
    ADD COLUMN eta_seconds   double precision;

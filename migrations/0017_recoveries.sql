-- What happened to partitions whose data Redis lost, and what their recoveries did: shown to operators. No decision, and nothing that
-- a recovery depends on: rows may be removed at any time.
CREATE TABLE recoveries (
    id                 uuid        NOT NULL,
    partition          integer     NOT NULL,
    -- Why the partition was closed.
    reason             text        NOT NULL,
    -- The last decision that Redis had; null if it had lost the partition's state.
    found_seq          bigint,
    -- The last decision that any process had acknowledged, and the last one that PostgreSQL had.
    acknowledged_seq   bigint      NOT NULL,
    projected_seq      bigint      NOT NULL,
    -- Processes that may have acknowledged more, and ended before they could say so: ids, separated by commas.
    silent             text        NOT NULL,
    -- RUNNING | COMPLETE (nothing acknowledged is missing) | WITHHELD (what may be missing is withheld) | FAILED (tried again)
    outcome            text        NOT NULL,
    -- Why the recovery failed.
    detail             text        NOT NULL,
    epoch              bigint,
    -- The loss was noticed; the rebuild began; the partition decided again, or the rebuild failed.
    noticed_at         timestamptz NOT NULL,
    began_at           timestamptz NOT NULL,
    ended_at           timestamptz,
    CONSTRAINT recoveries_pk PRIMARY KEY (id),
    CONSTRAINT recoveries_outcome CHECK (outcome IN ('RUNNING', 'COMPLETE', 'WITHHELD', 'FAILED'))
);
CREATE INDEX recoveries_newest ON recoveries (began_at, id);

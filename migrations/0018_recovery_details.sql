-- Who began a recovery, how often it was tried, and what it withheld in its partition.
ALTER TABLE recoveries
    -- SERVICE (a process by itself) | OPERATOR (`firstcome rebuild`)
    ADD COLUMN begun_by          text    NOT NULL DEFAULT 'SERVICE',
    -- A recovery that failed, or whose process ended, is tried again in the same row.
    ADD COLUMN attempts          integer NOT NULL DEFAULT 1,
    -- The last decision that may be missing; null if it is unknown. None is missing up to projected_seq.
    ADD COLUMN missing_last_seq  bigint,
    ADD COLUMN withheld_units    bigint  NOT NULL DEFAULT 0,
    ADD COLUMN withheld_coupons  bigint  NOT NULL DEFAULT 0,
    ADD CONSTRAINT recoveries_begun_by CHECK (begun_by IN ('SERVICE', 'OPERATOR'));
CREATE INDEX recoveries_of_partition ON recoveries (partition, began_at, id);

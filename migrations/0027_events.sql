-- Every decision as an event, in the transaction that projects it. A week has its slot, and a slot is emptied as a whole once its week
-- is kept no longer.
CREATE TABLE events (
    slot smallint NOT NULL,
    partition integer NOT NULL,
    -- The place among the events of the partition: the decision, or the newest one when a dead letter was applied late.
    epoch bigint NOT NULL,
    seq bigint NOT NULL,
    late integer NOT NULL DEFAULT 0,
    -- The decision of a late event.
    late_seq bigint,
    type text NOT NULL,
    subject text NOT NULL,
    at timestamptz NOT NULL,
    -- JSON.
    data text NOT NULL,
    CONSTRAINT events_pk PRIMARY KEY (partition, epoch, seq, late, slot)
) PARTITION BY LIST (slot);
CREATE INDEX events_late ON events (partition, epoch, late_seq) WHERE late_seq IS NOT NULL;
CREATE TABLE events_0 PARTITION OF events FOR VALUES IN (0);
CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2);
CREATE TABLE events_3 PARTITION OF events FOR VALUES IN (3);
CREATE TABLE events_4 PARTITION OF events FOR VALUES IN (4);
CREATE TABLE events_5 PARTITION OF events FOR VALUES IN (5);
CREATE TABLE events_6 PARTITION OF events FOR VALUES IN (6);
CREATE TABLE events_7 PARTITION OF events FOR VALUES IN (7);
CREATE TABLE events_8 PARTITION OF events FOR VALUES IN (8);
CREATE TABLE events_9 PARTITION OF events FOR VALUES IN (9);
CREATE TABLE events_10 PARTITION OF events FOR VALUES IN (10);
CREATE TABLE events_11 PARTITION OF events FOR VALUES IN (11);
CREATE TABLE events_12 PARTITION OF events FOR VALUES IN (12);
CREATE TABLE events_13 PARTITION OF events FOR VALUES IN (13);
CREATE TABLE events_14 PARTITION OF events FOR VALUES IN (14);
CREATE TABLE events_15 PARTITION OF events FOR VALUES IN (15);

-- The place of the newest event, and the one after which none is missing; none while events are off, or before the first. A version
-- before this one moves the position alone, which ends the row of events.
ALTER TABLE projection_positions
    ADD COLUMN events_epoch bigint,
    ADD COLUMN events_seq bigint,
    ADD COLUMN events_late integer NOT NULL DEFAULT 0,
    ADD COLUMN events_after_epoch bigint,
    ADD COLUMN events_after_seq bigint,
    ADD COLUMN events_after_late integer NOT NULL DEFAULT 0;

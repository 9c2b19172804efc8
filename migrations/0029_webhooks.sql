-- Receivers of events, what is to be sent to them again, and the log of all attempts.
CREATE TABLE webhooks (
    id bigint GENERATED ALWAYS AS IDENTITY,
    url text NOT NULL,
    -- The types of its events; all if there are none.
    kinds text[] NOT NULL,
    description text NOT NULL,
    status text NOT NULL DEFAULT 'ON',
    key bytea NOT NULL,
    old_key bytea,
    old_key_until timestamptz,
    -- How far it was sent the events.
    cursor text NOT NULL,
    failing_since timestamptz,
    failures integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    -- The idempotency keys of the requests that created it, and that changed its key last.
    created_digest text,
    created_fingerprint text,
    rotated_digest text,
    rotated_fingerprint text,
    -- The process that sends, by PostgreSQL's clock.
    leased_by text,
    leased_until timestamptz,
    CONSTRAINT webhooks_pk PRIMARY KEY (id),
    CONSTRAINT webhooks_created_once UNIQUE (created_digest),
    CONSTRAINT webhooks_status CHECK (status IN ('ON', 'OFF', 'FAILED'))
);

CREATE TABLE webhook_retries (
    webhook_id bigint NOT NULL,
    partition integer NOT NULL,
    epoch bigint NOT NULL,
    seq bigint NOT NULL,
    late integer NOT NULL,
    event_id text NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    body text NOT NULL,
    attempts integer NOT NULL,
    first_failed_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    -- An operator sends it again.
    manual boolean NOT NULL,
    CONSTRAINT webhook_retries_pk PRIMARY KEY (webhook_id, partition, epoch, seq, late),
    CONSTRAINT webhook_retries_webhook FOREIGN KEY (webhook_id) REFERENCES webhooks (id) ON DELETE CASCADE
);

-- A day has its slot, and a slot is emptied as a whole once its day is kept no longer.
CREATE TABLE webhook_deliveries (
    slot smallint NOT NULL,
    webhook_id bigint NOT NULL,
    no bigint NOT NULL,
    event_id text NOT NULL,
    kind text NOT NULL,
    attempt integer NOT NULL,
    at timestamptz NOT NULL,
    took_ms integer NOT NULL,
    status smallint,
    failure text,
    manual boolean NOT NULL,
    CONSTRAINT webhook_deliveries_pk PRIMARY KEY (webhook_id, no, slot)
) PARTITION BY LIST (slot);
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (webhook_id, no) WHERE failure IS NOT NULL;
CREATE SEQUENCE webhook_deliveries_no;
CREATE TABLE webhook_deliveries_0 PARTITION OF webhook_deliveries FOR VALUES IN (0);
CREATE TABLE webhook_deliveries_1 PARTITION OF webhook_deliveries FOR VALUES IN (1);
CREATE TABLE webhook_deliveries_2 PARTITION OF webhook_deliveries FOR VALUES IN (2);
CREATE TABLE webhook_deliveries_3 PARTITION OF webhook_deliveries FOR VALUES IN (3);
CREATE TABLE webhook_deliveries_4 PARTITION OF webhook_deliveries FOR VALUES IN (4);
CREATE TABLE webhook_deliveries_5 PARTITION OF webhook_deliveries FOR VALUES IN (5);
CREATE TABLE webhook_deliveries_6 PARTITION OF webhook_deliveries FOR VALUES IN (6);
CREATE TABLE webhook_deliveries_7 PARTITION OF webhook_deliveries FOR VALUES IN (7);
CREATE TABLE webhook_deliveries_8 PARTITION OF webhook_deliveries FOR VALUES IN (8);
CREATE TABLE webhook_deliveries_9 PARTITION OF webhook_deliveries FOR VALUES IN (9);
CREATE TABLE webhook_deliveries_10 PARTITION OF webhook_deliveries FOR VALUES IN (10);
CREATE TABLE webhook_deliveries_11 PARTITION OF webhook_deliveries FOR VALUES IN (11);
CREATE TABLE webhook_deliveries_12 PARTITION OF webhook_deliveries FOR VALUES IN (12);
CREATE TABLE webhook_deliveries_13 PARTITION OF webhook_deliveries FOR VALUES IN (13);
CREATE TABLE webhook_deliveries_14 PARTITION OF webhook_deliveries FOR VALUES IN (14);
CREATE TABLE webhook_deliveries_15 PARTITION OF webhook_deliveries FOR VALUES IN (15);

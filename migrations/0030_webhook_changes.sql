-- A round that ends after an operator changed its webhook says nothing of it; an event that an operator sends again is kept beside the
-- same event that failed; and the answers to requests with idempotency keys are kept for the life of a key.
ALTER TABLE webhooks ADD COLUMN changes bigint NOT NULL DEFAULT 0;
ALTER TABLE webhooks DROP COLUMN created_digest, DROP COLUMN created_fingerprint, DROP COLUMN rotated_digest,
    DROP COLUMN rotated_fingerprint;
ALTER TABLE webhook_retries DROP CONSTRAINT webhook_retries_pk,
    ADD CONSTRAINT webhook_retries_pk PRIMARY KEY (webhook_id, partition, epoch, seq, late, manual);
CREATE TABLE webhook_requests (
    digest text NOT NULL,
    fingerprint text NOT NULL,
    webhook_id bigint NOT NULL,
    -- The key that was answered.
    key bytea NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT webhook_requests_pk PRIMARY KEY (digest)
);
CREATE INDEX webhook_requests_at ON webhook_requests (at);

-- Payments that an operator decided because their gateway could not say what became of them: who did, and why. UNCONFIRMED: the
-- operator said that it is approved, and the gateway is asked for its own word; DISPUTED: it never gave that.
ALTER TABLE payments
    ADD COLUMN resolved_by text,
    ADD COLUMN resolved_because text,
    DROP CONSTRAINT payments_status,
    ADD CONSTRAINT payments_status CHECK (status IN
        ('STARTED', 'PAID', 'DECLINED', 'WATCHED', 'REFUND_DUE', 'REFUNDED', 'UNCONFIRMED', 'DISPUTED'));

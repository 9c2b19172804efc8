-- What a rebuild of Redis needs to find here, beside what Redis decided.

-- Units and coupons that a rebuild keeps off sale because decisions which were lost may have taken them, until an operator
-- releases them. So the units of a product, and the coupons of a campaign, stay conserved throughout.
ALTER TABLE products
    ADD COLUMN withheld bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT products_units_not_negative,
    DROP CONSTRAINT products_units_conserved,
    ADD CONSTRAINT products_units_not_negative CHECK (on_sale >= 0 AND held >= 0 AND sold >= 0 AND withheld >= 0),
    ADD CONSTRAINT products_units_conserved CHECK (on_sale + held + sold + withheld = stocked);
ALTER TABLE campaigns
    ADD COLUMN withheld bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT campaigns_issued_bounds,
    ADD CONSTRAINT campaigns_issued_bounds CHECK (issued >= 0 AND withheld >= 0 AND issued + withheld <= total);

CREATE INDEX products_withheld ON products (id) WHERE withheld > 0;
CREATE INDEX campaigns_withheld ON campaigns (id) WHERE withheld > 0;

-- The day of the sale in the service's zone, which the rankings go by; orders paid before this column was there have none.
ALTER TABLE orders ADD COLUMN sold_on date;

-- WATCHED: declined, but the gateway could not say for certain, and is asked for a while yet.
-- The key is that of the request which waits for the gateway's verdict.
ALTER TABLE payments
    ADD COLUMN key_digest text,
    ADD COLUMN key_fingerprint text,
    DROP CONSTRAINT payments_status,
    ADD CONSTRAINT payments_status CHECK (status IN ('STARTED', 'PAID', 'DECLINED', 'WATCHED', 'REFUND_DUE', 'REFUNDED'));

-- Replies under idempotency keys, for as long as Redis keeps them (24 hours): repeats are recognised after its loss too.
CREATE TABLE idempotency_records (
    partition   integer     NOT NULL,
    digest      text        NOT NULL,
    fingerprint text        NOT NULL,
    -- The script's words, each preceded by its length: "4:PAID2:17".
    reply       text        NOT NULL,
    expires_at  timestamptz NOT NULL,
    CONSTRAINT idempotency_records_pk PRIMARY KEY (partition, digest)
);
CREATE INDEX idempotency_records_expiry ON idempotency_records (expires_at);

-- Stock held in one partition for an order at home in another; with one partition there is none.
CREATE TABLE stock_holds (
    partition integer NOT NULL,
    order_id  bigint  NOT NULL,
    user_id   bigint  NOT NULL,
    state     text    NOT NULL,
    -- "product:quantity:price,...", as the order has them.
    lines     text    NOT NULL,
    CONSTRAINT stock_holds_pk PRIMARY KEY (partition, order_id),
    CONSTRAINT stock_holds_state CHECK (state IN ('HELD', 'SETTLED', 'RELEASED', 'REFUNDED'))
);

-- Coupons issued to users at home in another partition, whose user_coupons row comes with that partition's own events.
CREATE TABLE far_coupons (
    coupon_id bigint      NOT NULL,
    user_id   bigint      NOT NULL,
    issue_no  bigint      NOT NULL,
    issued_at timestamptz NOT NULL,
    CONSTRAINT far_coupons_pk PRIMARY KEY (coupon_id, user_id),
    CONSTRAINT far_coupons_issue_no_unique UNIQUE (coupon_id, issue_no)
);

-- The last id of each sequence that was reserved under an idempotency key: its repeat creates under it, so nothing else may.
CREATE TABLE id_sequences (
    name text   NOT NULL,
    last bigint NOT NULL,
    CONSTRAINT id_sequences_pk PRIMARY KEY (name)
);

-- What the least careful process that ever served this store waits for before it answers a write. While that is
-- PostgreSQL's commit ('postgres'), nothing that anybody was told can be missing here.
ALTER TABLE store
    ADD COLUMN ack text NOT NULL DEFAULT 'redis',
    ADD CONSTRAINT store_ack CHECK (ack IN ('redis', 'postgres'));

-- The highest decision that any process was told of, as far as it could be written down: twice a second, by every process
-- whose Redis is sound. A Redis that knows less has lost decisions, whoever is left to remember them; and where the time
-- moves on, somebody is at work.
CREATE TABLE watermarks (
    partition integer     NOT NULL,
    epoch     bigint      NOT NULL,
    seq       bigint      NOT NULL,
    told_at   timestamptz NOT NULL,
    CONSTRAINT watermarks_pk PRIMARY KEY (partition)
);

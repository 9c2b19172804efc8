-- What Redis decided, remembered.
--
-- Redis is where every decision is taken; these tables are its projection, written by the projector alone, in batches that
-- move the position of their partition in the same transaction. So a row is here exactly once, and everything up to the
-- position is here.
--
-- Rows are related by foreign keys only where both sides are written from the same partition's stream, in its order: a
-- user's orders, payments and entries. A product or a campaign may be at home in another partition, whose events arrive in
-- their own time; there the audit watches instead.

-- Who this store is: compared with Redis at every start, so that neither is ever paired with somebody else's other half.
CREATE TABLE store (
    singleton  boolean     NOT NULL DEFAULT true,
    store      text        NOT NULL,
    partitions integer     NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT store_pk PRIMARY KEY (singleton),
    CONSTRAINT store_is_one CHECK (singleton),
    CONSTRAINT store_partitions_bounds CHECK (partitions BETWEEN 1 AND 256)
);

-- How far each partition is projected. The projector moves it with `WHERE stream_id = <where I read from>`, which is what
-- makes a batch count exactly once even when two projectors run.
CREATE TABLE projection_positions (
    partition  integer     NOT NULL,
    epoch      bigint      NOT NULL,
    seq        bigint      NOT NULL,
    stream_id  text        NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projection_positions_pk PRIMARY KEY (partition)
);

-- Entries of the outbox that could not be applied, with the reason: counted and kept, never blocking the rest.
CREATE TABLE dead_letters (
    partition   integer     NOT NULL,
    stream_id   text        NOT NULL,
    epoch       bigint,
    seq         bigint,
    reason      text        NOT NULL,
    fields      jsonb       NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dead_letters_pk PRIMARY KEY (partition, stream_id)
);

CREATE TABLE users (
    id         bigint      NOT NULL,
    name       text        NOT NULL,
    balance    bigint      NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT users_pk PRIMARY KEY (id),
    CONSTRAINT users_balance_not_negative CHECK (balance >= 0)
);

CREATE TABLE products (
    id         bigint      NOT NULL,
    name       text        NOT NULL,
    category   text        NOT NULL,
    price      bigint      NOT NULL,
    on_sale    bigint      NOT NULL,
    held       bigint      NOT NULL,
    sold       bigint      NOT NULL,
    stocked    bigint      NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT products_pk PRIMARY KEY (id),
    CONSTRAINT products_price_not_negative CHECK (price >= 0),
    -- Never oversold, here too; and units only ever move, they are not made or lost.
    CONSTRAINT products_units_not_negative CHECK (on_sale >= 0 AND held >= 0 AND sold >= 0),
    CONSTRAINT products_units_conserved CHECK (on_sale + held + sold = stocked)
);

CREATE TABLE campaigns (
    id              bigint      NOT NULL,
    code            text        NOT NULL,
    discount_type   text        NOT NULL,
    discount_amount bigint      NOT NULL,
    total           bigint      NOT NULL,
    issued          bigint      NOT NULL,
    opens_at        timestamptz NOT NULL,
    closes_at       timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    CONSTRAINT campaigns_pk PRIMARY KEY (id),
    CONSTRAINT campaigns_discount CHECK (
        (discount_type = 'PERCENTAGE' AND discount_amount BETWEEN 1 AND 100)
        OR (discount_type = 'FIXED' AND discount_amount >= 1)),
    -- Never over-issued, here too.
    CONSTRAINT campaigns_issued_bounds CHECK (issued BETWEEN 0 AND total)
);

CREATE TABLE user_coupons (
    coupon_id bigint      NOT NULL,
    user_id   bigint      NOT NULL,
    issue_no  bigint      NOT NULL,
    status    text        NOT NULL,
    order_id  bigint,
    issued_at timestamptz NOT NULL,
    used_at   timestamptz,
    -- One coupon of a campaign per user, and one user per place in the queue.
    CONSTRAINT user_coupons_pk PRIMARY KEY (coupon_id, user_id),
    CONSTRAINT user_coupons_issue_no_unique UNIQUE (coupon_id, issue_no),
    CONSTRAINT user_coupons_user_fk FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT user_coupons_status CHECK (
        (status = 'AVAILABLE' AND order_id IS NULL AND used_at IS NULL)
        OR (status = 'HELD' AND order_id IS NOT NULL AND used_at IS NULL)
        OR (status = 'USED' AND order_id IS NOT NULL AND used_at IS NOT NULL))
);
CREATE INDEX user_coupons_user ON user_coupons (user_id);

CREATE TABLE orders (
    id           bigint      NOT NULL,
    user_id      bigint      NOT NULL,
    status       text        NOT NULL,
    total        bigint      NOT NULL,
    discount     bigint      NOT NULL,
    final_price  bigint      NOT NULL,
    coupon_id    bigint,
    placed_at    timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    paid_at      timestamptz,
    closed_at    timestamptz,
    close_reason text,
    CONSTRAINT orders_pk PRIMARY KEY (id),
    CONSTRAINT orders_user_fk FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT orders_price CHECK (discount BETWEEN 0 AND total AND final_price = total - discount),
    CONSTRAINT orders_status CHECK (
        (status = 'PENDING' AND paid_at IS NULL AND closed_at IS NULL)
        OR (status = 'PAID' AND paid_at IS NOT NULL AND closed_at IS NULL)
        OR (status = 'FAILED' AND paid_at IS NULL AND closed_at IS NOT NULL AND close_reason = 'PAYMENT_DECLINED')
        OR (status = 'CANCELLED' AND closed_at IS NOT NULL
            AND close_reason IN ('CANCELLED_BY_USER', 'EXPIRED', 'REFUNDED')
            AND (close_reason = 'REFUNDED') = (paid_at IS NOT NULL)))
);
-- The operators' listing: newest first, of a user or of a status.
CREATE INDEX orders_user ON orders (user_id, id DESC);
CREATE INDEX orders_status_newest ON orders (status, id DESC);

CREATE TABLE order_lines (
    order_id   bigint  NOT NULL,
    product_id bigint  NOT NULL,
    quantity   bigint  NOT NULL,
    price      bigint  NOT NULL,
    CONSTRAINT order_lines_pk PRIMARY KEY (order_id, product_id),
    CONSTRAINT order_lines_order_fk FOREIGN KEY (order_id) REFERENCES orders (id),
    CONSTRAINT order_lines_quantity_bounds CHECK (quantity BETWEEN 1 AND 10000),
    CONSTRAINT order_lines_price_not_negative CHECK (price >= 0)
);

CREATE TABLE payments (
    id             bigint      NOT NULL,
    order_id       bigint      NOT NULL,
    user_id        bigint      NOT NULL,
    payment_type   text        NOT NULL,
    -- BALANCE: from the user's balance. GATEWAY: by an external gateway, under `receipt`.
    method         text        NOT NULL,
    status         text        NOT NULL,
    amount         bigint      NOT NULL,
    receipt        text        NOT NULL,
    transaction_id text,
    started_at     timestamptz NOT NULL,
    paid_at        timestamptz,
    ended_at       timestamptz,
    CONSTRAINT payments_pk PRIMARY KEY (id),
    CONSTRAINT payments_receipt_unique UNIQUE (receipt),
    CONSTRAINT payments_order_fk FOREIGN KEY (order_id) REFERENCES orders (id),
    CONSTRAINT payments_method CHECK (method IN ('BALANCE', 'GATEWAY')),
    CONSTRAINT payments_status CHECK (status IN ('STARTED', 'PAID', 'DECLINED', 'REFUND_DUE', 'REFUNDED')),
    CONSTRAINT payments_amount_not_negative CHECK (amount >= 0)
);
-- An order is paid once.
CREATE UNIQUE INDEX payments_one_per_order ON payments (order_id);

CREATE TABLE balance_entries (
    user_id          bigint      NOT NULL,
    -- Counts a user's entries from 1 without gaps.
    entry_no         bigint      NOT NULL,
    transaction_type text        NOT NULL,
    amount           bigint      NOT NULL,
    before_balance   bigint      NOT NULL,
    after_balance    bigint      NOT NULL,
    order_id         bigint,
    created_at       timestamptz NOT NULL,
    CONSTRAINT balance_entries_pk PRIMARY KEY (user_id, entry_no),
    CONSTRAINT balance_entries_user_fk FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT balance_entries_not_negative CHECK (amount > 0 AND before_balance >= 0 AND after_balance >= 0),
    CONSTRAINT balance_entries_sum CHECK (
        after_balance = before_balance
            + CASE transaction_type WHEN 'PAYMENT' THEN -amount WHEN 'CHARGE' THEN amount WHEN 'REFUND' THEN amount END)
);

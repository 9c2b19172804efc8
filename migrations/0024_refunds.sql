-- Refunds of parts of orders, and refunded units that stay off sale.

ALTER TABLE orders
    -- The won, and the number, of the parts that were refunded. The refund of what is left (close_reason) is not one of them.
    ADD COLUMN refunded         bigint  NOT NULL DEFAULT 0,
    ADD COLUMN refunds          integer NOT NULL DEFAULT 0,
    -- The operator who refunded what was left, and the reason.
    ADD COLUMN refunded_by      text,
    ADD COLUMN refunded_because text,
    ADD CONSTRAINT orders_refunded_of_price CHECK (refunded BETWEEN 0 AND final_price) NOT VALID;

ALTER TABLE order_lines
    -- Units that parts have refunded.
    ADD COLUMN refunded    bigint NOT NULL DEFAULT 0,
    -- Refunded units, of parts and of what was left, that stay off sale.
    ADD COLUMN quarantined bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT order_lines_refunded_of_quantity CHECK (refunded BETWEEN 0 AND quantity) NOT VALID,
    ADD CONSTRAINT order_lines_quarantined_of_quantity CHECK (quarantined BETWEEN 0 AND quantity) NOT VALID;

-- Refunded units that stay off sale, in the partition of the order.
ALTER TABLE products
    ADD COLUMN quarantined bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT products_units_not_negative,
    DROP CONSTRAINT products_units_conserved,
    ADD CONSTRAINT products_units_not_negative CHECK (
        on_sale >= 0 AND held >= 0 AND sold >= 0 AND withheld >= 0 AND quarantined >= 0 AND allotted >= 0),
    ADD CONSTRAINT products_units_conserved CHECK (on_sale + held + sold + withheld + quarantined + allotted = stocked);
ALTER TABLE partition_stock
    ADD COLUMN quarantined bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT partition_stock_not_negative,
    DROP CONSTRAINT partition_stock_conserved,
    ADD CONSTRAINT partition_stock_not_negative CHECK (
        on_sale >= 0 AND held >= 0 AND sold >= 0 AND withheld >= 0 AND quarantined >= 0 AND received >= 0 AND returned >= 0
            AND surrendered >= 0),
    ADD CONSTRAINT partition_stock_conserved CHECK (
        on_sale + held + sold + withheld + quarantined = received - returned - surrendered);

-- The refunded parts of each order.
CREATE TABLE order_refunds (
    order_id    bigint      NOT NULL,
    -- From 1 on.
    part        integer     NOT NULL,
    -- Its share of the price (won).
    amount      bigint      NOT NULL CHECK (amount >= 0),
    -- 'product:units:price,...'
    lines       text        NOT NULL,
    -- Whether the units stay off sale.
    quarantined boolean     NOT NULL,
    -- The operator who refunded it, and the reason. NULL: its user did.
    refunded_by text,
    reason      text,
    -- REFUND_DUE until the gateway has refunded it, then REFUNDED.
    status      text        NOT NULL CHECK (status IN ('REFUND_DUE', 'REFUNDED')),
    refunded_at timestamptz NOT NULL,
    -- When the gateway had refunded it; NULL for a refund to the balance.
    ended_at    timestamptz,
    PRIMARY KEY (order_id, part)
);

-- Parts that a gateway owes: a rebuild loads their orders.
CREATE INDEX order_refunds_due ON order_refunds (order_id) WHERE status = 'REFUND_DUE';

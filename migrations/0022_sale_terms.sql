-- When products are on sale, and how many units a user may have.

ALTER TABLE products
    -- The first instant at which the product is on sale, and the first one at which it no longer is. NULL: always.
    ADD COLUMN opens_at       timestamptz,
    ADD COLUMN closes_at      timestamptz,
    -- Units, held and paid, of one user. NULL: no limit.
    ADD COLUMN limit_per_user bigint,
    -- Products that share the limit.
    ADD COLUMN limit_group    text,
    ADD CONSTRAINT products_window_not_empty CHECK (opens_at < closes_at),
    ADD CONSTRAINT products_limit_positive CHECK (limit_per_user > 0),
    ADD CONSTRAINT products_group_limited CHECK (limit_group IS NULL OR limit_per_user IS NOT NULL);

-- The group whose limit the units of a line count against, '' for the product's own limit. NULL: they count against none.
ALTER TABLE order_lines ADD COLUMN limit_group text;
CREATE INDEX order_lines_limited ON order_lines (order_id) WHERE limit_group IS NOT NULL;

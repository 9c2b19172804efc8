-- The place of a line in its order, as its user was shown it: closed orders are read here once they have left Redis, and a
-- repeat under an idempotency key gets the same bytes as before. Lines written before this column was there have none, and
-- come by product.
ALTER TABLE order_lines ADD COLUMN place integer NOT NULL DEFAULT 0;

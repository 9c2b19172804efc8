-- Paying for an order changes its row in place, and writes no index: no index covers a column that a payment changes. So none
-- covers the status. The listings by status read the orders newest first and skip those of another status; those that were
-- closed, a minority that a payment never touches, have an index of their own.
--
-- The indexes ascend, and are read backwards: a new order then joins the last page, which PostgreSQL finds without a descent and
-- fills whole.
CREATE INDEX orders_newest ON orders (placed_at, id);
CREATE INDEX orders_closed_newest ON orders (placed_at, id) WHERE closed_at IS NOT NULL;
CREATE INDEX orders_newest_of_user ON orders (user_id, placed_at, id);
DROP INDEX orders_of_status_newest;
DROP INDEX orders_of_user_newest;

-- "Newest first" is by time. Ids are handed out to processes in blocks, so that of two orders the one with the higher id need not
-- be the newer one. The listing of all orders merges those of each status, so that it needs no index of its own.
CREATE INDEX orders_of_user_newest ON orders (user_id, placed_at DESC, id DESC);
CREATE INDEX orders_of_status_newest ON orders (status, placed_at DESC, id DESC);
DROP INDEX orders_user;
DROP INDEX orders_status_newest;

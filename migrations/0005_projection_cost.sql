-- What a decision costs here, at tens of thousands a second.

-- The foreign keys were checked row by row, each check locking (so writing) the row that it finds. The projector alone writes
-- these tables, in the order of the stream; its inserts join what they refer to, so that a row that refers to nothing fails
-- its batch as before; the lines of an order come with it; and the audit looks for what refers to nothing.
ALTER TABLE user_coupons DROP CONSTRAINT user_coupons_user_fk;
ALTER TABLE orders DROP CONSTRAINT orders_user_fk;
ALTER TABLE order_lines DROP CONSTRAINT order_lines_order_fk;
ALTER TABLE payments DROP CONSTRAINT payments_order_fk;
ALTER TABLE balance_entries DROP CONSTRAINT balance_entries_user_fk;

-- One index where two were: a user's coupons come first, and those of a campaign are found by their places in it.
ALTER TABLE user_coupons
    DROP CONSTRAINT user_coupons_pk,
    ADD CONSTRAINT user_coupons_pk PRIMARY KEY (user_id, coupon_id);
DROP INDEX user_coupons_user;

-- Rows that change once or twice after they are written find room in their own page.
ALTER TABLE users SET (fillfactor = 80);
ALTER TABLE orders SET (fillfactor = 80);
ALTER TABLE user_coupons SET (fillfactor = 85);
ALTER TABLE products SET (fillfactor = 50);
ALTER TABLE campaigns SET (fillfactor = 50);

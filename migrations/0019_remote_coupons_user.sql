-- The audit reads the coupons of users of other partitions by user.
CREATE INDEX remote_coupons_user ON remote_coupons (user_id);

-- The operators' log, the acknowledged positions and the coupons of remote users get the names that the code and the API have.
--
-- Processes of the version before this one keep running during an upgrade. So each table has a view under its old name with its
-- old columns; PostgreSQL passes reads and writes of such a view on to the table. A later migration drops the views.

ALTER TABLE operator_acts RENAME TO operator_log;
ALTER TABLE operator_log RENAME COLUMN act TO action;
ALTER TABLE operator_log RENAME CONSTRAINT operator_acts_pk TO operator_log_pk;
ALTER INDEX operator_acts_newest RENAME TO operator_log_newest;
ALTER INDEX operator_acts_of_operator RENAME TO operator_log_of_operator;
CREATE VIEW operator_acts AS
    SELECT id, operator, action AS act, target, detail, status, request_id, at FROM operator_log;

-- The highest position of a partition that any process acknowledged, and when a process last recorded it.
ALTER TABLE watermarks RENAME TO acknowledged_positions;
ALTER TABLE acknowledged_positions RENAME COLUMN told_at TO acknowledged_at;
ALTER TABLE acknowledged_positions RENAME CONSTRAINT watermarks_pk TO acknowledged_positions_pk;
CREATE VIEW watermarks AS
    SELECT partition, epoch, seq, acknowledged_at AS told_at FROM acknowledged_positions;

-- Coupons issued to users of another partition.
ALTER TABLE far_coupons RENAME TO remote_coupons;
ALTER TABLE remote_coupons RENAME CONSTRAINT far_coupons_pk TO remote_coupons_pk;
ALTER TABLE remote_coupons RENAME CONSTRAINT far_coupons_issue_no_unique TO remote_coupons_issue_no_unique;
CREATE VIEW far_coupons AS
    SELECT coupon_id, user_id, issue_no, issued_at FROM remote_coupons;

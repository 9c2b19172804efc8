-- The role of the operator at the time of the action. NULL: an action of the service or the command line, or an entry of an
-- earlier version, which may still write beside this one.
ALTER TABLE operator_log ADD COLUMN role text;

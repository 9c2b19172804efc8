-- Users that are brought in from elsewhere, and those that are forgotten. When the name was last changed; NULL while it is the first
-- one: the audit compares only that with the event that created the user. When the user was forgotten: the name is empty since.

ALTER TABLE users ADD COLUMN renamed_at timestamptz, ADD COLUMN forgotten_at timestamptz;

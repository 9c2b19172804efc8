-- Who did what: operators' acts, written after each by the process that carried it out. No decision, and nothing that the
-- books depend on: rows may be removed at any time once nobody needs them.
CREATE TABLE operator_acts (
    -- Given by the process, so that a row whose writing was not confirmed is written once all the same.
    id         uuid        NOT NULL,
    operator   text        NOT NULL,
    -- Method and route, as documented: "PATCH /admin/v1/coupons/{couponId}".
    act        text        NOT NULL,
    -- What it was about: "couponId=7"; empty where that is nothing in particular.
    target     text        NOT NULL,
    -- What was asked for, as JSON, shortened; empty where nothing was, or it could not be read.
    detail     text        NOT NULL,
    -- The status of the reply.
    status     integer     NOT NULL,
    request_id text        NOT NULL,
    at         timestamptz NOT NULL,
    CONSTRAINT operator_acts_pk PRIMARY KEY (id)
);
CREATE INDEX operator_acts_newest ON operator_acts (at DESC, id DESC);
CREATE INDEX operator_acts_of_operator ON operator_acts (operator, at DESC, id DESC);

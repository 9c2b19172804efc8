-- What requests each process of the service answered over the last seconds, as it says itself once a second: for the dashboard of
-- any of them. Of no use after a crash, so not in the log of changes.
CREATE UNLOGGED TABLE instance_requests (
    -- Of the process, minted when it starts.
    instance    uuid        NOT NULL,
    -- By this server's clock.
    reported_at timestamptz NOT NULL,
    -- JSON, as the program of that version writes it.
    report      text        NOT NULL,
    CONSTRAINT instance_requests_pk PRIMARY KEY (instance)
) WITH (fillfactor = 50);

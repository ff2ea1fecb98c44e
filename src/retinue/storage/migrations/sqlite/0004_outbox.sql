-- What other services have still to be told: per sink and session, which places of its chain.
CREATE TABLE outbox (
    sink TEXT NOT NULL,
    owner TEXT NOT NULL,
    session_id TEXT NOT NULL,
    first_n INTEGER NOT NULL,
    last_n INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    worker TEXT,
    error TEXT,
    failed_at INTEGER,
    PRIMARY KEY (sink, owner, session_id)
) WITHOUT ROWID;

CREATE INDEX outbox_due ON outbox (sink, due_at) WHERE worker IS NULL;
CREATE INDEX outbox_claimed ON outbox (sink) WHERE worker IS NOT NULL;
CREATE INDEX outbox_failed ON outbox (sink, failed_at) WHERE failed_at IS NOT NULL;

-- What a sink will not take.
CREATE TABLE parked (
    sink TEXT NOT NULL,
    owner TEXT NOT NULL,
    session_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    contract_id TEXT NOT NULL,
    tries INTEGER NOT NULL,
    error TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (sink, owner, session_id, n)
) WITHOUT ROWID;

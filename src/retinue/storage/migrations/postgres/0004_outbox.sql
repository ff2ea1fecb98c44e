-- What other services have still to be told: per sink and session, which places of its chain.
CREATE TABLE outbox (
    sink TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    first_n BIGINT NOT NULL,
    last_n BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    worker TEXT COLLATE "C",
    error TEXT COLLATE "C",
    failed_at BIGINT,
    PRIMARY KEY (sink, owner, session_id)
);

CREATE INDEX outbox_due ON outbox (sink, due_at) WHERE worker IS NULL;
CREATE INDEX outbox_claimed ON outbox (sink) WHERE worker IS NOT NULL;
CREATE INDEX outbox_failed ON outbox (sink, failed_at) WHERE failed_at IS NOT NULL;

-- What a sink will not take.
CREATE TABLE parked (
    sink TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    n BIGINT NOT NULL,
    contract_id TEXT COLLATE "C" NOT NULL,
    tries BIGINT NOT NULL,
    error TEXT COLLATE "C" NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (sink, owner, session_id, n)
);

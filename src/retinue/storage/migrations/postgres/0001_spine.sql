-- Times are microseconds UTC. Bodies and hashes are exact bytes. Ids are ULIDs.

CREATE TABLE worker (
    id TEXT COLLATE "C" PRIMARY KEY,
    node TEXT COLLATE "C" NOT NULL,
    pid BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    lease_until BIGINT,
    last_batch BIGINT NOT NULL DEFAULT 0,
    stopped_at BIGINT
);

CREATE TABLE session (
    owner TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    n BIGINT NOT NULL,
    head BYTEA NOT NULL,
    completed BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    PRIMARY KEY (owner, session_id)
);

CREATE TABLE execution (
    id TEXT COLLATE "C" PRIMARY KEY,
    owner TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    from_agent TEXT COLLATE "C" NOT NULL,
    agent_id TEXT COLLATE "C",
    capability TEXT COLLATE "C",
    queue_key TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C" NOT NULL,
    priority BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    worker TEXT COLLATE "C",
    delivery TEXT COLLATE "C" NOT NULL,
    max_attempts BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    deadline_at BIGINT,
    run_at BIGINT NOT NULL,
    cancel_requested_at BIGINT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    outcome TEXT COLLATE "C",
    error_code TEXT COLLATE "C",
    cursor TEXT COLLATE "C",
    request_id TEXT COLLATE "C" NOT NULL,
    request_n BIGINT NOT NULL,
    response_id TEXT COLLATE "C",
    response_n BIGINT,
    parent_id TEXT COLLATE "C",
    depth BIGINT NOT NULL
);

-- What a lease probes: one key at a time, never the whole queue.
CREATE INDEX execution_queue ON execution (queue_key, priority DESC, id) WHERE state = 'queued';
-- What a start-up takes over.
CREATE INDEX execution_active ON execution (worker) WHERE state IN ('running', 'input_required');
CREATE INDEX execution_deadline ON execution (deadline_at)
    WHERE state = 'queued' AND deadline_at IS NOT NULL;

CREATE TABLE event (
    execution_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    type TEXT COLLATE "C" NOT NULL,
    at BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (execution_id, seq)
);

-- At most one terminal event, whatever the code above believes.
CREATE UNIQUE INDEX event_terminal ON event (execution_id)
    WHERE type IN ('completed', 'failed', 'cancelled');

CREATE TABLE contract (
    owner TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    n BIGINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    type TEXT COLLATE "C" NOT NULL,
    from_agent TEXT COLLATE "C" NOT NULL,
    to_agent TEXT COLLATE "C",
    capability TEXT COLLATE "C",
    status TEXT COLLATE "C",
    execution_id TEXT COLLATE "C",
    at BIGINT NOT NULL,
    body BYTEA,
    body_hash BYTEA NOT NULL,
    digest BYTEA,
    hash BYTEA NOT NULL,
    PRIMARY KEY (owner, session_id, n)
);

CREATE TABLE question (
    id TEXT COLLATE "C" PRIMARY KEY,
    execution_id TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    prompt TEXT COLLATE "C" NOT NULL,
    schema BYTEA,
    state TEXT COLLATE "C" NOT NULL,
    answer BYTEA,
    answered_by TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);

CREATE INDEX question_open ON question (id) WHERE state = 'open';
CREATE INDEX question_execution ON question (execution_id) WHERE state = 'open';

CREATE TABLE idempotency (
    owner TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    fingerprint BYTEA NOT NULL,
    execution_id TEXT COLLATE "C" NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (owner, key)
);

CREATE TABLE tally (
    agent_id TEXT COLLATE "C" PRIMARY KEY,
    completed BIGINT NOT NULL,
    failed BIGINT NOT NULL
);

CREATE TABLE api_key (
    id TEXT COLLATE "C" PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    role TEXT COLLATE "C" NOT NULL,
    hash TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);

CREATE TABLE audit (
    n BIGINT PRIMARY KEY,
    at BIGINT NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    actor TEXT COLLATE "C" NOT NULL,
    action TEXT COLLATE "C" NOT NULL,
    target TEXT COLLATE "C" NOT NULL,
    outcome TEXT COLLATE "C" NOT NULL,
    detail BYTEA NOT NULL,
    hash BYTEA NOT NULL
);

-- The head of the audit chain; on PostgreSQL its row lock orders the writers.
CREATE TABLE audit_head (
    one BIGINT PRIMARY KEY CHECK (one = 1),
    n BIGINT NOT NULL,
    hash BYTEA NOT NULL
);
INSERT INTO audit_head VALUES (1, 0, decode(repeat('00', 32), 'hex'));

-- Contracts, events and the audit are written once.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '% is insert-only', TG_TABLE_NAME; END $$;
CREATE TRIGGER contract_fixed BEFORE UPDATE ON contract FOR EACH ROW
WHEN (NEW.body IS NOT NULL OR NEW.hash IS DISTINCT FROM OLD.hash
      OR NEW.body_hash IS DISTINCT FROM OLD.body_hash)
EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_fixed BEFORE UPDATE OR DELETE ON audit FOR EACH ROW
EXECUTE FUNCTION refuse_change();
CREATE TRIGGER event_fixed BEFORE UPDATE ON event FOR EACH ROW EXECUTE FUNCTION refuse_change();

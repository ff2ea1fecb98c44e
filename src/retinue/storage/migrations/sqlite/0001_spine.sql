-- Times are microseconds UTC. Bodies and hashes are exact bytes. Ids are ULIDs.

CREATE TABLE worker (
    id TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    lease_until INTEGER,
    last_batch INTEGER NOT NULL DEFAULT 0,
    stopped_at INTEGER
) WITHOUT ROWID;

CREATE TABLE session (
    owner TEXT NOT NULL,
    session_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    n INTEGER NOT NULL,
    head BLOB NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    PRIMARY KEY (owner, session_id)
) WITHOUT ROWID;

CREATE TABLE execution (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    created_by TEXT NOT NULL,
    session_id TEXT NOT NULL,
    from_agent TEXT NOT NULL,
    agent_id TEXT,
    capability TEXT,
    queue_key TEXT NOT NULL,
    state TEXT NOT NULL,
    priority INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT,
    delivery TEXT NOT NULL,
    max_attempts INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    digest BLOB NOT NULL,
    deadline_at INTEGER,
    run_at INTEGER NOT NULL,
    cancel_requested_at INTEGER,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    outcome TEXT,
    error_code TEXT,
    cursor TEXT,
    request_id TEXT NOT NULL,
    request_n INTEGER NOT NULL,
    response_id TEXT,
    response_n INTEGER,
    parent_id TEXT,
    depth INTEGER NOT NULL
) WITHOUT ROWID;

-- What a lease probes: one key at a time, never the whole queue.
CREATE INDEX execution_queue ON execution (queue_key, priority DESC, id) WHERE state = 'queued';
-- What a start-up takes over.
CREATE INDEX execution_active ON execution (worker) WHERE state IN ('running', 'input_required');
CREATE INDEX execution_deadline ON execution (deadline_at)
    WHERE state = 'queued' AND deadline_at IS NOT NULL;

CREATE TABLE event (
    execution_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    at INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (execution_id, seq)
) WITHOUT ROWID;

-- At most one terminal event, whatever the code above believes.
CREATE UNIQUE INDEX event_terminal ON event (execution_id)
    WHERE type IN ('completed', 'failed', 'cancelled');

CREATE TABLE contract (
    owner TEXT NOT NULL,
    session_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    from_agent TEXT NOT NULL,
    to_agent TEXT,
    capability TEXT,
    status TEXT,
    execution_id TEXT,
    at INTEGER NOT NULL,
    body BLOB,
    body_hash BLOB NOT NULL,
    digest BLOB,
    hash BLOB NOT NULL,
    PRIMARY KEY (owner, session_id, n)
) WITHOUT ROWID;

CREATE TABLE question (
    id TEXT PRIMARY KEY,
    execution_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    owner TEXT NOT NULL,
    prompt TEXT NOT NULL,
    schema BLOB,
    state TEXT NOT NULL,
    answer BLOB,
    answered_by TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) WITHOUT ROWID;

CREATE INDEX question_open ON question (id) WHERE state = 'open';
CREATE INDEX question_execution ON question (execution_id) WHERE state = 'open';

CREATE TABLE idempotency (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    execution_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) WITHOUT ROWID;

CREATE TABLE tally (
    agent_id TEXT PRIMARY KEY,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    role TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) WITHOUT ROWID;

CREATE TABLE audit (
    n INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    owner TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail BLOB NOT NULL,
    hash BLOB NOT NULL
);

-- The head of the audit chain; on PostgreSQL its row lock orders the writers.
CREATE TABLE audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    n INTEGER NOT NULL,
    hash BLOB NOT NULL
);
INSERT INTO audit_head VALUES (1, 0, zeroblob(32));

-- Contracts, events and the audit are written once.
CREATE TRIGGER contract_fixed BEFORE UPDATE ON contract
WHEN NEW.body IS NOT NULL OR NEW.hash IS NOT OLD.hash OR NEW.body_hash IS NOT OLD.body_hash
BEGIN SELECT RAISE(ABORT, 'contracts are insert-only'); END;
CREATE TRIGGER audit_fixed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is insert-only'); END;
CREATE TRIGGER audit_kept BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is insert-only'); END;
CREATE TRIGGER event_fixed BEFORE UPDATE ON event
BEGIN SELECT RAISE(ABORT, 'events are insert-only'); END;

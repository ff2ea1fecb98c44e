-- Processes that we supervise: what is needed to find each again, and how it ended.
CREATE TABLE instance (
    instance_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    driver TEXT NOT NULL,
    node TEXT NOT NULL,
    worker TEXT NOT NULL,
    execution_id TEXT,
    attempt INTEGER,
    state TEXT NOT NULL,
    kept INTEGER NOT NULL,
    handle BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    state_at INTEGER NOT NULL,
    ended_at INTEGER,
    reason TEXT,
    exit_code INTEGER,
    exit_signal INTEGER,
    cpu_us INTEGER NOT NULL,
    peak_bytes INTEGER NOT NULL,
    messages_in INTEGER NOT NULL,
    messages_out INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX instance_live ON instance (worker) WHERE ended_at IS NULL;
CREATE INDEX instance_ended ON instance (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX instance_agent ON instance (agent_id, instance_id);
CREATE INDEX instance_execution ON instance (execution_id) WHERE execution_id IS NOT NULL;

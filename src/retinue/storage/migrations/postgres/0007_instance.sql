-- Processes that we supervise: what is needed to find each again, and how it ended.
CREATE TABLE instance (
    instance_id TEXT COLLATE "C" PRIMARY KEY,
    owner TEXT COLLATE "C" NOT NULL,
    agent_id TEXT COLLATE "C" NOT NULL,
    driver TEXT COLLATE "C" NOT NULL,
    node TEXT COLLATE "C" NOT NULL,
    worker TEXT COLLATE "C" NOT NULL,
    execution_id TEXT COLLATE "C",
    attempt BIGINT,
    state TEXT COLLATE "C" NOT NULL,
    kept BIGINT NOT NULL,
    handle BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    state_at BIGINT NOT NULL,
    ended_at BIGINT,
    reason TEXT COLLATE "C",
    exit_code BIGINT,
    exit_signal BIGINT,
    cpu_us BIGINT NOT NULL,
    peak_bytes BIGINT NOT NULL,
    messages_in BIGINT NOT NULL,
    messages_out BIGINT NOT NULL
);

CREATE INDEX instance_live ON instance (worker) WHERE ended_at IS NULL;
CREATE INDEX instance_ended ON instance (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX instance_agent ON instance (agent_id, instance_id);
CREATE INDEX instance_execution ON instance (execution_id) WHERE execution_id IS NOT NULL;

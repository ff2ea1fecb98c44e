-- Agents that were registered through the API. No row is deleted: an end is written into it.
CREATE TABLE agent_definition (
    id TEXT COLLATE "C" NOT NULL,
    agent_id TEXT COLLATE "C" NOT NULL,
    revision BIGINT NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    driver TEXT COLLATE "C" NOT NULL,
    definition BYTEA NOT NULL,
    fingerprint BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    removed_at BIGINT,
    removed_by TEXT COLLATE "C",
    PRIMARY KEY (agent_id, revision)
);

CREATE UNIQUE INDEX agent_registered ON agent_definition (agent_id) WHERE removed_at IS NULL;

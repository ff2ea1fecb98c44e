-- Agents that were registered through the API. No row is deleted: an end is written into it.
CREATE TABLE agent_definition (
    id TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    owner TEXT NOT NULL,
    created_by TEXT NOT NULL,
    driver TEXT NOT NULL,
    definition BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    removed_at INTEGER,
    removed_by TEXT,
    PRIMARY KEY (agent_id, revision)
) WITHOUT ROWID;

CREATE UNIQUE INDEX agent_registered ON agent_definition (agent_id) WHERE removed_at IS NULL;

-- Retention and erasure: what is gone leaves a mark that names the audit row which says so.

-- Where the chain of a session begins whose first contracts were removed.
CREATE TABLE checkpoint (
    owner TEXT NOT NULL,
    session_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    hash BLOB NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    began INTEGER NOT NULL,
    latest INTEGER NOT NULL,
    audit_n INTEGER NOT NULL,
    PRIMARY KEY (owner, session_id)
) WITHOUT ROWID;

-- Executions (and contracts that have none) of which something was removed or erased.
CREATE TABLE mark (
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    audit_n INTEGER NOT NULL,
    at INTEGER NOT NULL,
    pending INTEGER NOT NULL,
    PRIMARY KEY (id, kind)
) WITHOUT ROWID;
CREATE INDEX mark_pending ON mark (kind, id) WHERE pending = 1;

-- The hash of what an erased event held: the digest of its execution's events still holds.
CREATE TABLE erased_event (
    execution_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    data_hash BLOB NOT NULL,
    PRIMARY KEY (execution_id, seq)
) WITHOUT ROWID;

ALTER TABLE question ADD COLUMN closed_seq INTEGER;
ALTER TABLE question ADD COLUMN answer_hash BLOB;
CREATE INDEX question_of ON question (execution_id);

-- Of a contract only the body may go, of an event only what it says; nothing else with it.
DROP TRIGGER contract_fixed;
CREATE TRIGGER contract_fixed BEFORE UPDATE ON contract
WHEN NEW.body IS NOT NULL
    OR NEW.owner IS NOT OLD.owner
    OR NEW.session_id IS NOT OLD.session_id
    OR NEW.n IS NOT OLD.n
    OR NEW.id IS NOT OLD.id
    OR NEW.type IS NOT OLD.type
    OR NEW.from_agent IS NOT OLD.from_agent
    OR NEW.to_agent IS NOT OLD.to_agent
    OR NEW.capability IS NOT OLD.capability
    OR NEW.status IS NOT OLD.status
    OR NEW.execution_id IS NOT OLD.execution_id
    OR NEW.at IS NOT OLD.at
    OR NEW.body_hash IS NOT OLD.body_hash
    OR NEW.digest IS NOT OLD.digest
    OR NEW.hash IS NOT OLD.hash
BEGIN SELECT RAISE(ABORT, 'contracts are insert-only'); END;
DROP TRIGGER event_fixed;
CREATE TRIGGER event_fixed BEFORE UPDATE ON event
WHEN NEW.data IS NOT CAST('{"erased":true}' AS BLOB)
    OR NEW.execution_id IS NOT OLD.execution_id OR NEW.seq IS NOT OLD.seq
    OR NEW.type IS NOT OLD.type OR NEW.at IS NOT OLD.at
BEGIN SELECT RAISE(ABORT, 'events are insert-only'); END;

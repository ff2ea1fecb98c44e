-- Retention and erasure: what is gone leaves a mark that names the audit row which says so.

-- Where the chain of a session begins whose first contracts were removed.
CREATE TABLE checkpoint (
    owner TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    n BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    completed BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    began BIGINT NOT NULL,
    latest BIGINT NOT NULL,
    audit_n BIGINT NOT NULL,
    PRIMARY KEY (owner, session_id)
);

-- Executions (and contracts that have none) of which something was removed or erased.
CREATE TABLE mark (
    id TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    audit_n BIGINT NOT NULL,
    at BIGINT NOT NULL,
    pending BIGINT NOT NULL,
    PRIMARY KEY (id, kind)
);
CREATE INDEX mark_pending ON mark (kind, id) WHERE pending = 1;

-- The hash of what an erased event held: the digest of its execution's events still holds.
CREATE TABLE erased_event (
    execution_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    data_hash BYTEA NOT NULL,
    PRIMARY KEY (execution_id, seq)
);

ALTER TABLE question ADD COLUMN closed_seq BIGINT;
ALTER TABLE question ADD COLUMN answer_hash BYTEA;
CREATE INDEX question_of ON question (execution_id);

-- Of a contract only the body may go, of an event only what it says; nothing else with it.
DROP TRIGGER contract_fixed ON contract;
CREATE TRIGGER contract_fixed BEFORE UPDATE ON contract FOR EACH ROW
WHEN (NEW.body IS NOT NULL
    OR NEW.owner IS DISTINCT FROM OLD.owner
    OR NEW.session_id IS DISTINCT FROM OLD.session_id
    OR NEW.n IS DISTINCT FROM OLD.n
    OR NEW.id IS DISTINCT FROM OLD.id
    OR NEW.type IS DISTINCT FROM OLD.type
    OR NEW.from_agent IS DISTINCT FROM OLD.from_agent
    OR NEW.to_agent IS DISTINCT FROM OLD.to_agent
    OR NEW.capability IS DISTINCT FROM OLD.capability
    OR NEW.status IS DISTINCT FROM OLD.status
    OR NEW.execution_id IS DISTINCT FROM OLD.execution_id
    OR NEW.at IS DISTINCT FROM OLD.at
    OR NEW.body_hash IS DISTINCT FROM OLD.body_hash
    OR NEW.digest IS DISTINCT FROM OLD.digest
    OR NEW.hash IS DISTINCT FROM OLD.hash)
EXECUTE FUNCTION refuse_change();
DROP TRIGGER event_fixed ON event;
CREATE TRIGGER event_fixed BEFORE UPDATE ON event FOR EACH ROW
WHEN (NEW.data IS DISTINCT FROM '{"erased":true}'::bytea
    OR NEW.execution_id IS DISTINCT FROM OLD.execution_id OR NEW.seq IS DISTINCT FROM OLD.seq
    OR NEW.type IS DISTINCT FROM OLD.type OR NEW.at IS DISTINCT FROM OLD.at)
EXECUTE FUNCTION refuse_change();

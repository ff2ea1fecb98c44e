-- The queue in full: delays, ageing, busy sessions, dead letters.

ALTER TABLE execution ADD COLUMN due_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN hold TEXT NOT NULL DEFAULT 'none';
ALTER TABLE execution ADD COLUMN on_busy TEXT NOT NULL DEFAULT 'parallel';
ALTER TABLE execution ADD COLUMN retry_of TEXT;
ALTER TABLE execution ADD COLUMN reason TEXT;

-- A rank is the moment it waits from, put forward by a minute for each step of priority.
UPDATE execution SET due_at = created_at, rank = created_at - priority * 60000000,
    hold = CASE WHEN state = 'queued' AND run_at > created_at THEN 'time' ELSE 'none' END
WHERE finished_at IS NULL;

-- What a lease probes: one key at a time, in order, and nothing in it that may not be leased.
DROP INDEX execution_queue;
CREATE INDEX execution_queue ON execution (queue_key, rank, id)
    WHERE state = 'queued' AND hold = 'none';
-- What waits but may not be leased: how much of it, what is due, who waits for its session.
CREATE INDEX execution_on_hold ON execution (queue_key, hold, id) WHERE hold <> 'none';
CREATE INDEX execution_due ON execution (run_at) WHERE hold = 'time';
CREATE INDEX execution_turn ON execution (owner, session_id, request_n) WHERE hold = 'session';
CREATE INDEX execution_interrupt ON execution (id)
    WHERE hold = 'session' AND on_busy = 'interrupt';
-- Whether a session is busy.
CREATE INDEX execution_busy ON execution (owner, session_id)
    WHERE state IN ('queued', 'running', 'input_required') AND hold <> 'session'
    AND parent_id IS NULL;
CREATE INDEX execution_reason ON execution (reason, id) WHERE reason IS NOT NULL;

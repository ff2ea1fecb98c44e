-- What a question asks for, and the least role that may answer it.
ALTER TABLE question ADD COLUMN kind TEXT NOT NULL DEFAULT 'input';
ALTER TABLE question ADD COLUMN role TEXT NOT NULL DEFAULT 'operator';

-- What a repeated attempt takes up again.
CREATE INDEX question_answered ON question (execution_id, id) WHERE state = 'answered';

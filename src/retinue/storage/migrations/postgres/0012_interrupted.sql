-- Attempts that an orderly stop of the server ended do not count.
ALTER TABLE execution ADD COLUMN interrupted BIGINT NOT NULL DEFAULT 0;

-- Idempotency keys are forgotten once they have expired.
CREATE INDEX idempotency_expires ON idempotency (expires_at);

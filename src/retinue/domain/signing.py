"""How our calls to an agent are signed, so that it can tell them from anybody else's.

Each agent has a secret of its own, shared with nobody else. That of an agent registered through
the API is derived from the installation's signing key, which is in no store: a stolen database
signs nothing. Only the secret's fingerprint is kept with the agent, by which a process with
another signing key finds out.
"""

from __future__ import annotations

import hashlib
import hmac

PREFIX = "rts_"
VERSION = "v1"
TIMESTAMP = "Retinue-Timestamp"
SIGNATURE = "Retinue-Signature"
IDEMPOTENCY = "Idempotency-Key"
"""Header names. The idempotency key is the execution's id, the same for all its attempts."""


def derive(signing_key: bytes, agent_id: str, salt: str) -> str:
    """Return the secret of one registration; ``salt`` makes each of an id's another one."""
    message = f"retinue agent secret\n{agent_id}\n{salt}".encode()
    return PREFIX + hmac.new(signing_key, message, hashlib.sha256).hexdigest()


def fingerprint(secret: str) -> bytes:
    """Return what may be stored of a secret: it recognises it and gives nothing away."""
    return hashlib.sha256(b"retinue fingerprint\n" + secret.encode()).digest()


def sign(secret: str, timestamp: int, execution_id: str, body: bytes) -> str:
    """Return the signature of one call: HMAC-SHA256 over time, execution and exact body.

    A health check is of no execution and has no body: both are empty.
    """
    message = f"{timestamp}.{execution_id}.".encode() + body
    return f"{VERSION}={hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()}"

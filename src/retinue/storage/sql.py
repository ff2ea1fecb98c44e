"""Every statement of the batch program and every read, for both dialects.

A batch statement runs once per row of parameters on SQLite and once for all rows, through
``unnest``, on PostgreSQL. Reads are one portable text with ``?`` for parameters.
"""

from __future__ import annotations

import msgspec

from retinue.storage.tables import TABLES, UPDATED, sql_type

CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""PostgreSQL's clock in microseconds: what leases go by, whatever the workers' clocks say."""


class Statement(msgspec.Struct, frozen=True):
    """A named statement: SQLite's text, and PostgreSQL's over arrays of parameters."""

    sqlite: str
    postgres: str


def _columns(table: str, prefix: str = "") -> str:
    return ", ".join(prefix + column for column in TABLES[table])


def _unnest(columns: tuple[str, ...]) -> str:
    """Return ``unnest(…) AS p(…)`` over one array per column."""
    arrays = ", ".join(f"${i}::{sql_type(c)}[]" for i, c in enumerate(columns, 1))
    return f"unnest({arrays}) AS p({', '.join(columns)})"


def _sets(columns: tuple[str, ...]) -> tuple[str, str]:
    sqlite = ", ".join(f"{c} = ?{i}" for i, c in enumerate(columns, 1))
    postgres = ", ".join(f"{c} = p.{c}" for c in columns)
    return sqlite, postgres


def insert(table: str) -> Statement:
    """Return the insert of whole rows into ``table``."""
    columns = TABLES[table]
    names = ", ".join(columns)
    arrays = ", ".join(f"${i}::{sql_type(c, table)}[]" for i, c in enumerate(columns, 1))
    return Statement(
        f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})",
        f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays})",
    )


def insert_many(table: str, count: int) -> str:
    """Return SQLite's insert of ``count`` whole rows into ``table``."""
    columns = TABLES[table]
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * count)}"


def update_many(name: str, count: int) -> str:
    """Return SQLite's update ``name`` (of ``UPDATES``) for ``count`` rows of parameters."""
    table, columns, keys = UPDATES[name]
    row = f"({', '.join('?' * len(columns + keys))})"
    sets = ", ".join(f"{c} = p.{c}" for c in columns)
    match = " AND ".join(f"{table}.{k} = p.{k}" for k in keys)
    return (
        f"WITH p({', '.join(columns + keys)}) AS (VALUES {', '.join([row] * count)})"
        f" UPDATE {table} SET {sets} FROM p WHERE {match}"
    )


def _update(table: str, columns: tuple[str, ...], keys: tuple[str, ...]) -> Statement:
    """Return an update of ``columns`` by ``keys``; parameters: columns, then keys."""
    sqlite, postgres = _sets(columns)
    by = " AND ".join(f"{k} = ?{len(columns) + i}" for i, k in enumerate(keys, 1))
    match = " AND ".join(f"t.{k} = p.{k}" for k in keys)
    return Statement(
        f"UPDATE {table} SET {sqlite} WHERE {by}",
        f"UPDATE {table} t SET {postgres} FROM {_unnest(columns + keys)} WHERE {match}",
    )


UPDATES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "update_session": (
        "session",
        ("n", "head", "completed", "failed", "cancelled", "created_at", "updated_at"),
        ("owner", "session_id"),
    ),
    "update_execution": ("execution", UPDATED[:-1], UPDATED[-1:]),
}
"""The updates of whole batches: table, columns that are set, columns that find the row."""

LANE = ("sink", "owner", "session_id")
"""What names a lane of the outbox."""

NOBODY = "NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = o.worker AND w.stopped_at IS NULL)"
"""Says of a row ``o`` that the worker in it is dead."""
PUT_AGENT = (
    "id",
    "agent_id",
    "owner",
    "created_by",
    "driver",
    "definition",
    "fingerprint",
    "created_at",
)
"""The parameters of ``put_agent``."""

LEASE_BODY = (
    "(SELECT c.body FROM contract c WHERE c.owner = e.owner AND c.session_id = e.session_id"
    " AND c.n = e.request_n)"
)

_OF_SESSION = "o.owner = p.owner AND o.session_id = p.session_id"
_PLACE = ("owner", "session_id", "n")
_AT = "owner = ?1 AND session_id = ?2 AND n"
_WITH = "t.owner = p.owner AND t.session_id = p.session_id AND t.n"
_STANDING = (
    "e.id, e.state, e.finished_at, EXISTS (SELECT 1 FROM mark m WHERE m.id = e.id"
    " AND m.kind = 'removed') FROM execution e"
)
_LINK = (
    "c.n, c.id, c.type, c.status, c.at, c.hash, c.execution_id, e.state, e.finished_at,"
    " e.response_n, EXISTS (SELECT 1 FROM mark m WHERE m.id = e.id AND m.kind = 'removed')"
    " FROM contract c LEFT JOIN execution e ON e.id = c.execution_id"
)
_SIDE = (
    "c.n, c.id, c.execution_id, e.state, e.request_n, e.response_n,"
    " EXISTS (SELECT 1 FROM mark m WHERE m.id = coalesce(e.id, c.id) AND m.kind = 'erased')"
    " FROM contract c LEFT JOIN execution e ON e.id = c.execution_id"
)

RETENTION: dict[str, Statement] = {
    "known_head": Statement(
        "SELECT owner, session_id FROM session WHERE owner = ?1 AND session_id = ?2",
        "SELECT t.owner, t.session_id FROM session t"
        f" JOIN {_unnest(('owner', 'session_id'))} USING (owner, session_id)",
    ),
    "standing": Statement(
        f"SELECT {_STANDING} WHERE e.id = ?1",
        f"SELECT {_STANDING} WHERE e.id = ANY($1::text[]) ORDER BY e.id",
    ),
    "checkpoint": Statement(
        f"SELECT {_columns('checkpoint')} FROM checkpoint WHERE owner = ?1 AND session_id = ?2",
        f"SELECT {_columns('checkpoint', 't.')} FROM checkpoint t"
        f" JOIN {_unnest(('owner', 'session_id'))} USING (owner, session_id)",
    ),
    "links": Statement(
        f"SELECT {_LINK} WHERE c.owner = ?1 AND c.session_id = ?2 AND c.n > ?3"
        " ORDER BY c.n LIMIT ?4",
        f"SELECT l.* FROM {_unnest((*_PLACE, 'limit_'))} CROSS JOIN LATERAL (SELECT {_LINK}"
        " WHERE c.owner = p.owner AND c.session_id = p.session_id AND c.n > p.n"
        " ORDER BY c.n LIMIT p.limit_) l",
    ),
    "put_checkpoint": Statement(
        f"INSERT OR REPLACE INTO checkpoint VALUES ({', '.join('?' * 10)})",
        f"INSERT INTO checkpoint SELECT * FROM {_unnest(TABLES['checkpoint'])}"
        " ON CONFLICT (owner, session_id) DO UPDATE SET "
        + ", ".join(f"{c} = excluded.{c}" for c in TABLES["checkpoint"][2:]),
    ),
    "drop_contracts": Statement(
        f"DELETE FROM contract WHERE {_AT} <= ?3",
        f"DELETE FROM contract t USING {_unnest(_PLACE)} WHERE {_WITH} <= p.n",
    ),
    "sides": Statement(
        f"SELECT {_SIDE} WHERE c.owner = ?1 AND c.session_id = ?2 AND c.n = ?3",
        f"SELECT {_SIDE} JOIN {_unnest(_PLACE)} ON c.owner = p.owner"
        " AND c.session_id = p.session_id AND c.n = p.n ORDER BY c.n",
    ),
    "erase_body": Statement(
        f"UPDATE contract SET body = NULL WHERE {_AT} = ?3 AND body IS NOT NULL",
        f"UPDATE contract t SET body = NULL FROM {_unnest(_PLACE)}"
        f" WHERE {_WITH} = p.n AND t.body IS NOT NULL",
    ),
    "put_mark": Statement(
        f"INSERT OR IGNORE INTO mark VALUES ({', '.join('?' * 5)})",
        f"INSERT INTO mark SELECT * FROM {_unnest(TABLES['mark'])} ON CONFLICT DO NOTHING",
    ),
    "pending": Statement(
        "SELECT id FROM mark WHERE kind = ?1 AND pending = 1 ORDER BY id LIMIT ?2",
        "SELECT t.id FROM mark t WHERE t.pending = 1 AND t.kind = ANY($1::text[])"
        " ORDER BY t.id LIMIT (SELECT max(x) FROM unnest($2::bigint[]) x)"
        " FOR UPDATE SKIP LOCKED",
    ),
    "first_events": Statement(
        "SELECT ?1, count(*), max(seq) FROM (SELECT seq FROM event WHERE execution_id = ?1"
        " ORDER BY seq LIMIT ?2)",
        f"SELECT p.id, l.* FROM {_unnest(('id', 'limit_'))} CROSS JOIN LATERAL"
        " (SELECT count(*), max(seq) FROM (SELECT seq FROM event WHERE execution_id = p.id"
        " ORDER BY seq LIMIT p.limit_) f) l",
    ),
    "drop_events": Statement(
        "DELETE FROM event WHERE execution_id = ?1 AND seq <= ?2",
        f"DELETE FROM event t USING {_unnest(('id', 'seq'))}"
        " WHERE t.execution_id = p.id AND t.seq <= p.seq",
    ),
    "unerased": Statement(
        "SELECT execution_id, seq, data FROM event WHERE execution_id = ?1"
        " AND data <> CAST('{\"erased\":true}' AS BLOB) ORDER BY seq LIMIT ?2",
        f"SELECT l.* FROM {_unnest(('id', 'limit_'))} CROSS JOIN LATERAL"
        " (SELECT execution_id, seq, data FROM event WHERE execution_id = p.id"
        " AND data <> '{\"erased\":true}'::bytea ORDER BY seq LIMIT p.limit_) l",
    ),
    "erase_event": Statement(
        "UPDATE event SET data = CAST('{\"erased\":true}' AS BLOB)"
        " WHERE execution_id = ?1 AND seq = ?2",
        "UPDATE event t SET data = '{\"erased\":true}'::bytea"
        f" FROM {_unnest(('id', 'seq'))} WHERE t.execution_id = p.id AND t.seq = p.seq",
    ),
    "swept": Statement(
        "UPDATE mark SET pending = 0 WHERE id = ?1 AND kind = ?2",
        f"UPDATE mark t SET pending = 0 FROM {_unnest(('id', 'kind'))}"
        " WHERE t.id = p.id AND t.kind = p.kind",
    ),
    "drop_questions": Statement(
        "DELETE FROM question WHERE execution_id = ?1",
        "DELETE FROM question WHERE execution_id = ANY($1::text[])",
    ),
    "drop_erased_events": Statement(
        "DELETE FROM erased_event WHERE execution_id = ?1",
        "DELETE FROM erased_event WHERE execution_id = ANY($1::text[])",
    ),
    "questions_of": Statement(
        f"SELECT {_columns('question')} FROM question WHERE execution_id = ?1 ORDER BY id",
        f"SELECT {_columns('question')} FROM question WHERE execution_id = ANY($1::text[])"
        " ORDER BY id FOR UPDATE",
    ),
}
"""What retention and erasure do."""

BUSY = (
    "state IN ('queued', 'running', 'input_required') AND hold <> 'session' AND parent_id IS NULL"
)
"""What keeps a session busy; in the words of the index ``execution_busy``, so that it is used."""

BATCH: dict[str, Statement] = {
    "find_question": Statement(
        "SELECT execution_id FROM question WHERE id = ?1",
        "SELECT execution_id FROM question WHERE id = ANY($1::text[])",
    ),
    "lock_question": Statement(
        f"SELECT {_columns('question')} FROM question WHERE id = ?1",
        f"SELECT {_columns('question')} FROM question WHERE id = ANY($1::text[])"
        " ORDER BY id FOR UPDATE",
    ),
    "lock_execution": Statement(
        f"SELECT {_columns('execution')} FROM execution WHERE id = ?1",
        f"SELECT {_columns('execution')} FROM execution WHERE id = ANY($1::text[])"
        " ORDER BY id FOR UPDATE",
    ),
    "make_head": Statement(
        "INSERT INTO session VALUES (?1, ?2, ?3, ?3, 0, zeroblob(32), 0, 0, 0)"
        " ON CONFLICT DO NOTHING",
        "INSERT INTO session SELECT p.owner, p.session_id, p.at, p.at, 0,"
        " decode(repeat('00', 32), 'hex'), 0, 0, 0"
        f" FROM {_unnest(('owner', 'session_id', 'at'))}"
        ' ORDER BY p.owner COLLATE "C", p.session_id COLLATE "C" ON CONFLICT DO NOTHING',
    ),
    "lock_head": Statement(
        f"SELECT {_columns('session')} FROM session WHERE owner = ?1 AND session_id = ?2",
        f"SELECT {_columns('session', 't.')} FROM session t"
        f" JOIN {_unnest(('owner', 'session_id'))} USING (owner, session_id)"
        " ORDER BY t.owner, t.session_id FOR UPDATE OF t",
    ),
    "ready": Statement(
        "SELECT ?1 WHERE EXISTS (SELECT 1 FROM execution"
        " WHERE queue_key = ?1 AND state = 'queued' AND hold = 'none')",
        f"SELECT p.key FROM {_unnest(('key',))} WHERE EXISTS (SELECT 1 FROM execution"
        " WHERE queue_key = p.key AND state = 'queued' AND hold = 'none')",
    ),
    # In order, so that PostgreSQL counts along the index and not through the table.
    "queue_depth": Statement(
        "SELECT ?1, (SELECT count(*) FROM (SELECT 1 FROM execution"
        " WHERE queue_key = ?1 AND state = 'queued' AND hold = 'none' ORDER BY rank LIMIT ?2)) +"
        " (SELECT count(*) FROM (SELECT 1 FROM execution"
        " WHERE queue_key = ?1 AND hold <> 'none' ORDER BY hold LIMIT ?2))",
        "SELECT p.key, (SELECT count(*) FROM (SELECT 1 FROM execution"
        " WHERE queue_key = p.key AND state = 'queued' AND hold = 'none'"
        " ORDER BY rank LIMIT p.limit_) q) +"
        " (SELECT count(*) FROM (SELECT 1 FROM execution"
        " WHERE queue_key = p.key AND hold <> 'none' ORDER BY hold LIMIT p.limit_) q)"
        f" FROM {_unnest(('key', 'limit_'))}",
    ),
    # Some of what keeps a session busy: enough to tell whether more than this batch ends does.
    "busy": Statement(
        f"SELECT owner, session_id, id FROM execution WHERE owner = ?1 AND session_id = ?2"
        f" AND {BUSY} LIMIT ?3",
        "SELECT e.owner, e.session_id, e.id FROM"
        f" {_unnest(('owner', 'session_id', 'limit_'))} CROSS JOIN LATERAL"
        " (SELECT owner, session_id, id FROM execution"
        f" WHERE owner = p.owner AND session_id = p.session_id AND {BUSY} LIMIT p.limit_) e",
    ),
    "turn": Statement(
        "SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM execution"
        " WHERE owner = ?1 AND session_id = ?2 AND hold = 'session')",
        f"SELECT p.owner, p.session_id FROM {_unnest(('owner', 'session_id'))}"
        " WHERE EXISTS (SELECT 1 FROM execution e WHERE e.owner = p.owner"
        " AND e.session_id = p.session_id AND e.hold = 'session')",
    ),
    # The first one, or nobody: the second must not go because somebody has locked the first.
    "next_turn": Statement(
        f"SELECT {_columns('execution')} FROM execution WHERE owner = ?1 AND session_id = ?2"
        " AND hold = 'session' ORDER BY request_n LIMIT 1",
        f"SELECT {_columns('execution', 'e.')} FROM {_unnest(('owner', 'session_id'))}"
        " CROSS JOIN LATERAL (SELECT * FROM execution WHERE id = (SELECT id FROM execution"
        " WHERE owner = p.owner AND session_id = p.session_id AND hold = 'session'"
        " ORDER BY request_n LIMIT 1) FOR UPDATE SKIP LOCKED) e",
    ),
    "drop_head": Statement(
        "DELETE FROM session WHERE owner = ?1 AND session_id = ?2 AND n = 0",
        f"DELETE FROM session t USING {_unnest(('owner', 'session_id'))}"
        " WHERE t.owner = p.owner AND t.session_id = p.session_id AND t.n = 0",
    ),
    "claim_idempotency": Statement(
        "INSERT INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (owner, key) DO UPDATE"
        " SET fingerprint = excluded.fingerprint, execution_id = excluded.execution_id,"
        " expires_at = excluded.expires_at WHERE idempotency.expires_at < ?6",
        "INSERT INTO idempotency SELECT p.owner, p.key, p.fingerprint, p.execution_id,"
        " p.expires_at FROM "
        + _unnest(("owner", "key", "fingerprint", "execution_id", "expires_at", "now"))
        + ' ORDER BY p.owner COLLATE "C", p.key COLLATE "C"'
        " ON CONFLICT (owner, key) DO UPDATE"
        " SET fingerprint = excluded.fingerprint, execution_id = excluded.execution_id,"
        " expires_at = excluded.expires_at"
        f" WHERE idempotency.expires_at < {CLOCK}",
    ),
    "read_idempotency": Statement(
        "SELECT owner, key, fingerprint, execution_id FROM idempotency"
        " WHERE owner = ?1 AND key = ?2",
        "SELECT t.owner, t.key, t.fingerprint, t.execution_id FROM idempotency t"
        f" JOIN {_unnest(('owner', 'key'))} USING (owner, key)",
    ),
    "drop_idempotency": Statement(
        "DELETE FROM idempotency WHERE owner = ?1 AND key = ?2",
        f"DELETE FROM idempotency t USING {_unnest(('owner', 'key'))}"
        " WHERE t.owner = p.owner AND t.key = p.key",
    ),
    # One that is being claimed anew is not waited for: it is about to be valid again.
    "drop_expired": Statement(
        "DELETE FROM idempotency WHERE (owner, key) IN (SELECT owner, key FROM idempotency"
        " WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2) RETURNING 1",
        f"DELETE FROM idempotency t USING {_unnest(('now', 'count'))}"
        " CROSS JOIN LATERAL (SELECT owner, key FROM idempotency"
        f" WHERE expires_at < least(p.now, {CLOCK}) ORDER BY expires_at LIMIT p.count"
        " FOR UPDATE SKIP LOCKED) e WHERE t.owner = e.owner AND t.key = e.key RETURNING 1",
    ),
    "lease": Statement(
        f"SELECT {_columns('execution', 'e.')}, {LEASE_BODY} FROM execution e"
        " WHERE queue_key = ?1 AND state = 'queued' AND hold = 'none'"
        " ORDER BY rank, id LIMIT ?2",
        f"SELECT {_columns('execution', 'e.')}, {LEASE_BODY} FROM"
        f" {_unnest(('key', 'count'))} CROSS JOIN LATERAL"
        " (SELECT * FROM execution WHERE queue_key = p.key AND state = 'queued'"
        " AND hold = 'none' ORDER BY rank, id LIMIT p.count"
        " FOR UPDATE SKIP LOCKED) e",
    ),
    "lease_only": Statement(
        f"SELECT {_columns('execution', 'e.')}, {LEASE_BODY} FROM execution e"
        " WHERE id = ?1 AND state = 'queued' AND hold = 'none'",
        f"SELECT {_columns('execution', 'e.')}, {LEASE_BODY} FROM execution e"
        " WHERE id = ANY($1::text[]) AND state = 'queued' AND hold = 'none'"
        " FOR UPDATE OF e SKIP LOCKED",
    ),
    **{name: _update(*parts) for name, parts in UPDATES.items()},
    "add_tally": Statement(
        "INSERT INTO tally VALUES (?1, ?2, ?3) ON CONFLICT (agent_id) DO UPDATE SET"
        " completed = completed + excluded.completed, failed = failed + excluded.failed",
        "INSERT INTO tally SELECT * FROM "
        + _unnest(("agent_id", "completed", "failed"))
        + " ON CONFLICT (agent_id) DO UPDATE SET"
        " completed = tally.completed + excluded.completed,"
        " failed = tally.failed + excluded.failed",
    ),
    "lose_questions": Statement(
        "UPDATE question SET state = 'lost' WHERE execution_id = ?1 AND state = 'open'",
        f"UPDATE question t SET state = 'lost' FROM {_unnest(('execution_id',))}"
        " WHERE t.execution_id = p.execution_id AND t.state = 'open'",
    ),
    "update_question": _update(
        "question", ("state", "answer", "answered_by", "closed_seq"), ("id",)
    ),
    "erase_question": _update("question", ("prompt", "schema", "answer", "answer_hash"), ("id",)),
    "revoke_key": Statement(
        "UPDATE api_key SET revoked_at = ?1 WHERE id = ?2 AND revoked_at IS NULL RETURNING id",
        f"UPDATE api_key t SET revoked_at = p.at FROM {_unnest(('at', 'id'))}"
        " WHERE t.id = p.id AND t.revoked_at IS NULL RETURNING t.id",
    ),
    # Another registration that is under way is waited for; rows are never deleted.
    "put_agent": Statement(
        f"INSERT INTO agent_definition ({_columns('agent_definition')}) SELECT ?1, ?2,"
        " 1 + (SELECT count(*) FROM agent_definition WHERE agent_id = ?2),"
        " ?3, ?4, ?5, ?6, ?7, ?8, NULL, NULL WHERE true ON CONFLICT DO NOTHING RETURNING revision",
        f"INSERT INTO agent_definition ({_columns('agent_definition')}) SELECT p.id, p.agent_id,"
        " 1 + (SELECT count(*) FROM agent_definition t WHERE t.agent_id = p.agent_id),"
        " p.owner, p.created_by, p.driver, p.definition, p.fingerprint, p.created_at, NULL, NULL"
        f" FROM {_unnest(PUT_AGENT)} ON CONFLICT DO NOTHING RETURNING revision",
    ),
    "remove_agent": Statement(
        "UPDATE agent_definition SET removed_at = ?2, removed_by = ?3"
        " WHERE agent_id = ?1 AND removed_at IS NULL RETURNING revision",
        "UPDATE agent_definition t SET removed_at = p.removed_at, removed_by = p.removed_by"
        f" FROM {_unnest(('agent_id', 'removed_at', 'removed_by'))}"
        " WHERE t.agent_id = p.agent_id AND t.removed_at IS NULL RETURNING t.revision",
    ),
    "lock_instance": Statement(
        f"SELECT {_columns('instance')} FROM instance WHERE instance_id = ?1",
        f"SELECT {_columns('instance')} FROM instance WHERE instance_id = ANY($1::text[])"
        " ORDER BY instance_id FOR UPDATE",
    ),
    "update_instance": _update("instance", TABLES["instance"][1:], TABLES["instance"][:1]),
    "forget_instances": Statement(
        "DELETE FROM instance WHERE instance_id IN (SELECT instance_id FROM instance"
        " WHERE ended_at IS NOT NULL AND ended_at < ?1 ORDER BY ended_at LIMIT ?2)"
        " RETURNING instance_id",
        f"DELETE FROM instance t USING {_unnest(('ended_at', 'limit_'))} CROSS JOIN LATERAL"
        " (SELECT i.instance_id FROM instance i WHERE i.ended_at IS NOT NULL"
        " AND i.ended_at < p.ended_at ORDER BY i.ended_at LIMIT p.limit_"
        " FOR UPDATE SKIP LOCKED) f WHERE t.instance_id = f.instance_id RETURNING t.instance_id",
    ),
    "lock_audit_head": Statement(
        "SELECT n, hash FROM audit_head WHERE one = ?1",
        "SELECT n, hash FROM audit_head WHERE one = ANY($1::bigint[]) FOR UPDATE",
    ),
    "update_audit_head": Statement(
        "UPDATE audit_head SET n = ?1, hash = ?2",
        f"UPDATE audit_head SET n = p.n, hash = p.hash FROM {_unnest(('n', 'hash'))}",
    ),
    "lock_lane": Statement(
        f"SELECT {_columns('outbox')} FROM outbox"
        " WHERE sink = ?1 AND owner = ?2 AND session_id = ?3",
        f"SELECT {_columns('outbox', 't.')} FROM outbox t"
        f" JOIN {_unnest(LANE)} USING (sink, owner, session_id)"
        " ORDER BY t.sink, t.owner, t.session_id FOR UPDATE OF t",
    ),
    "update_lane": _update(
        "outbox",
        ("first_n", "last_n", "due_at", "tries", "worker", "error", "failed_at"),
        LANE,
    ),
    "drop_lane": Statement(
        "DELETE FROM outbox WHERE sink = ?1 AND owner = ?2 AND session_id = ?3",
        f"DELETE FROM outbox t USING {_unnest(LANE)} WHERE t.sink = p.sink"
        " AND t.owner = p.owner AND t.session_id = p.session_id",
    ),
    # Whoever wants many lanes takes those that are free, and so never waits for another.
    "free_lanes": Statement(
        "UPDATE outbox AS o SET worker = NULL WHERE sink = ?1 AND worker IS NOT NULL"
        f" AND (worker = ?2 OR {NOBODY})",
        f"UPDATE outbox t SET worker = NULL FROM (SELECT o.sink, o.owner, o.session_id"
        f" FROM {_unnest(('sink', 'worker'))} JOIN outbox o ON o.sink = p.sink"
        f" WHERE o.worker IS NOT NULL AND (o.worker = p.worker OR {NOBODY})"
        " FOR UPDATE OF o SKIP LOCKED) f WHERE t.sink = f.sink AND t.owner = f.owner"
        " AND t.session_id = f.session_id",
    ),
    "due_lanes": Statement(
        f"SELECT {_columns('outbox')} FROM outbox WHERE sink = ?1 AND worker IS NULL"
        " AND due_at <= ?3 ORDER BY due_at LIMIT ?2",
        f"SELECT {_columns('outbox', 'o.')} FROM {_unnest(('sink', 'count', 'now'))}"
        " CROSS JOIN LATERAL (SELECT * FROM outbox WHERE sink = p.sink AND worker IS NULL"
        " AND due_at <= p.now ORDER BY due_at LIMIT p.count FOR UPDATE SKIP LOCKED) o",
    ),
    "wake_lanes": Statement(
        "UPDATE outbox SET due_at = ?2 WHERE sink = ?1 AND worker IS NULL AND tries = 0"
        " AND due_at > ?2",
        "UPDATE outbox t SET due_at = f.now FROM (SELECT o.sink, o.owner, o.session_id, p.now"
        f" FROM {_unnest(('sink', 'now'))} JOIN outbox o ON o.sink = p.sink"
        " WHERE o.worker IS NULL AND o.tries = 0 AND o.due_at > p.now"
        " FOR UPDATE OF o SKIP LOCKED) f WHERE t.sink = f.sink AND t.owner = f.owner"
        " AND t.session_id = f.session_id",
    ),
    "drop_parked": Statement(
        "DELETE FROM parked WHERE sink = ?1 AND owner = ?2 AND session_id = ?3 AND n = ?4",
        f"DELETE FROM parked t USING {_unnest((*LANE, 'n'))} WHERE t.sink = p.sink"
        " AND t.owner = p.owner AND t.session_id = p.session_id AND t.n = p.n",
    ),
    # Nothing goes that a sink has still to be told, or would not take and may be given again.
    "needed": Statement(
        "SELECT min(first_n) FROM outbox WHERE owner = ?1 AND session_id = ?2 UNION ALL"
        " SELECT min(n) FROM parked WHERE owner = ?1 AND session_id = ?2",
        f"SELECT (SELECT min(o.first_n) FROM outbox o WHERE {_OF_SESSION})"
        f" FROM {_unnest(('owner', 'session_id'))} UNION ALL"
        f" SELECT (SELECT min(o.n) FROM parked o WHERE {_OF_SESSION})"
        f" FROM {_unnest(('owner', 'session_id'))}",
    ),
    **RETENTION,
}

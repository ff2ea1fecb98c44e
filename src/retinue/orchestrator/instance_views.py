"""How an instance is shown: where it stands, how it came there, how it does, what it uses."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.domain.ids import iso, now_us
from retinue.domain.instance import InstanceRecord, InstanceState, Seen
from retinue.engine.instances import Live
from retinue.engine.rounds import Silence
from retinue.process.capacity import percent


class MovedView(msgspec.Struct, frozen=True, kw_only=True):
    """From `at` on the instance's status was this, for this reason."""

    at: str
    status: str
    reason: str | None


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """A process that an agent is.

    `status` is specification 001's word: initializing, idle, running, thinking, paused, completed,
    failed or terminated (a signal, or somebody, ended it); its own last word counts for more than
    its exit code, where its output has one. `lost`: nothing is heard of its node, or no server
    supervises it. `timeline` is how it came there, `waiting_for` is
    `input` while what it works on waits for an answer. `executions` are those that it works on,
    `execution_id` the one it began first; one that has ended shows what it last worked on. Another
    server's instances are shown as it last wrote them, up to a second ago. `reason` says why it is
    in its state.

    `health` is healthy, stalled (it works, and nothing has come for as long as the agent's
    `stall_seconds`) or unresponsive (a signal of somebody else has it stand still: `resume` lets it
    go on); null when it has ended, or another server supervises it. `last_output_secs` is how long
    ago it last wrote anything, `last_event_secs` how long ago what it works on brought an event,
    `busy_secs` how long it has worked on that.

    `cpu_usage` is in percent of one CPU since it began, `memory_mb` what its whole tree holds now,
    and, once it has ended, the most that was seen. `messages_sent` went in, `messages_received`
    came out: lines, or frames. Of its output, `refused_lines` were too long, `dropped_lines` not
    kept, and `log_lost_bytes` are missing in its log. `stdin` says that it can be written to.
    `keep_running`: it outlives the server.
    """

    instance_id: str
    agent_id: str
    driver: str
    state: str
    status: str
    health: str | None
    waiting_for: str | None
    reason: str | None
    timeline: list[MovedView]
    execution_id: str | None
    attempt: int | None
    executions: list[str]
    node: str
    pid: int | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    uptime_secs: float
    last_output_secs: float | None
    last_event_secs: float | None
    busy_secs: float | None
    cpu_usage: float
    cpu_secs: float
    memory_mb: float
    peak_memory_mb: float
    processes: int
    messages_sent: int
    messages_received: int
    refused_lines: int
    refused_bytes: int
    dropped_lines: int
    dropped_bytes: int
    log_lost_bytes: int
    exit_code: int | None
    exit_signal: int | None
    keep_running: bool
    stdin: bool


def view_of(
    record: InstanceRecord,
    live: Live | None,
    used: dict[str, Any],
    silence: Silence,
    *,
    waiting_for: str | None,
    unowned: bool,
) -> InstanceView:
    """Return an instance as it is shown; ``used`` is what its tree uses now."""
    seen = live.seen if live is not None else record.seen()
    up = 0.0
    if record.started_at is not None:
        up = max((record.ended_at or now_us()) - record.started_at, 0) / 1_000_000
    work = [record.execution_id] if record.execution_id is not None else []
    return InstanceView(
        instance_id=record.instance_id,
        agent_id=record.agent_id,
        driver=record.driver,
        state=record.state.value,
        status=_status(record, live, seen, unowned=unowned),
        health=_health(live, silence),
        waiting_for=waiting_for,
        reason=_reason(record, live, unowned=unowned),
        timeline=[
            MovedView(at=iso(moved.at), status=moved.status, reason=moved.reason)
            for moved in seen.timeline
        ],
        execution_id=record.execution_id,
        attempt=record.attempt,
        executions=live.work if live is not None else work,
        node=record.node,
        pid=record.found().get("pid"),
        created_at=iso(record.created_at),
        started_at=iso(record.started_at) if record.started_at is not None else None,
        ended_at=iso(record.ended_at) if record.ended_at is not None else None,
        uptime_secs=round(up, 3),
        last_output_secs=_rounded(silence.output),
        last_event_secs=_rounded(silence.event),
        busy_secs=_rounded(silence.busy),
        cpu_usage=percent(record.cpu_us / 1_000_000, _measured(record, seen, up)),
        cpu_secs=round(record.cpu_us / 1_000_000, 3),
        memory_mb=round(used.get("memory", record.peak_bytes) / (1 << 20), 2),
        peak_memory_mb=round(record.peak_bytes / (1 << 20), 2),
        processes=used.get("processes", 0),
        messages_sent=record.messages_in,
        messages_received=record.messages_out,
        refused_lines=seen.refused[0],
        refused_bytes=seen.refused[1],
        dropped_lines=seen.dropped[0],
        dropped_bytes=seen.dropped[1],
        log_lost_bytes=seen.log_lost,
        exit_code=record.exit_code,
        exit_signal=record.exit_signal,
        keep_running=bool(record.kept),
        stdin=live is not None and not record.ended and live.hears,
    )


def _status(record: InstanceRecord, live: Live | None, seen: Seen, *, unowned: bool) -> str:
    if unowned:
        return "lost"
    if live is not None:
        return live.word
    return seen.status or record.word if record.ended else record.word


def _reason(record: InstanceRecord, live: Live | None, *, unowned: bool) -> str | None:
    if unowned and record.state is not InstanceState.LOST:
        return "no server supervises it"
    return "stopped by a signal" if live is not None and live.stopped else record.reason


def _health(live: Live | None, silence: Silence) -> str | None:
    if live is None or live.process is None or live.record.ended:
        return None
    if live.stopped:
        return "unresponsive"
    return "stalled" if silence.stalled else "healthy"


def _measured(record: InstanceRecord, seen: Seen, up: float) -> float:
    """Return for how long it had run when its CPU time was measured last."""
    if record.started_at is None or not seen.measured_at:
        return up
    return min(max(seen.measured_at - record.started_at, 0) / 1_000_000, up)


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds is not None else None

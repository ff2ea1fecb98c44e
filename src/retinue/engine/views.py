"""Pools as they are shown."""

from __future__ import annotations

from typing import Literal

import msgspec

from retinue.domain.latency import LatencyView


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """The last new version of a worker: how far it is.

    `state` is running (its processes are being replaced), done, or rolled_back (the version before
    is at work again, `reason` says why).
    """

    version: int
    state: Literal["running", "done", "rolled_back"]
    reason: str | None = None


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """An instance of a pool as it is shown.

    `state` is starting, ready, busy, stalled (its work has brought nothing for `stall_seconds`) or
    draining, `stage` its own protocol's word for that. `age_seconds` counts from its start,
    `served` what it has taken on. `latency_ms` is how long its last answer to a ping took.
    `in_flight` counts what waits for other agents, too, which takes no place: it may be more than
    the limit. `bad_frames` counts what was wrong with what it wrote, by kind (docs/protocol.md).
    """

    instance_id: str
    pid: int | None
    state: str
    stage: str | None
    in_flight: int
    served: int
    age_seconds: float
    session_id: str | None
    latency_ms: float | None
    version: int
    bad_frames: dict[str, int]


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as it is shown.

    `state` is starting, ready, short (fewer instances are ready than wanted), stopped or failed
    (nothing is started any more, `reason` says why). `waiting` executions found no instance with
    room. `requests`, `errors` and `average_ms` count since the start of the server, `restarts`
    what was started in the place of one that ended unasked. `version` counts what was deployed,
    `rollout` is how the last one of these went. `latency` is what was measured of each operation,
    `breaches` how often one took longer than it may.
    """

    name: str
    state: str
    reason: str | None
    least: int
    most: int
    in_flight_limit: int
    in_flight: int
    waiting: int
    requests: int
    errors: int
    average_ms: float
    started: int
    restarts: int
    version: int
    rollout: RolloutView | None
    breaches: int
    latency: list[LatencyView]
    instances: list[MemberView]

"""How long a crash was felt, read from the ledger's times and those of the kills."""

from __future__ import annotations

from bisect import bisect_right

from torture.ledger import Event, Execution, Ledger

WORKER_LOST = "E_STREAM_BROKEN"


def retaken(ledger: Ledger) -> int:
    """Return how many attempts were taken over from a process that was gone."""
    return sum(
        len(_takeovers(execution, ledger.events.get(execution.id, [])))
        for execution in ledger.executions.values()
    )


def resumed(ledger: Ledger, kills: list[int]) -> list[float]:
    """Return, per takeover, the seconds from the kill until the execution went on or was ended.

    A takeover is an attempt that no failure of the attempt before it explains, or an end by the
    loss of the worker. It is counted from the first kill after the interrupted attempt began; with
    several servers that may have been another server's, so these are upper bounds.
    """
    return [
        (at - kills[place]) / 1_000_000
        for execution in ledger.executions.values()
        for began, at in _takeovers(execution, ledger.events.get(execution.id, []))
        if (place := bisect_right(kills, began)) < len(kills) and kills[place] <= at
    ]


def _takeovers(execution: Execution, events: list[Event]) -> list[tuple[int, int]]:
    """Return when each interrupted attempt began, and when it was taken over."""
    found: list[tuple[int, int]] = []
    began = execution.started_at or execution.created_at
    explained = False
    for event in events:
        if event.type == "attempt_started":
            if not explained:
                found.append((began, event.at))
            began, explained = event.at, False
        elif event.type == "log":
            explained = True  # "attempt n failed"
        elif event.type == "failed" and event.data.get("code") == WORKER_LOST:
            found.append((began, event.at))
    return found

"""The checker itself: a clean run passes, and every way to break a promise is named."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torture.callers import LATE
from torture.checker import Evidence, judge
from torture.journals import Answered, Effect, Exchange, Intent, Unanswered
from torture.ledger import Contract, Event, Execution, Ledger
from torture.measure import resumed, retaken

RESULT = {"marker": "m", "attempt": 1}


@dataclass
class Run:
    """A run of one task, to be broken."""

    exchanges: list[Exchange]
    effects: list[Effect]
    executions: dict[str, Execution]
    contracts: dict[str, list[Contract]]
    refused: dict[str, Contract | None]
    events: dict[str, list[Event]]
    keys: dict[str, str]
    fault: str | None = None
    orderly: bool = False

    def broken(self) -> list[str]:
        """Return the rules that are broken."""
        ledger = Ledger(
            executions=self.executions,
            contracts=self.contracts,
            refused=self.refused,
            events=self.events,
            keys=self.keys,
        )
        evidence = Evidence(
            exchanges=self.exchanges,
            effects=self.effects,
            ledger=ledger,
            fault=self.fault,
            orderly=self.orderly,
        )
        return [violation.rule for violation in judge(evidence)]

    def change(self, **changes: Any) -> None:
        """Change the execution."""
        self.executions["e"] = replace(self.executions["e"], **changes)


def event(seq: int, kind: str, at: int = 0, **data: Any) -> Event:
    return Event("e", seq, kind, at, data)


def exchange(send: str, status: int, body: dict[str, Any], key: str | None = None) -> Exchange:
    intent = Intent(send=send, marker="m", capability="once", waits=status == 200, key=key)
    return Exchange(intent=intent, answer=Answered(send=send, status=status, body=body))


def unanswered(send: str, why: str) -> Exchange:
    told = exchange(send, 200, {})
    return Exchange(intent=told.intent, lost=Unanswered(send=send, why=why))


def effect(attempt: int = 1, execution_id: str = "e") -> Effect:
    return Effect(execution_id=execution_id, attempt=attempt, capability="once", marker="m", pid=1)


@pytest.fixture
def run() -> Run:
    reply = {"success": True, "data": RESULT, "execution_id": "e", "contract_id": "q"}
    accepted = {"execution_id": "e", "contract_id": "q", "state": "queued", "joined": True}
    nobody = {"code": "E_AGENT_NOT_FOUND", "details": {"contract_id": "r"}}
    execution = Execution("e", "completed", "at_most_once", 1, 3, 2, 0, 0, "q", "a", None)
    asked = {"parameters": {"marker": "m"}}
    return Run(
        exchanges=[
            exchange("1", 200, reply, key="k"),
            exchange("2", 202, accepted, key="k"),
            exchange("3", 404, nobody),
            unanswered("4", "IncompleteReadError"),
        ],
        effects=[effect()],
        executions={"e": execution},
        contracts={
            "e": [
                Contract("q", "REQUEST", None, "e", "s", 1, asked),
                Contract("a", "RESPONSE", "completed", "e", "s", 2, RESULT),
            ]
        },
        refused={"r": Contract("x", "RESPONSE", "failed", None, "s", 4, {})},
        events={"e": [event(1, "content_chunk"), event(2, "completed")]},
        keys={"k": "e"},
    )


def test_a_clean_run_passes(run: Run) -> None:
    assert run.broken() == []


def _forget(run: Run) -> None:
    run.executions.clear()
    run.contracts.clear()
    run.events.clear()
    run.effects.clear()


def _again(run: Run, execution_id: str) -> None:
    run.executions[execution_id] = replace(run.executions["e"], id=execution_id)
    run.contracts[execution_id] = run.contracts["e"]
    run.events[execution_id] = run.events["e"]
    run.effects.append(effect(execution_id=execution_id))


def _garble(run: Run) -> None:
    answer = run.exchanges[0].answer
    assert answer is not None
    answer.body["data"] = {**RESULT, "attempt": 2}


def _refuse(run: Run) -> None:
    run.exchanges.append(exchange("5", 503, {"code": "E_SHUTTING_DOWN", "details": {}}))


def _keep(run: Run) -> None:
    kept = {"code": "E_SHUTTING_DOWN", "details": {"execution_id": "gone"}}
    run.exchanges.append(exchange("5", 503, kept))


Break = Callable[[Run], object]
BROKEN: dict[str, tuple[Break, set[str]]] = {
    "the execution is gone": (_forget, {"lost"}),
    "a refusal that names an execution that is gone": (_keep, {"lost"}),
    "no RESPONSE": (lambda run: run.contracts["e"].pop(), {"lost", "contracts"}),
    "no REQUEST": (lambda run: run.contracts["e"].pop(0), {"lost", "contracts"}),
    "a refusal without a RESPONSE": (lambda run: run.refused.update(r=None), {"lost"}),
    "another contract": (lambda run: run.change(request_id="z"), {"lost", "contracts"}),
    "another result": (_garble, {"changed"}),
    "success denied": (
        lambda run: run.change(state="failed"),
        {"changed", "events", "contracts"},
    ),
    "an answer that never came": (
        lambda run: run.exchanges.append(unanswered("5", LATE)),
        {"stuck"},
    ),
    "accepted without an answer": (lambda run: setattr(run, "orderly", True), {"stuck"}),
    "a fault of the server": (
        lambda run: run.exchanges.append(exchange("5", 500, {"code": "E_INTERNAL"})),
        {"fault"},
    ),
    "done although refused": (_refuse, {"invented"}),
    "done twice": (lambda run: run.effects.append(effect(2)), {"repeated"}),
    "an attempt done twice": (lambda run: run.effects.append(effect()), {"repeated"}),
    "work of nobody": (lambda run: run.effects.append(effect(1, "gone")), {"phantom"}),
    "never done": (lambda run: run.effects.clear(), {"invented"}),
    "two executions": (lambda run: _again(run, "f"), {"twice"}),
    "a key that is gone": (lambda run: run.keys.clear(), {"twice"}),
    "not ended": (lambda run: run.change(state="running"), {"changed", "unfinished"}),
    "a gap": (lambda run: run.events["e"].pop(0), {"events"}),
    "two ends": (lambda run: run.events["e"].insert(0, event(1, "failed")), {"events"}),
    "no end": (lambda run: run.events["e"].pop(), {"events"}),
    "a broken chain": (lambda run: setattr(run, "fault", "row 7"), {"verify"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named(run: Run, what: str) -> None:
    breaking, rules = BROKEN[what]
    breaking(run)
    assert set(run.broken()) == rules


def test_more_attempts_than_allowed_are_named(run: Run) -> None:
    run.change(delivery="at_least_once", attempt=4)
    run.effects.extend([effect(2), effect(3), effect(4)])
    assert set(run.broken()) == {"repeated"}


def test_a_takeover_is_measured_from_the_kill(run: Run) -> None:
    run.change(started_at=1_000_000, last_seq=5)
    run.events["e"] = [
        event(1, "attempt_started", 4_000_000, attempt=2),
        event(2, "log", 4_500_000),
        event(3, "attempt_started", 5_000_000, attempt=3),
        event(4, "failed", 7_500_000, code="E_STREAM_BROKEN"),
    ]
    ledger = Ledger(executions=run.executions, contracts={}, refused={}, events=run.events, keys={})
    # The second attempt failed by itself; the first and the third were interrupted.
    assert retaken(ledger) == 2
    assert resumed(ledger, [500_000, 3_000_000, 7_000_000]) == [1.0, 0.5]

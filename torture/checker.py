"""What must hold after any number of crashes: both journals against the ledger.

Each rule is a function that yields what breaks it, with the ids to look for. It sees only records,
so that a test can show it a broken run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torture.callers import LATE
from torture.journals import Effect, Exchange
from torture.ledger import TERMINAL, Contract, Execution, Ledger

_EVENT_OF = {
    "completed": "completed",
    "failed": "failed",
    "timed_out": "failed",
    "cancelled": "cancelled",
}
_STATUS_OF = _EVENT_OF
_NOT_STARTED = frozenset(
    {
        "E_SHUTTING_DOWN",
        "E_QUEUE_FULL",
        "E_OVERLOADED",
        "E_AGENT_UNAVAILABLE",
        "E_CIRCUIT_OPEN",
    }
)
"""Codes of refusals that say that nothing was accepted, unless they name an execution."""

_FAULTS = frozenset({400, 409, 422, 500, 502, 504})
"""Statuses that no request of ours may get: each is well formed, none has a time limit."""


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept. ``id`` is an execution's, a contract's, or a send's."""

    rule: str
    id: str
    said: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.id}: {self.said}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run left behind. ``fault`` is what the ledger's own verification found.

    ``orderly``: no process was killed or frozen; whoever was accepted got an answer, too.
    """

    exchanges: list[Exchange]
    effects: list[Effect]
    ledger: Ledger
    fault: str | None = None
    orderly: bool = False

    @cached_property
    def effects_of(self) -> dict[str, list[Effect]]:
        """The effects by execution."""
        found: defaultdict[str, list[Effect]] = defaultdict(list)
        for effect in self.effects:
            found[effect.execution_id].append(effect)
        return dict(found)

    @cached_property
    def executions_of(self) -> dict[str, list[str]]:
        """The executions by marker."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for execution_id in self.ledger.executions:
            marker = self.ledger.marker(execution_id)
            if marker is not None:
                found[marker].append(execution_id)
        return dict(found)

    def contract(self, execution_id: str, kind: str) -> Contract | None:
        """Return an execution's contract of that type."""
        contracts = self.ledger.contracts.get(execution_id, ())
        return next((c for c in contracts if c.type == kind), None)


def judge(evidence: Evidence) -> list[Violation]:
    """Return everything that is wrong."""
    return [violation for rule in RULES for violation in rule(evidence)]


# -- what callers were told --------------------------------------------------------------------


def lost(evidence: Evidence) -> Iterator[Violation]:
    """Check that what was acknowledged is in the ledger, with both contracts once answered."""
    for exchange in evidence.exchanges:
        if exchange.answer is None:
            continue
        if exchange.execution_id is not None:
            yield from _lost_execution(evidence, exchange, exchange.execution_id)
        elif exchange.answer.body["code"] == "E_AGENT_NOT_FOUND":
            yield from _lost_refusal(evidence, exchange, exchange.answer.body)


def _lost_execution(
    evidence: Evidence, exchange: Exchange, execution_id: str
) -> Iterator[Violation]:
    assert exchange.answer is not None
    told = f"send {exchange.intent.send} of task {exchange.intent.marker} was told of it"
    contract_id = exchange.answer.body.get("contract_id")
    execution = evidence.ledger.executions.get(execution_id)
    if execution is None:
        yield Violation("lost", execution_id, f"it is not in the ledger, but {told}")
        return
    if contract_id not in {None, execution.request_id}:
        yield Violation("lost", contract_id, f"it is not of {execution_id}, but {told}")
    if evidence.contract(execution_id, "REQUEST") is None:
        yield Violation("lost", execution_id, f"it has no REQUEST, but {told}")
    answered = exchange.answer.status == 200
    if answered and evidence.contract(execution_id, "RESPONSE") is None:
        yield Violation("lost", execution_id, f"it has no RESPONSE, but {told}")
    if evidence.ledger.marker(execution_id) not in {None, exchange.intent.marker}:
        yield Violation("lost", execution_id, f"it is another task's, but {told}")


def _lost_refusal(
    evidence: Evidence, exchange: Exchange, body: dict[str, Any]
) -> Iterator[Violation]:
    contract_id = body["details"].get("contract_id", "no contract_id")
    if evidence.ledger.refused.get(contract_id) is None:
        send = exchange.intent.send
        yield Violation("lost", contract_id, f"the refusal of send {send} is not in the ledger")


def changed(evidence: Evidence) -> Iterator[Violation]:
    """Check that a reply says what the ledger says."""
    for exchange in evidence.exchanges:
        if exchange.answer is None or exchange.answer.status != 200:
            continue
        reply = exchange.answer.body
        execution = evidence.ledger.executions.get(reply["execution_id"])
        kept = evidence.contract(reply["execution_id"], "RESPONSE")
        if execution is None or kept is None:
            continue  # lost, which is another rule's
        if reply["success"] is not (execution.state == "completed"):
            told = "success" if reply["success"] else "failure"
            said = f"a caller was told of {told}, the ledger says {execution.state}"
            yield Violation("changed", execution.id, said)
        elif reply["success"] and reply["data"] != kept.body:
            yield Violation("changed", execution.id, f"{reply['data']} became {kept.body}")
        elif not reply["success"] and reply["error_info"] != kept.body:
            yield Violation("changed", execution.id, f"{reply['error_info']} became {kept.body}")
        elif reply["success"] and reply["data"]["marker"] != exchange.intent.marker:
            yield Violation("changed", execution.id, "the result is another task's")


def unexpected(evidence: Evidence) -> Iterator[Violation]:
    """Check that nobody waits for ever or meets a fault, and that what is refused is not done."""
    for exchange in evidence.exchanges:
        intent, answer = exchange.intent, exchange.answer
        if exchange.lost is not None and exchange.lost.why == LATE:
            yield Violation("stuck", intent.send, f"task {intent.marker} was never answered")
        if answer is None:
            if evidence.orderly and intent.key is None and intent.marker in evidence.executions_of:
                accepted = evidence.executions_of[intent.marker][0]
                yield Violation("stuck", accepted, f"send {intent.send} got no answer")
            continue
        code = answer.body.get("code")
        if answer.status in _FAULTS or (answer.status == 404 and code != "E_AGENT_NOT_FOUND"):
            yield Violation("fault", intent.send, f"answered {answer.status}: {answer.body}")
        refused = code in _NOT_STARTED and exchange.execution_id is None
        if refused and intent.key is None and intent.marker in evidence.executions_of:
            started = evidence.executions_of[intent.marker][0]
            yield Violation("invented", started, f"send {intent.send} was refused")


# -- what was done -----------------------------------------------------------------------------


def repeated(evidence: Evidence) -> Iterator[Violation]:
    """Check that no more work was done than the delivery policy allows."""
    for execution_id, effects in evidence.effects_of.items():
        execution = evidence.ledger.executions.get(execution_id)
        if execution is None:
            yield Violation("phantom", execution_id, "it had an effect, and is not in the ledger")
            continue
        for attempt, times in Counter(effect.attempt for effect in effects).items():
            if times > 1:
                yield Violation("repeated", execution_id, f"attempt {attempt} ran {times} times")
            if attempt > min(execution.attempt, execution.max_attempts):
                said = f"attempt {attempt} ran: {execution.attempt} of {execution.max_attempts}"
                yield Violation("repeated", execution_id, said)
        if execution.delivery == "at_most_once" and len(effects) > 1:
            yield Violation("repeated", execution_id, f"at most once ran {len(effects)} times")


def done(evidence: Evidence) -> Iterator[Violation]:
    """Check that what the ledger calls completed was done, by the last attempt."""
    for execution in evidence.ledger.executions.values():
        if execution.state == "completed":
            effects = evidence.effects_of.get(execution.id, ())
            if execution.attempt not in {effect.attempt for effect in effects}:
                said = f"attempt {execution.attempt} completed without an effect"
                yield Violation("invented", execution.id, said)


def once(evidence: Evidence) -> Iterator[Violation]:
    """Check that a send is at most one execution, and so are all sends with one key."""
    acknowledged: defaultdict[str, set[str]] = defaultdict(set)
    for exchange in evidence.exchanges:
        found = evidence.executions_of.get(exchange.intent.marker, [])
        if len(found) > 1:
            said = f"task {exchange.intent.marker} became {len(found)}: {', '.join(found)}"
            yield Violation("twice", exchange.intent.send, said)
        if exchange.intent.key is not None and exchange.execution_id is not None:
            acknowledged[exchange.intent.key].add(exchange.execution_id)
    for key, named in acknowledged.items():
        if len(named) > 1:
            yield Violation("twice", key, f"the key stood for {', '.join(sorted(named))}")
        kept = evidence.ledger.keys.get(key)
        if kept not in named:
            said = f"callers were told {', '.join(sorted(named))}, the ledger says {kept}"
            yield Violation("twice", key, said)


# -- what the ledger says of itself ------------------------------------------------------------


def ended(evidence: Evidence) -> Iterator[Violation]:
    """Check that every execution ended, once, with both contracts and no gap in its events."""
    for execution in evidence.ledger.executions.values():
        if execution.state not in TERMINAL:
            yield Violation("unfinished", execution.id, f"it is still {execution.state}")
            continue
        yield from _events(evidence, execution)
        yield from _contracts(evidence, execution)
    for execution_id in (
        evidence.ledger.events.keys() | evidence.ledger.contracts.keys()
    ) - evidence.ledger.executions.keys():
        yield Violation("events", execution_id, "records of an execution that is not there")


def _events(evidence: Evidence, execution: Execution) -> Iterator[Violation]:
    events = evidence.ledger.events.get(execution.id, [])
    numbers = [event.seq for event in events]
    if numbers != list(range(1, execution.last_seq + 1)):
        said = f"numbers {numbers}, last_seq {execution.last_seq}"
        yield Violation("events", execution.id, said)
    ends = [event.type for event in events if event.type in _EVENT_OF.values()]
    if ends != [_EVENT_OF[execution.state]] or events[-1].type != ends[0]:
        yield Violation("events", execution.id, f"{execution.state}, and its ends are {ends}")


def _contracts(evidence: Evidence, execution: Execution) -> Iterator[Violation]:
    contracts = evidence.ledger.contracts.get(execution.id, [])
    said = [(contract.type, contract.id, contract.status) for contract in contracts]
    expected = [
        ("REQUEST", execution.request_id, None),
        ("RESPONSE", execution.response_id, _STATUS_OF[execution.state]),
    ]
    if said != expected:
        yield Violation("contracts", execution.id, f"{execution.state}, and they are {said}")


def verified(evidence: Evidence) -> Iterator[Violation]:
    """Check that the ledger verifies."""
    if evidence.fault is not None:
        yield Violation("verify", "ledger", evidence.fault)


RULES: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    lost,
    changed,
    unexpected,
    repeated,
    done,
    once,
    ended,
    verified,
)

"""A session's memory block, made from its real contracts.

The facts (capabilities, agents, outcomes, what was asked and answered) are always taken from the
contracts, here, with no model. With a memory service its words about them come on top; it is told
the account of the same facts. When it cannot be had the block says that it was made locally.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import Any

from retinue.domain.contract import ContractType
from retinue.domain.ids import iso
from retinue.domain.strictjson import dumps, loads
from retinue.errors import InvalidInput, PeerRefused, PeerUnavailable
from retinue.interfaces import ContractFilter, ContractView, Memory, Page, Store

log = logging.getLogger(__name__)
MOST_EXCHANGES = 200
MOST_TOLD = 16_000
_PAGE = 50
_MOST_TEXT = 300
_MOST_TAIL = 100
_MOST_ITEMS = 20
_MOST_LINE = 1_000


async def compress(
    store: Store, owner: str, session_id: str, intent: str | None, memory: Memory | None = None
) -> dict[str, Any]:
    """Return the memory block of a session.

    Raises:
        InvalidInput: the session has no contracts; nobody was asked.
    """
    where = ContractFilter(owner=owner, session_id=session_id)
    digest = Digest(session_id, intent)
    page = Page(limit=_PAGE)
    while True:
        listing = await store.contracts(where, page)
        for view in listing.items:
            digest.add(view)
        if listing.next_cursor is None:
            break
        page = Page(limit=_PAGE, cursor=listing.next_cursor)
    if not digest.contracts:
        raise InvalidInput(f"session {session_id} has no contracts")
    block = digest.block()
    if memory is None:
        return block
    try:
        theirs = await memory.compress(session_id, intent, account(block))
    except (PeerUnavailable, PeerRefused) as error:
        log.warning("compressed locally: %s", error.message, extra={"session_id": session_id})
        return {**block, "fallback": error.message}
    # What they say is theirs; what happened is in our contracts.
    facts = {name: value for name, value in block.items() if name != "summary"}
    return {**theirs, **facts, "source": memory.name, "created_by": memory.name}


class Digest:
    """Takes in a session's contracts in chain order; keeps the counts and the last exchanges."""

    def __init__(self, session_id: str, intent: str | None) -> None:
        self.contracts = 0
        self._session_id = session_id
        self._intent = intent
        self._agents: set[str] = set()
        self._capabilities: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._exchanges: deque[dict[str, Any]] = deque(maxlen=MOST_EXCHANGES)
        self._first_at = self._last_at = 0

    def add(self, view: ContractView) -> None:
        """Take in one contract."""
        contract = view.contract
        self.contracts += 1
        self._first_at = self._first_at or contract.at
        self._last_at = contract.at
        if contract.type is not ContractType.REQUEST:
            return
        if view.agent_id is not None:
            self._agents.add(view.agent_id)
        self._capabilities[str(contract.capability)] += 1
        self._outcomes[view.state.value] += 1
        self._exchanges.append(_exchange(view))

    def block(self) -> dict[str, Any]:
        """Return the memory block."""
        agents = sorted(self._agents)
        told = ", ".join(f"{n} {word}" for word, n in sorted(self._outcomes.items()))
        done = ", ".join(
            name if n == 1 else f"{name} ({n} times)" for name, n in self._capabilities.items()
        )
        tasks = self._outcomes.total()
        counted = f"{tasks} task{'s' if tasks != 1 else ''}"
        return {
            "session_id": self._session_id,
            "intent": self._intent,
            "source": "local",
            "created_by": "retinue (local, extractive)",
            "fallback": None,
            "summary": f"{counted} ({told}) by {', '.join(agents) or 'nobody'}: {done}",
            "capabilities": dict(sorted(self._capabilities.items())),
            "agents": agents,
            "outcomes": dict(sorted(self._outcomes.items())),
            "from": iso(self._first_at),
            "to": iso(self._last_at),
            "contracts": self.contracts,
            "exchanges": list(self._exchanges),
            "exchanges_left_out": tasks - len(self._exchanges),
        }


def account(block: dict[str, Any]) -> str:
    """Return a memory block as text for a reader with little room: the latest exchanges first in.

    The text is in the order of the session, whatever had to be left out.
    """
    head = f"What happened in session {block['session_id']}: {block['summary']}."
    lines: deque[str] = deque()
    room = MOST_TOLD - len(head)
    for exchange in reversed(block["exchanges"]):
        said = {name: exchange[name] for name in ("asked", "answered")}
        agent = exchange["agent_id"] or "nobody"
        line = (
            f"- {exchange['capability']} by {agent}: {exchange['status']}; {dumps(said).decode()}"
        )
        line = line[:_MOST_LINE]
        room -= len(line) + 1
        if room < 0:
            lines.appendleft("- (earlier exchanges are left out)")
            break
        lines.appendleft(line)
    return "\n".join([head, *lines])


def _exchange(view: ContractView) -> dict[str, Any]:
    contract = view.contract
    asked = loads(contract.body) if contract.body is not None else {}
    answered = loads(view.answered) if view.answered is not None else None
    erased = {"erased": True} if contract.body is None else {}
    told = {
        "contract_id": contract.id,
        "capability": contract.capability,
        "agent_id": view.agent_id,
        "status": view.state.value,
        "asked": _brief(asked.get("parameters")),
        "answered": _brief(answered),
        **erased,
    }
    more = {name: _brief(asked[name]) for name in ("context", "intent") if name in asked}
    return told | more


def _brief(value: Any) -> Any:
    """Keep both ends of long texts and lists; structure stays."""
    if isinstance(value, str):
        if len(value) <= _MOST_TEXT:
            return value
        return f"{value[: _MOST_TEXT - _MOST_TAIL]} … {value[-_MOST_TAIL:]}"
    if isinstance(value, dict):
        return {key: _brief(child) for key, child in list(value.items())[:_MOST_ITEMS]}
    if isinstance(value, list):
        if len(value) > _MOST_ITEMS:
            value = [*value[: _MOST_ITEMS - 5], "…", *value[-5:]]
        return [_brief(child) for child in value]
    return value

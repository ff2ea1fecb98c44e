"""A session's memory block, made locally from its real contracts (extractive, no model)."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from retinue.domain.contract import ContractType
from retinue.domain.ids import iso
from retinue.domain.strictjson import loads
from retinue.errors import InvalidInput
from retinue.interfaces import ContractFilter, ContractView, Page, Store

MOST_EXCHANGES = 200
_MOST_TEXT = 300


async def compress(store: Store, owner: str, session_id: str, intent: str | None) -> dict[str, Any]:
    """Return the memory block of a session.

    Raises:
        InvalidInput: the session has no contracts.
    """
    where = ContractFilter(owner=owner, session_id=session_id)
    block = _Block()
    page = Page(limit=1000)
    while True:
        listing = await store.contracts(where, page)
        for view in listing.items:
            block.add(view)
        if listing.next_cursor is None:
            break
        page = Page(limit=1000, cursor=listing.next_cursor)
    if not block.contracts:
        raise InvalidInput(f"session {session_id} has no contracts")
    return block.done(session_id, intent)


class _Block:
    """Takes a session's contracts one by one, in chain order, and keeps what is told of them."""

    def __init__(self) -> None:
        self.contracts = 0
        self._requests = 0
        self._agents: set[str] = set()
        self._capabilities: Counter[str | None] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._first = self._last = 0
        self._exchanges: deque[dict[str, Any]] = deque(maxlen=MOST_EXCHANGES)

    def add(self, view: ContractView) -> None:
        """Take one contract."""
        self._first = self._first if self.contracts else view.contract.at
        self._last = view.contract.at
        self.contracts += 1
        if view.contract.type is not ContractType.REQUEST:
            return
        self._requests += 1
        if view.agent_id is not None:
            self._agents.add(view.agent_id)
        self._capabilities[view.contract.capability] += 1
        self._outcomes[view.state.value] += 1
        self._exchanges.append(_exchange(view))

    def done(self, session_id: str, intent: str | None) -> dict[str, Any]:
        """Return the memory block."""
        agents = sorted(self._agents)
        outcomes = sorted(self._outcomes.items())
        told = ", ".join(f"{n} {word}" for word, n in outcomes)
        return {
            "session_id": session_id,
            "intent": intent,
            "created_by": "retinue (local, extractive)",
            "summary": f"{self._requests} tasks ({told}) by {', '.join(agents) or 'nobody'}",
            "capabilities": {
                str(name): n for name, n in sorted(self._capabilities.items(), key=str)
            },
            "agents": agents,
            "outcomes": dict(outcomes),
            "from": iso(self._first),
            "to": iso(self._last),
            "contracts": self.contracts,
            "exchanges": list(self._exchanges),
        }


def _exchange(view: ContractView) -> dict[str, Any]:
    contract = view.contract
    asked = loads(contract.body).get("parameters") if contract.body is not None else None
    answered = loads(view.answered) if view.answered is not None else None
    return {
        "contract_id": contract.id,
        "capability": contract.capability,
        "agent_id": view.agent_id,
        "status": view.state.value,
        "asked": _brief(asked),
        "answered": _brief(answered),
    }


def _brief(value: Any) -> Any:
    """Keep the start of long texts; structure stays."""
    if isinstance(value, str):
        return value if len(value) <= _MOST_TEXT else value[:_MOST_TEXT] + " …"
    if isinstance(value, dict):
        return {key: _brief(child) for key, child in list(value.items())[:20]}
    if isinstance(value, list):
        return [_brief(child) for child in value[:20]]
    return value

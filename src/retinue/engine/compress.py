"""A session's memory block, made locally from its real contracts (extractive, no model)."""

from __future__ import annotations

from collections import Counter
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
    views: list[ContractView] = []
    page = Page(limit=1000)
    while True:
        listing = await store.contracts(where, page)
        views.extend(listing.items)
        if listing.next_cursor is None:
            break
        page = Page(limit=1000, cursor=listing.next_cursor)
    if not views:
        raise InvalidInput(f"session {session_id} has no contracts")
    return memory_block(session_id, intent, views)


def memory_block(session_id: str, intent: str | None, views: list[ContractView]) -> dict[str, Any]:
    """Return the memory block of these contracts, in chain order. Pure."""
    requests = [v for v in views if v.contract.type is ContractType.REQUEST]
    agents = sorted({v.agent_id for v in requests if v.agent_id is not None})
    capabilities = Counter(v.contract.capability for v in requests)
    outcomes = Counter(v.state.value for v in requests)
    told = ", ".join(f"{n} {word}" for word, n in sorted(outcomes.items()))
    return {
        "session_id": session_id,
        "intent": intent,
        "created_by": "retinue (local, extractive)",
        "summary": f"{len(requests)} tasks ({told}) by {', '.join(agents) or 'nobody'}",
        "capabilities": {str(name): n for name, n in sorted(capabilities.items(), key=str)},
        "agents": agents,
        "outcomes": dict(sorted(outcomes.items())),
        "from": iso(views[0].contract.at),
        "to": iso(views[-1].contract.at),
        "contracts": len(views),
        "exchanges": [_exchange(view) for view in requests[-MOST_EXCHANGES:]],
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

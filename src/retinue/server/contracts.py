"""Contracts: the record of every exchange, as specification 003 shows it."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.domain.contract import ContractStatus, ContractType, status_of
from retinue.domain.execution import State
from retinue.domain.ids import iso
from retinue.domain.session import check_session_id
from retinue.interfaces import ContractFilter, ContractView
from retinue.server.records import NULL, Hash, Query, SessionId, Time, Ulid, error_of, raw, when
from retinue.server.routing import Call, Operation, encode


class ContractMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a contract beyond specification 003's fields.

    `n` is its place in the session's chain, `hash` its link. `erased` says that its body is gone.
    """

    execution_id: Ulid | None
    n: int
    hash: Hash
    context: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    intent: str | msgspec.UnsetType = msgspec.UNSET
    error_code: str | msgspec.UnsetType = msgspec.UNSET
    retryable: bool | msgspec.UnsetType = msgspec.UNSET
    details: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    erased: bool | msgspec.UnsetType = msgspec.UNSET


class ContractRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One side of an exchange.

    A REQUEST's `payload` are the task's parameters; its `status`, `result` and `error` follow
    from its RESPONSE. A RESPONSE's `payload` is the whole result.
    """

    contract_id: Ulid
    session_id: str
    contract_type: ContractType
    from_agent: str
    to_agent: str | None
    capability: str | None
    payload: msgspec.Raw
    status: ContractStatus
    created_at: Time
    completed_at: Time | None
    result: msgspec.Raw
    error: str | None
    metadata: ContractMetadata


class ContractList(msgspec.Struct, frozen=True, kw_only=True):
    """Contracts in chain order."""

    session_id: str | None
    contracts: list[ContractRecord]
    total: int
    next_cursor: str | None


class ContractQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which contracts."""

    session_id: SessionId | None = None
    from_agent: str | None = None
    to_agent: str | None = None


class _Asked(msgspec.Struct):
    """A REQUEST's body, its parts as they are."""

    parameters: msgspec.Raw = NULL
    context: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    intent: str | msgspec.UnsetType = msgspec.UNSET


class _Payload(msgspec.Struct, omit_defaults=True):
    """A RESPONSE's payload: specification 003's result of an agent."""

    success: bool
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET


_asked = msgspec.json.Decoder(_Asked).decode


def contract_record(view: ContractView) -> ContractRecord:
    """Return a contract as it is shown."""
    contract = view.contract
    completed = view.state is State.COMPLETED
    error = None if completed else error_of(view.answered)
    result = raw(view.answered if completed else None)
    is_request = contract.type is ContractType.REQUEST
    asked = _asked(contract.body) if is_request and contract.body is not None else _Asked()
    if is_request:
        payload = asked.parameters
        to_agent = contract.to_agent or view.agent_id
        status = status_of(view.state)
        completed_at = when(view.finished_at)
    else:
        payload = _payload(contract.body, result, error)
        to_agent = contract.to_agent
        status = contract.status or status_of(view.state)
        completed_at = iso(contract.at)
    return ContractRecord(
        contract_id=contract.id,
        session_id=contract.session_id,
        contract_type=contract.type,
        from_agent=contract.from_agent,
        to_agent=to_agent,
        capability=contract.capability,
        payload=payload,
        status=status,
        created_at=iso(contract.at),
        completed_at=completed_at,
        result=result,
        error=error["message"] if error is not None else None,
        metadata=ContractMetadata(
            execution_id=contract.execution_id,
            n=contract.n,
            hash=contract.hash.hex(),
            context=asked.context,
            intent=asked.intent,
            error_code=error["code"] if error is not None else msgspec.UNSET,
            retryable=error["retryable"] if error is not None else msgspec.UNSET,
            details=error["details"] if error is not None else msgspec.UNSET,
            erased=True if contract.body is None else msgspec.UNSET,
        ),
    )


def _payload(body: bytes | None, result: msgspec.Raw, error: dict[str, Any] | None) -> msgspec.Raw:
    if body is None:
        return NULL
    if error is not None:
        return raw(encode(_Payload(False, error=error["message"])))
    return raw(encode(_Payload(True, data=result)))


async def list_contracts(call: Call) -> bytes:
    """List contracts: of a session, by sender or by receiver.

    A page ends after `limit` contracts, or sooner where their bodies are large: go on with
    `next_cursor` until it is null.
    """
    query = call.query(ContractQuery)
    if query.session_id is not None:
        check_session_id(query.session_id)
    where = ContractFilter(
        session_id=query.session_id, from_agent=query.from_agent, to_agent=query.to_agent
    )
    listing = await call.orchestrator.contracts(where, query.page, call.principal)
    return encode(
        ContractList(
            session_id=query.session_id,
            contracts=[contract_record(view) for view in listing.items],
            total=listing.total,
            next_cursor=listing.next_cursor,
        )
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/contracts",
        endpoint=list_contracts,
        tag="record",
        query=ContractQuery,
        gives=ContractList,
    ),
)

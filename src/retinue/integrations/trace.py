"""Trace: a sink that keeps contracts as events of their session.

``POST /v1/sessions/{session_id}/events`` with ``{event_type, data}``. What an event says is what
its contract said when it was written, so sending it twice says the same twice: a REQUEST is
``pending``, its outcome is the RESPONSE that follows.
"""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import quote

import msgspec

from retinue.domain.contract import Contract, ContractStatus, ContractType
from retinue.integrations.http import HttpPeer
from retinue.interfaces import Health

DELIVERY_SECONDS = 10.0
_NULL = msgspec.Raw(b"null")


class EventData(msgspec.Struct, frozen=True, kw_only=True):
    """A contract, as Trace is told of it."""

    contract_id: str
    from_agent: str
    to_agent: str | None
    capability: str | None
    payload: msgspec.Raw
    status: ContractStatus
    result: msgspec.Raw
    error: str | None


class TraceEvent(msgspec.Struct, frozen=True):
    """What is posted."""

    event_type: str
    data: EventData


class _Asked(msgspec.Struct):
    """A REQUEST's body: the parameters, as they are."""

    parameters: msgspec.Raw = _NULL


class _Failure(msgspec.Struct):
    """The body of a RESPONSE that is none of success: an error object."""

    message: str = ""


class _Payload(msgspec.Struct, omit_defaults=True):
    """A RESPONSE's payload: the whole result."""

    success: bool
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET


_encode = msgspec.json.Encoder().encode
_asked = msgspec.json.Decoder(_Asked).decode
_failure = msgspec.json.Decoder(_Failure).decode


def event_of(contract: Contract) -> TraceEvent:
    """Return the event that tells Trace of a contract. A body that was erased is null."""
    body, result, error = contract.body, _NULL, None
    if contract.type is ContractType.REQUEST:
        kind = "contract.request"
        status = ContractStatus.PENDING
        payload = _asked(body).parameters if body is not None else _NULL
    else:
        kind = "contract.response"
        status = contract.status or ContractStatus.COMPLETED
        payload = _NULL
        if body is not None and status is ContractStatus.COMPLETED:
            result = msgspec.Raw(body)
            payload = msgspec.Raw(_encode(_Payload(True, data=result)))
        elif body is not None:
            error = _failure(body).message
            payload = msgspec.Raw(_encode(_Payload(False, error=error)))
    return TraceEvent(
        kind,
        EventData(
            contract_id=contract.id,
            from_agent=contract.from_agent,
            to_agent=contract.to_agent,
            capability=contract.capability,
            payload=payload,
            status=status,
            result=result,
            error=error,
        ),
    )


class Trace:
    """The Trace service at a URL."""

    name: ClassVar[str] = "trace"

    def __init__(self, url: str, *, seconds: float = DELIVERY_SECONDS) -> None:
        self._http = HttpPeer("Trace", url)
        self._seconds = seconds

    async def deliver(self, contract: Contract, /) -> None:
        """Post one contract.

        Raises:
            PeerUnavailable: Trace does not answer, or cannot now.
            PeerRefused: it says no.
        """
        path = f"/v1/sessions/{quote(contract.session_id, safe='')}/events"
        await self._http.post(path, _encode(event_of(contract)), seconds=self._seconds)

    async def check(self) -> Health:
        """Say whether Trace is well."""
        return await self._http.well("/v1/health")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

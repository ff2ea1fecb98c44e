"""Other services that we call, Sink and Memory; and what agents leave beside the store."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Protocol

from retinue.domain.contract import Contract
from retinue.interfaces.drivers import Health


class Peer(Protocol):
    """Another service that we call."""

    name: ClassVar[str]

    async def check(self) -> Health:
        """Ask the service whether it is well. Answers within a second or so; never raises."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class Sink(Peer, Protocol):
    """Takes every contract, at least once, each session's in the order of its chain.

    Fed by the outbox (``engine.outbox``), never by whoever writes a contract.
    """

    async def deliver(self, contract: Contract, /) -> None:
        """Hand one contract over; on return the service has taken it.

        Raises:
            PeerUnavailable: the service does not answer, or says that it cannot now. Nothing is
                wrong with the contract.
            PeerRefused: it says no to this contract; ``for_good`` when saying it again is idle.
        """
        ...


class Memory(Peer, Protocol):
    """Compresses sessions into memory blocks."""

    async def compress(self, session_id: str, intent: str | None, told: str, /) -> dict[str, Any]:
        """Return the service's block of a session of which ``told`` is the account, as text.

        Raises:
            PeerUnavailable, PeerRefused: there is none.
        """
        ...


class Leavings(Protocol):
    """What the processes of agents leave on this machine, beside the store."""

    def executions(self) -> Collection[str]:
        """Return the executions of which something of their own is left; blocks."""
        ...

    def forget(self, executions: Collection[str], owner: str, session_id: str, /) -> None:
        """Remove what is left of these, and let no agent go on with its own session; blocks."""
        ...

"""Every error Retinue raises, in one tree.

::

    RetinueError                     E_INTERNAL
    ├── InvalidInput                 E_INVALID_INPUT
    │   ├── InvalidContext           E_INVALID_INPUT
    │   ├── TooLarge                 E_TOO_LARGE
    │   ├── UnsupportedMedia         E_UNSUPPORTED_MEDIA
    │   └── EgressDenied             E_EGRESS_DENIED
    ├── NotFound                     E_NOT_FOUND
    │   └── AgentNotFound            E_AGENT_NOT_FOUND
    ├── Gone                         E_GONE
    ├── Conflict                     E_CONFLICT
    │   └── IllegalTransition        E_CONFLICT
    ├── Unauthenticated              E_UNAUTHENTICATED
    ├── Forbidden                    E_FORBIDDEN
    ├── NotSupported                 E_NOT_SUPPORTED
    │   └── UnknownOperation         E_UNKNOWN_OPERATION
    ├── Unavailable                  E_UNAVAILABLE
    │   ├── AgentUnavailable         E_AGENT_UNAVAILABLE
    │   ├── Overloaded               E_OVERLOADED
    │   ├── StoreUnavailable         E_STORE_UNAVAILABLE
    │   │   ├── StoreBroken          E_STORE_BROKEN
    │   │   └── StoreMissing         E_STORE_MISSING
    │   ├── StoreFull                E_STORE_FULL
    │   ├── PeerUnavailable          E_PEER_UNAVAILABLE
    │   ├── ShuttingDown             E_SHUTTING_DOWN
    │   │   └── Stopped              E_SHUTTING_DOWN
    │   └── Pending                  E_PENDING
    ├── PeerRefused                  E_PEER_REFUSED
    ├── QueueFull                    E_QUEUE_FULL
    ├── RateLimited                  E_RATE_LIMITED
    ├── SessionBusy                  E_SESSION_BUSY
    ├── SettingsError                E_SETTINGS
    ├── StoreLocked                  E_STORE_LOCKED
    ├── StoreDamaged                 E_STORE_DAMAGED
    ├── LedgerBroken                 E_LEDGER_BROKEN
    └── ExecutionError               E_INTERNAL
        ├── AgentFailed              E_INTERNAL
        ├── Timeout                  E_TIMEOUT
        │   └── Unanswered           E_TIMEOUT
        ├── Cancelled                E_CANCELLED
        ├── CircuitOpen              E_CIRCUIT_OPEN
        ├── SpawnFailed              E_MODULE_LOAD
        ├── CommunicationError       E_STREAM_BROKEN
        │   ├── IoError              E_STREAM_BROKEN
        │   └── WorkerLost           E_STREAM_BROKEN
        ├── InvalidResult            E_INTERNAL
        ├── ProviderError            E_INTERNAL
        │   └── ProviderBusy         E_INTERNAL
        ├── BudgetExceeded           E_BUDGET_EXCEEDED
        ├── Fenced                   E_FENCED
        └── HumanInputRequired       E_HUMAN_INPUT_REQUIRED

``code``, ``kind`` and ``retryable`` are class attributes (codes of specification 000 §3.4, names
of 001). ``outcome`` says what is known about the work: ``not_started``, ``failed`` (it ran and
failed) or ``unknown`` (it may have had effects); repeating depends on it. A class docstring's
first line is the default message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

Outcome = Literal["not_started", "failed", "unknown"]


class RetinueError(Exception):
    """Something went wrong inside Retinue."""

    code: ClassVar[str] = "E_INTERNAL"
    kind: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    default_outcome: ClassVar[Outcome] = "failed"
    echo = False
    """Whether it tells of a failure that another error has told of: breakers count it once."""

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or type(self).__name__).splitlines()[0]
        self.details: dict[str, Any] = dict(details or {})
        self.outcome: Outcome = outcome or self.default_outcome
        super().__init__(self.message)

    def as_dict(self) -> dict[str, Any]:
        """Return ``{code, message, retryable, details}``, the error object of every door."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "details": self.details,
        }


class InvalidInput(RetinueError):
    """The request is not valid."""

    code = "E_INVALID_INPUT"
    kind = "validation"
    default_outcome = "not_started"


class InvalidContext(InvalidInput):
    """The task, its context or its environment cannot be given to the agent."""


class TooLarge(InvalidInput):
    """The request body is larger than the limit."""

    code = "E_TOO_LARGE"


class UnsupportedMedia(InvalidInput):
    """The request body must be application/json."""

    code = "E_UNSUPPORTED_MEDIA"


class EgressDenied(InvalidInput):
    """The egress policy does not let this server connect there."""

    code = "E_EGRESS_DENIED"


class NotFound(RetinueError):
    """There is no such thing."""

    code = "E_NOT_FOUND"
    kind = "not_found"
    default_outcome = "not_started"


class AgentNotFound(NotFound):
    """There is no such agent."""

    code = "E_AGENT_NOT_FOUND"


class Gone(RetinueError):
    """It was erased, or removed by retention; what is left says that it was there."""

    code = "E_GONE"
    kind = "not_found"
    default_outcome = "not_started"


class Conflict(RetinueError):
    """The request conflicts with what is stored."""

    code = "E_CONFLICT"
    kind = "validation"
    default_outcome = "not_started"


class IllegalTransition(Conflict):
    """The state machine has no such move."""


class Unauthenticated(RetinueError):
    """A valid credential is required: send "Authorization: Bearer KEY"."""

    code = "E_UNAUTHENTICATED"
    kind = "auth"
    default_outcome = "not_started"


class Forbidden(RetinueError):
    """The credential does not allow this."""

    code = "E_FORBIDDEN"
    kind = "auth"
    default_outcome = "not_started"


class NotSupported(RetinueError):
    """This driver does not have that power."""

    code = "E_NOT_SUPPORTED"
    kind = "validation"
    default_outcome = "not_started"


class UnknownOperation(NotSupported):
    """There is no such operation."""

    code = "E_UNKNOWN_OPERATION"


class Unavailable(RetinueError):
    """Not available right now; try again."""

    code = "E_UNAVAILABLE"
    retryable = True
    default_outcome: ClassVar[Outcome] = "not_started"


class AgentUnavailable(Unavailable):
    """No healthy agent is available right now; try again."""

    code = "E_AGENT_UNAVAILABLE"


class Overloaded(Unavailable):
    """As much is in progress as this server can hold; try again later."""

    code = "E_OVERLOADED"


class StoreUnavailable(Unavailable):
    """The store does not answer; nothing was acknowledged. Try again."""

    code = "E_STORE_UNAVAILABLE"


class StoreBroken(StoreUnavailable):
    """The disk failed under the store; nothing more is acknowledged."""

    code = "E_STORE_BROKEN"


class StoreMissing(StoreUnavailable):
    """There is no such database: create it."""

    code = "E_STORE_MISSING"
    retryable = False


class StoreFull(Unavailable):
    """The disk is full; nothing was acknowledged. Free space and try again."""

    code = "E_STORE_FULL"


class ShuttingDown(Unavailable):
    """The server is shutting down and takes no new work."""

    code = "E_SHUTTING_DOWN"


class Stopped(ShuttingDown):
    """The server stopped while this was running.

    Not retryable: it may have had effects, and sent again it would be done again.
    """

    retryable = False
    default_outcome = "unknown"


class Pending(Unavailable):
    """The task is accepted and goes on, but its reply cannot be had here now.

    Not retryable: sent again, it would be done again. ``details`` name the execution to ask for.
    """

    code = "E_PENDING"
    kind = "pending"
    retryable = False
    default_outcome = "unknown"


class PeerUnavailable(Unavailable):
    """Another service does not answer."""

    code = "E_PEER_UNAVAILABLE"


class PeerRefused(RetinueError):
    """Another service says no."""

    code = "E_PEER_REFUSED"

    def __init__(self, message: str | None = None, *, for_good: bool = False, **more: Any) -> None:
        super().__init__(message, **more)
        self.for_good = for_good


class QueueFull(RetinueError):
    """The queue for this agent is full; try again later."""

    code = "E_QUEUE_FULL"
    retryable = True
    default_outcome = "not_started"


class RateLimited(RetinueError):
    """Too many tasks in a short time; try again later."""

    code = "E_RATE_LIMITED"
    kind = "rate_limit"
    retryable = True
    default_outcome = "not_started"


class SessionBusy(RetinueError):
    """The session is busy, and this task is not to wait; try again later."""

    code = "E_SESSION_BUSY"
    retryable = True
    default_outcome = "not_started"


class SettingsError(RetinueError):
    """The settings are not valid."""

    code = "E_SETTINGS"
    kind = "validation"


class StoreLocked(RetinueError):
    """Another process has the store open."""

    code = "E_STORE_LOCKED"


class StoreDamaged(RetinueError):
    """The store's file is damaged."""

    code = "E_STORE_DAMAGED"


class LedgerBroken(RetinueError):
    """The ledger does not verify."""

    code = "E_LEDGER_BROKEN"


class ExecutionError(RetinueError):
    """The agent failed."""


class AgentFailed(ExecutionError):
    """The agent answered that it could not do it.

    An answer of a healthy agent: neither its breaker nor the retry policy takes it for a fault.
    """

    kind = "agent"


class Timeout(ExecutionError):
    """The execution did not finish before its deadline."""

    code = "E_TIMEOUT"
    kind = "timeout"
    retryable = True
    default_outcome = "unknown"


class Unanswered(Timeout):
    """Nobody answered the question in time."""


class Cancelled(ExecutionError):
    """The execution was cancelled."""

    code = "E_CANCELLED"


class CircuitOpen(ExecutionError):
    """The agent failed too often in a row; calls are refused until its circuit closes again."""

    code = "E_CIRCUIT_OPEN"
    retryable = True
    default_outcome = "not_started"


class SpawnFailed(ExecutionError):
    """The agent could not be loaded or started."""

    code = "E_MODULE_LOAD"
    kind = "initialization"
    default_outcome = "not_started"


class CommunicationError(ExecutionError):
    """The connection to the agent broke."""

    code = "E_STREAM_BROKEN"
    kind = "stream"
    retryable = True
    default_outcome = "unknown"


class WorkerLost(CommunicationError):
    """The worker that ran this execution died or lost its lease; the work may have had effects."""


class IoError(CommunicationError):
    """The operating system refused an operation on the agent's files or pipes.

    The ``OSError`` is its ``__cause__``; ``details`` has its ``errno``.
    """


class ProviderError(ExecutionError):
    """The model's provider refused or failed; ``details`` has what it said."""

    kind = "provider_error"


class ProviderBusy(ProviderError):
    """The model's provider has too much to do, or failed itself: later it may do."""

    retryable = True


class InvalidResult(ExecutionError):
    """The agent returned something that is not valid JSON."""

    default_outcome = "unknown"


class BudgetExceeded(ExecutionError):
    """The task spent more than it may."""

    code = "E_BUDGET_EXCEEDED"
    kind = "budget"


class Fenced(ExecutionError):
    """The execution is not this attempt's any more: it lost its lease, or was taken over."""

    code = "E_FENCED"
    default_outcome = "unknown"


class HumanInputRequired(ExecutionError):
    """The execution waits for a person's answer."""

    code = "E_HUMAN_INPUT_REQUIRED"
    kind = "pending"
    default_outcome = "unknown"


def said(error: BaseException) -> str:
    """Return what an exception of somebody else's code says, as one bounded text."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be shown)"
    return f"{type(error).__name__}: {text[:10_000]}"


def _tree(root: type[RetinueError]) -> list[type[RetinueError]]:
    found = [root]
    for child in root.__subclasses__():
        found.extend(_tree(child))
    return found


def error_from(error: Mapping[str, Any]) -> RetinueError:
    """Return the exception that an error object (``as_dict``) stands for."""
    code = error.get("code")
    # The first of the tree with that code is the most general one: E_STREAM_BROKEN may have been
    # a WorkerLost, which a reader of the ledger cannot tell and need not. Whether it may be sent
    # again is another matter.
    kinds = [k for k in (*_tree(ExecutionError), *_tree(RetinueError)) if k.code == code]
    again = error.get("retryable")
    same = (k for k in kinds if k.retryable == again)
    kind = next(same, kinds[0] if kinds else ExecutionError)
    return kind(str(error.get("message", "")) or None, details=error.get("details") or {})

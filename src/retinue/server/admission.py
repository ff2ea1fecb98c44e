"""Admission: how much the door holds at once; what goes beyond is refused early, with 503.

Every request in progress costs memory, however little it asks for; bodies and answers cost their
bytes. Both are bounded, so that an overload ends in refusals that say when to come back, and not in
a process that is out of memory. A stream waits for years and costs little: streams have a bound of
their own. What says how the service is is always answered.
"""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

from retinue.errors import Overloaded

SHARE = "retinue.share"
"""The scope's key for what a request has been granted."""

ALWAYS = frozenset({"/v1/health"})


class Share:
    """What one request holds: itself, and bytes. Used as a context, it is given back at its end."""

    __slots__ = ("_all", "_bytes", "_stream")

    def __init__(self, everything: Admission) -> None:
        self._all = everything
        self._bytes = 0
        self._stream = False

    def hold(self, length: int) -> None:
        """Hold ``length`` bytes more.

        Raises:
            Overloaded: they are too many.
        """
        if self._all.bytes + length > self._all.most_bytes:
            raise Overloaded(details={"bytes": self._all.most_bytes})
        self.hold_anyway(length)

    def hold_anyway(self, length: int) -> None:
        """Hold ``length`` bytes more that are there already; new requests feel it."""
        self._all.bytes += length
        self._bytes += length

    def become_stream(self) -> None:
        """Count as a stream from now on.

        Raises:
            Overloaded: there are too many.
        """
        if self._all.streams >= self._all.most_streams:
            raise Overloaded("as many streams are open as may be", details={})
        self._stream = True
        self._all.streams += 1
        self._all.requests -= 1

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self._all.bytes -= self._bytes
        if self._stream:
            self._all.streams -= 1
        else:
            self._all.requests -= 1


class Admission:
    """What all requests in progress hold together."""

    def __init__(self, *, most_requests: int, most_streams: int, most_bytes: int) -> None:
        self.most_requests = most_requests
        self.most_streams = most_streams
        self.most_bytes = most_bytes
        self.requests = 0
        self.streams = 0
        self.bytes = 0

    def admit(self, scope: Scope) -> Share:
        """Let a request in, and remember its share in its scope.

        Raises:
            Overloaded: too many are in progress.
        """
        if self.requests >= self.most_requests and scope["path"] not in ALWAYS:
            raise Overloaded(details={"requests": self.most_requests})
        self.requests += 1
        share = Share(self)
        scope[SHARE] = share
        return share


def share_of(scope: dict[str, Any] | Scope) -> Share:
    """Return what a request has been granted."""
    share: Share = scope[SHARE]
    return share

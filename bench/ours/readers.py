"""Readers of one event stream, on raw sockets: ``readers.py URL PATH COUNT``.

Prints ``ready`` when each has its first event, and at the end one line of JSON: how many events
each got, the seconds from then until each had its last one, and until all had.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from urllib.parse import urlsplit

LAST = b'"eventType":"completed"'
_SECONDS = 60.0


class Reader:
    """One connection: counts events, which end with an empty line."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self.events = 0
        self.bytes = 0
        self.ended_at = 0.0
        self._tail = b""
        self.socket = socket.create_connection((host, port))
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        self.socket.setblocking(False)

    def read(self) -> None:
        """Take in what has arrived."""
        got = self.socket.recv(1 << 18)
        if not got:
            raise SystemExit("a stream ended before its last event")
        self.bytes += len(got)
        joined = self._tail + got
        # What is kept is shorter than the mark, so that no mark counts twice.
        self.events += joined.count(b"\nid: ")
        if LAST in joined and joined.endswith((b"\n\n", b"\n\n\r\n", b"0\r\n\r\n")):
            self.ended_at = time.perf_counter()
        self._tail = joined[-4:] if LAST not in joined else joined[-400:].replace(b"\nid: ", b"")


def main() -> None:
    """Read until every reader has the last event."""
    place, path, count = urlsplit(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    assert place.hostname is not None
    assert place.port is not None
    readers = [Reader(place.hostname, place.port, path) for _ in range(count)]
    selector = selectors.DefaultSelector()
    for reader in readers:
        selector.register(reader.socket, selectors.EVENT_READ, reader)
    deadline = time.monotonic() + _SECONDS
    began = 0.0
    left = count
    while left:
        for key, _ in selector.select(1.0):
            reader = key.data
            reader.read()
            if reader.ended_at:
                selector.unregister(reader.socket)
                left -= 1
        if not began and all(reader.events for reader in readers):
            began = time.perf_counter()
            sys.stdout.write("ready\n")
            sys.stdout.flush()
        if time.monotonic() > deadline:
            raise SystemExit(f"{left} readers have no last event after {_SECONDS} s")
    seconds = [reader.ended_at - began for reader in readers]
    line = {
        "events": [reader.events for reader in readers],
        "seconds": seconds,
        "all": max(seconds),
        "bytes": max(reader.bytes for reader in readers),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

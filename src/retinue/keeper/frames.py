"""Frames between a keeper and its owner: JSON objects, and file descriptors beside them.

A frame is a length (four bytes, big-endian) and a JSON object; one that says ``fds`` is sent with
that many descriptors (SCM_RIGHTS). The kernel keeps descriptors with the bytes they were sent with
and never joins two sets of them, so the sets arrive in the order of the frames that own them. Where
the receiver has no room for them the kernel drops them: the frame comes with fewer than it says.

Strings travel as JSON escapes, so paths and arguments that are no UTF-8 (surrogates) survive.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from typing import Any

MOST_FRAME = 32 << 20
MOST_FDS = 8
_LENGTH = struct.Struct("!I")
_CHUNK = 64 * 1024

Frame = dict[str, Any]


class Closed(Exception):
    """The other end is gone."""


class Wire:
    """One end of the socket; never blocks.

    ``put`` takes a frame, ``flush`` writes what the socket takes and says whether that was all,
    ``receive`` returns the frames that have come. Descriptors given to ``put`` belong to the wire
    and are closed once they are sent.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._out: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._in = bytearray()
        self._fds: deque[list[int]] = deque()

    def put(self, frame: Frame, fds: tuple[int, ...] = ()) -> None:
        """Queue a frame."""
        if fds:
            frame = {**frame, "fds": len(fds)}
        body = json.dumps(frame, separators=(",", ":")).encode()
        if len(body) > MOST_FRAME:
            raise ValueError(f"a frame of {len(body)} bytes is larger than {MOST_FRAME}")
        self._out.append((memoryview(_LENGTH.pack(len(body)) + body), fds))

    def flush(self) -> bool:
        """Write; return whether nothing is left to be written.

        Raises:
            Closed: nobody reads any more.
        """
        while self._out:
            data, fds = self._out[0]
            try:
                sent = self._send(data, fds)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise Closed from error
            for fd in fds:
                os.close(fd)
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], ())
        return True

    def _send(self, data: memoryview, fds: tuple[int, ...]) -> int:
        if not fds:
            return self.socket.send(data)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        return self.socket.sendmsg([data], [rights])

    def receive(self) -> list[tuple[Frame, list[int]]]:
        """Return what has come: each frame with its descriptors.

        Raises:
            Closed: the other end is gone and everything it sent was returned.
        """
        while True:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    _CHUNK, socket.CMSG_SPACE(MOST_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data, ancillary, flags = b"", [], 0
            if not data:
                frames = self._frames()
                if frames:
                    return frames
                raise Closed
            self._take(ancillary, flags)
            self._in += data
            if len(data) < _CHUNK and not ancillary:
                break
        return self._frames()

    def _take(self, ancillary: list[Any], flags: int) -> None:
        """Keep the descriptors that came with one message."""
        came: list[int] = []
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
                came.extend(fds)
        if came or flags & socket.MSG_CTRUNC:
            self._fds.append(came)

    def _frames(self) -> list[tuple[Frame, list[int]]]:
        frames: list[tuple[Frame, list[int]]] = []
        at = 0
        while len(self._in) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in, at)
            begin = at + _LENGTH.size
            if len(self._in) < begin + length:
                break
            frame = json.loads(self._in[begin : begin + length])
            at = begin + length
            frames.append((frame, self._fds.popleft() if frame.get("fds") else []))
        del self._in[:at]
        return frames

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        self.socket.close()
        for _, fds in self._out:
            for fd in fds:
                os.close(fd)
        for came in self._fds:
            for fd in came:
                os.close(fd)
        self._out.clear()
        self._fds.clear()

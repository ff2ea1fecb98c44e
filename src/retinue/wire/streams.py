"""What nodes say about one request, as stream frames: accumulated, reset, completed once each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from retinue.domain.strictjson import dumps
from retinue.wire import envelope
from retinue.wire.payloads import RESULT_NODE, Chunk

_WORST = 8
"""A character takes six bytes at most, and the envelope some hundred."""


class Narration:
    """The stream frames of the request ``to``, as lines.

    ``only`` names the one node that is wanted (None: all). ``accumulated`` says whether that field
    is wanted; it is left out anyway once it would make lines too long.
    """

    def __init__(self, to: str, *, only: str | None, accumulated: bool, line_bytes: int) -> None:
        self._to = to
        self._only = only
        self._accumulated = accumulated
        self._size = max(line_bytes // _WORST, 1)
        self._said: dict[str, str] = {}
        self._void: set[str] = set()

    def say(self, node: str, text: str, *, reset: bool = False) -> Iterator[bytes]:
        """Yield the lines of what ``node`` says."""
        if self._only is None or node == self._only:
            yield from self._lines(node, text, reset=reset, complete=False)

    def reset(self) -> None:
        """Take all back: everything begins anew. Each node is told at its next frame."""
        self._void.update(self._said)

    def complete(self) -> Iterator[bytes]:
        """Yield the last line of every node that said something."""
        for node in self._said:
            yield from self._lines(node, "", reset=False, complete=True)

    def _lines(self, node: str, text: str, *, reset: bool, complete: bool) -> Iterator[bytes]:
        if node in self._void:
            self._void.discard(node)
            reset = True
        said = "" if reset else self._said.get(node, "")
        size = self._size
        for at in range(0, max(len(text), 1), size):
            piece = text[at : at + size]
            # What is not wanted is not kept; what has become too long, neither (but a mark is).
            if self._accumulated and len(said) <= size:
                said += piece
            whole = said if self._accumulated and len(said) <= size else msgspec.UNSET
            chunk = Chunk(
                node_name=node,
                chunk=piece,
                is_complete=complete,
                is_reset=reset,
                accumulated=whole,
            )
            yield envelope.encode_checked(envelope.stream(self._to, chunk))
            reset = False
        self._said[node] = said


def answer(to: str, result: Any, metadata: dict[str, Any], line_bytes: int) -> Iterator[bytes]:
    """Yield the lines of a good answer: one, or the result in pieces and then one."""
    payload = {"status": "success", "result": result, "metadata": metadata}
    line = envelope.encode_checked(envelope.response(to, payload))
    if len(line) <= line_bytes:
        yield line
        return
    text = dumps(result).decode()
    size = max(line_bytes // _WORST, 1)
    for at in range(0, len(text), size):
        piece, last = text[at : at + size], at + size >= len(text)
        chunk = Chunk(node_name=RESULT_NODE, chunk=piece, is_complete=last)
        yield envelope.encode_checked(envelope.stream(to, chunk))
    payload |= {"result": None, "result_node": RESULT_NODE}
    yield envelope.encode_checked(envelope.response(to, payload))

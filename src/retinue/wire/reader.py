"""A pipe's bytes in, frames out: the reader never dies, whatever comes.

Lines are split at newlines only. One longer than the limit is refused and the reader is in step
again at the next newline; a byte-order mark at the very beginning, a carriage return before the
newline and empty lines are passed over. All that is not as it should be is counted by its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from retinue.wire.envelope import LINE_BYTES, Frame, decode_message
from retinue.wire.strict import BadFrame

_BOM = b"\xef\xbb\xbf"


class FrameReader:
    """Reads one direction of one pipe.

    ``counts`` has every bad frame by its kind (``strict.KINDS``), and ``bom`` and ``crlf``, which
    are tolerated. Whoever finds a frame out of place counts it here, too (``exchange``).
    """

    def __init__(
        self, limit: int = LINE_BYTES, decode: Callable[[bytes], Frame] = decode_message
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.frames = 0
        self._limit = limit
        self._decode = decode
        self._parts: list[bytes] = []
        self._size = 0
        self._first = True

    def feed(self, chunk: bytes) -> list[Frame | BadFrame]:
        """Take in some bytes and return what ends in them, in order."""
        return list(self.each(chunk))

    def each(self, chunk: bytes) -> Iterator[Frame | BadFrame]:
        """Yield what ``feed`` returns, each when it is asked for: a piece may hold many lines."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            item = self._line(chunk[start:end])
            start = end + 1
            if item is not None:
                yield item
        if start < len(chunk):
            self._keep(chunk[start:])

    def rest(self) -> list[Frame | BadFrame]:
        """Return what is wrong with the end of the stream: a line without its newline."""
        if not self._size:
            return []
        parts, self._parts = b"".join(self._parts), []
        self._size = 0
        return [self._count(BadFrame("incomplete", None, parts))]

    def line(self, line: bytes) -> Frame | BadFrame | None:
        """Take one whole line (its newline included or not); None: it is empty."""
        return self._line(line.removesuffix(b"\n"))

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            # Too long already. Its beginning is kept, to be shown; the rest only counts.
            self._parts = [b"".join(self._parts)[:1024]]
        else:
            self._parts.append(part)

    def _line(self, end: bytes) -> Frame | BadFrame | None:
        size = self._size + len(end) + 1
        line = end
        if self._size:
            line = b"".join([*self._parts, end])
            self._parts, self._size = [], 0
        if size > self._limit:
            reason = f"the line has {size} bytes; the limit is {self._limit}"
            self._first = False
            return self._count(BadFrame("oversize", reason, line))
        if self._first:
            self._first = False
            if line.startswith(_BOM):
                line = line.removeprefix(_BOM)
                self.counts["bom"] += 1
        if line.endswith(b"\r"):
            line = line[:-1]
            self.counts["crlf"] += 1
        if not line or line.isspace():
            return None
        try:
            frame = self._decode(line)
        except BadFrame as error:
            return self._count(error)
        self.frames += 1
        return frame

    def _count(self, error: BadFrame) -> BadFrame:
        self.counts[error.kind_of_fault] += 1
        return error

    def count(self, kind: str) -> None:
        """Count a frame that was out of place."""
        self.counts[kind] += 1

    def report(self) -> dict[str, Any]:
        """Return what was read and what was wrong, for people."""
        return {"frames": self.frames, **dict(sorted(self.counts.items()))}

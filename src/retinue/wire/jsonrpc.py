"""JSON-RPC 2.0 between two peers over lines: who asked what, and whose answer is whose. No I/O.

Both peers may ask. ``hear`` is given each message that came; answers go to those who wait, in any
order, and what is left is for the owner: a ``Call`` of the other side's. Used for ACP, and for
Codex's app-server, which leaves the ``jsonrpc`` field out (``version=None``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

METHOD_NOT_FOUND = -32601


class RpcError(Exception):
    """The other side answered with an error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.code = code
        self.message = message
        self.data = data
        super().__init__(f"{message} ({code})")


class Call(NamedTuple):
    """What the other side asks; with ``id`` None it wants no answer."""

    method: str
    params: dict[str, Any]
    id: int | str | None


class Rpc:
    """One connection; ``send`` takes each message that is to go out."""

    def __init__(self, send: Callable[[Any], None], version: str | None = "2.0") -> None:
        self._send = send
        self._head = {"jsonrpc": version} if version is not None else {}
        self._last = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._closed: Exception | None = None

    @property
    def waiting(self) -> int:
        """How many answers are still to come."""
        return len(self._waiting)

    async def call(self, method: str, params: Any) -> Any:
        """Ask and return the answer.

        Raises:
            RpcError: the other side refuses.
        """
        if self._closed is not None:
            raise self._closed
        self._last += 1
        number = self._last
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send({**self._head, "id": number, "method": method, "params": params})
            return await future
        finally:
            self._waiting.pop(number, None)

    def notify(self, method: str, params: Any = None) -> None:
        """Say something that wants no answer."""
        more = {"params": params} if params is not None else {}
        self._send({**self._head, "method": method, **more})

    def answer(self, number: int | str | None, result: Any) -> None:
        """Answer what the other side asked."""
        self._send({**self._head, "id": number, "result": result})

    def refuse(self, number: int | str | None, code: int, message: str) -> None:
        """Answer with an error."""
        error = {"code": code, "message": message}
        self._send({**self._head, "id": number, "error": error})

    def hear(self, message: dict[str, Any]) -> Call | None:
        """Take in a message; return it when it asks or tells something.

        An answer that nobody waits for is dropped, and so is a message that is none.
        """
        method = message.get("method")
        number = message.get("id")
        if isinstance(method, str):
            params = message.get("params")
            return Call(method, params if isinstance(params, dict) else {}, number)
        future = self._waiting.get(number) if isinstance(number, int) else None
        if future is None or future.done():
            return None
        error = message.get("error")
        if error is None:
            future.set_result(message.get("result"))
            return None
        given = error if isinstance(error, dict) else {"message": str(error)}
        code = given.get("code")
        future.set_exception(
            RpcError(
                code if isinstance(code, int) else 0,
                str(given.get("message", "an error without a message")),
                given.get("data"),
            )
        )
        return None

    def close(self, why: Exception) -> None:
        """End it: whoever waits is told why, and whoever asks from now on."""
        self._closed = why
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(why)

"""JSON-RPC: answers find those who asked, in any order; nobody waits for ever."""

import asyncio
from typing import Any

import pytest

from retinue.wire.jsonrpc import Call, Rpc, RpcError


async def test_answers_in_any_order_find_their_own_callers() -> None:
    sent: list[Any] = []
    rpc = Rpc(sent.append)
    calls = [asyncio.create_task(rpc.call("double", {"n": n})) for n in range(100)]
    await asyncio.sleep(0)
    assert [message["jsonrpc"] for message in sent] == ["2.0"] * 100
    for message in reversed(sent):
        assert rpc.hear({"id": message["id"], "result": 2 * message["params"]["n"]}) is None
    assert [await call for call in calls] == [2 * n for n in range(100)]
    assert rpc.waiting == 0


async def test_an_error_is_raised_where_it_was_asked_for() -> None:
    sent: list[Any] = []
    rpc = Rpc(sent.append, None)
    call = asyncio.create_task(rpc.call("x", {}))
    await asyncio.sleep(0)
    assert sent == [{"id": 1, "method": "x", "params": {}}]
    rpc.hear({"id": 1, "error": {"code": -32001, "message": "busy", "data": {"a": 1}}})
    with pytest.raises(RpcError, match=r"busy \(-32001\)") as raised:
        await call
    assert raised.value.data == {"a": 1}


async def test_what_the_other_side_asks_is_the_owners() -> None:
    sent: list[Any] = []
    rpc = Rpc(sent.append)
    assert rpc.hear({"id": "a", "method": "ask", "params": {"p": 1}}) == Call("ask", {"p": 1}, "a")
    assert rpc.hear({"method": "tell", "params": [1]}) == Call("tell", {}, None)
    rpc.answer("a", 5)
    rpc.refuse(0, -32601, "no")
    rpc.notify("bye")
    assert sent == [
        {"jsonrpc": "2.0", "id": "a", "result": 5},
        {"jsonrpc": "2.0", "id": 0, "error": {"code": -32601, "message": "no"}},
        {"jsonrpc": "2.0", "method": "bye"},
    ]


@pytest.mark.parametrize(
    "message",
    [{}, {"id": 99, "result": 1}, {"id": "1", "result": 1}, {"id": None}, {"method": 3, "id": 1}],
)
async def test_what_is_no_message_is_dropped(message: dict[str, Any]) -> None:
    rpc = Rpc(lambda _: None)
    assert rpc.hear(message) is None


async def test_who_waits_when_it_closes_is_told_why() -> None:
    rpc = Rpc(lambda _: None)
    call = asyncio.create_task(rpc.call("x", {}))
    await asyncio.sleep(0)
    rpc.close(ValueError("gone"))
    with pytest.raises(ValueError, match="gone"):
        await call
    with pytest.raises(ValueError, match="gone"):
        await rpc.call("y", {})

"""The rules about how a worker ends."""

from __future__ import annotations

from retinue.cli.check.peer import Broken, NotShown, Peer
from retinue.wire.envelope import Error, Response

SECONDS = 5.0


async def shutdown(peer: Peer) -> None:
    """Check the rule `shutdown`."""
    await peer.until_ready()
    answer = await peer.answer(
        peer.order("shutdown", reason="check", timeout_ms=2000), "shutdown", SECONDS
    )
    if not isinstance(answer, Response) or answer.payload.get("status") != "shutting_down":
        raise Broken(f"it was answered by {answer.payload}, not by status shutting_down")
    _zero(await peer.ended(SECONDS), "shutdown")


async def drain(peer: Peer) -> None:
    """Check the rule `drain`."""
    await peer.until_ready()
    slow = "slow" in peer.cards
    running = peer.invoke("slow", {"seconds": 1}) if slow else None
    if not slow:
        raise NotShown("the program has no agent named slow")
    order = peer.order("shutdown", timeout_ms=10_000)
    late = peer.invoke(peer.main(), peer.given())
    await peer.answer(order, "shutdown", SECONDS)
    refused = await peer.answer(late, "a request after shutdown", SECONDS)
    if not isinstance(refused, Error):
        raise Broken("a request that came after shutdown was performed")
    ended = await peer.answer(running or "", "the request that was running", 8.0)
    if isinstance(ended, Error):
        raise Broken(f"the request that was running was ended early: {ended.payload.message}")
    _zero(await peer.ended(SECONDS), "shutdown")


async def deadline(peer: Peer) -> None:
    """Check the rule `deadline`."""
    await peer.until_ready()
    running = peer.invoke(peer.named("slow"), {"seconds": 60})
    await peer.answer(peer.order("ping"), "ping")
    await peer.answer(peer.order("shutdown", timeout_ms=200), "shutdown", SECONDS)
    ended = await peer.answer(running, "the request that was running", SECONDS)
    if not isinstance(ended, Error) or ended.payload.error_code != "E_CANCELLED":
        raise Broken("the request that was running did not end in E_CANCELLED")
    _zero(await peer.ended(SECONDS), "shutdown with timeout_ms 200")


async def end_of_input(peer: Peer) -> None:
    """Check the rule `end-of-input`."""
    await peer.until_ready()
    peer.close_input()
    _zero(await peer.ended(SECONDS), "the end of its input")


async def half_a_line(peer: Peer) -> None:
    """Check the rule `half-a-line`."""
    await peer.until_ready()
    peer.write(b'{"type":"control","pay')
    peer.close_input()
    _zero(await peer.ended(SECONDS), "half a line and the end of its input")


def _zero(code: int, what: str) -> None:
    if code != 0:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise Broken(f"after {what} the program ended with {how}, not 0")

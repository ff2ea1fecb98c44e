"""Specification 000's own Python form: start some agents, invoke them, stop them.

::

    async with await Fleet.start(Translator(), summarize) as fleet:
        done = await fleet.invoke("summarize", {"text": "…"}, timeout_ms=30_000)
        print(done.result)

Thin sugar over the one engine (``Runtime``): what is invoked here is recorded, limited, retried and
answered as everywhere else. ``BlockingFleet`` is the same for programs without an event loop.

What callbacks hear: ``on_chunk`` every piece of text, then exactly one of ``on_complete`` and
``on_error``, once. A callback that raises is told to ``on_error`` and hears nothing more; the
invocation, and all others, go on.
"""

from retinue.fleet.blocking import BlockingFleet
from retinue.fleet.fleet import Client, Fleet, Handle
from retinue.fleet.story import Invoked, Said

__all__ = ["BlockingFleet", "Client", "Fleet", "Handle", "Invoked", "Said"]

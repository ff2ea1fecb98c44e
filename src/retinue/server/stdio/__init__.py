"""The system as a subprocess of somebody's program: the worker protocol, from its other end.

What ``retinue serve --stdio`` speaks on its stdin and stdout (``docs/protocol.md``). Frames in,
lines out; the pipes themselves are the command line's.
"""

from retinue.server.stdio.door import StdioDoor

__all__ = ["StdioDoor"]

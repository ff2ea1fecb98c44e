"""The keeper: a small process that spawns, reaps and ends every agent process of its owner.

It is the only parent that agents have. Its owner (a server, or a program that uses Retinue as a
library) talks to it over a socket, and when the owner is gone, be it by SIGKILL, the keeper ends
everything it started, and itself. It needs the standard library only and runs no code of agents.

``process.link`` is the owner's side; ``docs/decisions/0006`` says why it is built like this.
"""

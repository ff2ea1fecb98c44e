"""``python -m retinue.sdk --module pkg.mod[:Class]`` serves a module's agents on stdio."""

from __future__ import annotations

import os
import sys

from retinue.agent import Agent
from retinue.errors import RetinueError
from retinue.sdk.catalog import Reference, agents_of
from retinue.sdk.output import take_stdio
from retinue.sdk.worker import serve
from retinue.wire import envelope
from retinue.wire.faults import fault_of

USAGE = """\
usage: python -m retinue.sdk [--module MODULE[:CLASS]]... [--agent [NAME=]MODULE:CLASS]...

Serves agents on stdin and stdout, by the protocol of docs/protocol.md.

  --module MODULE          all agents of a module, imported now
  --module MODULE:CLASS    that agent of it, imported now
  --agent NAME=MODULE:CLASS  an agent, imported when it is first invoked
"""


def main(arguments: list[str]) -> int:
    """Run the program; return its exit code."""
    modules: list[str] = []
    lazy: list[Reference] = []
    rest = list(arguments)
    while rest:
        word, _, value = rest.pop(0).partition("=")
        if word in {"-h", "--help"}:
            sys.stdout.write(USAGE)
            return 0
        if word not in {"--module", "--agent"} or not (value or rest):
            sys.stderr.write(USAGE)
            return 2
        value = value or rest.pop(0)
        if word == "--module":
            modules.append(value)
        else:
            name, equals, target = value.partition("=")
            target = target if equals else value
            lazy.append(Reference(name if equals else target.rpartition(":")[2], target))
    if not modules and not lazy:
        sys.stderr.write(USAGE)
        return 2
    return _serve(modules, lazy)


def _serve(modules: list[str], lazy: list[Reference]) -> int:
    # Before anything is imported: what a module prints then must not get among the frames.
    source, target = take_stdio()
    agents: list[Agent | Reference] = []
    try:
        for module in modules:
            agents += agents_of(module)
    except RetinueError as error:
        print(error.message, file=sys.stderr)
        os.write(target, envelope.encode_checked(envelope.error(None, fault_of(error))))
        return 1
    return serve(*agents, *lazy, module_name=" ".join(modules) or None, pipes=(source, target))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

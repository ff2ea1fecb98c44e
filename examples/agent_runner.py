"""Run agents as processes: spawn, stream, talk, signal, list, shut down, keep warm.

    python examples/agent_runner.py

It needs no CLI: its agents are small Python programs. With a real one the catalogue would say, for
instance, ``Backend(command=("claude", "-p"), prompt="stdin")``.
"""

import asyncio
import sys

from retinue.process import (
    AgentConfig,
    AgentPool,
    AgentSignal,
    Backend,
    GracefulShutdown,
    LocalProcessRunner,
    SpawnFailed,
)

RESEARCHER = """
import json, sys, time
print(json.dumps({"type": "thought_update", "content": "reading the task"}), flush=True)
for word in sys.argv[-1].split():
    print(json.dumps({"type": "output", "content": word}), flush=True)
print(json.dumps({"type": "result", "result": "done"}), flush=True)
"""
PARROT = "import sys\nfor line in sys.stdin: print('heard', line, end='', flush=True)"
STUBBORN = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('ready', flush=True)\n"
    "while True: time.sleep(1)"
)

CATALOGUE = {
    "researcher": Backend(command=(sys.executable, "-c", RESEARCHER)),
    "parrot": Backend(command=(sys.executable, "-c", PARROT), prompt="none"),
    "stubborn": Backend(command=(sys.executable, "-c", STUBBORN), prompt="none"),
}


async def main() -> None:
    """Do it all once."""
    async with LocalProcessRunner(catalogue=CATALOGUE) as runner:
        # Spawn one and stream what it says; JSON lines come as events.
        handle = await runner.spawn(AgentConfig("research", "researcher", "Focus on LLMs"))
        async for line in handle.output():
            print("research:", line.event or line.raw)
        print("research:", await handle.wait(), handle.status())

        # Talk to one.
        parrot = await runner.spawn(AgentConfig("parrot", "parrot", ""))
        await parrot.write_stdin(b"Hello, agent!\n")
        print("parrot:", await parrot.next_stdout())

        # Signal one; list them all.
        await runner.signal(parrot.id(), AgentSignal.TERMINATE)
        print("parrot:", await parrot.wait())
        stubborn = await runner.spawn(AgentConfig("stubborn", "stubborn", ""))
        await stubborn.next_stdout()
        for agent in await runner.list_agents():
            print(f"{agent.name}: {agent.status}")

        # Shut one down that ignores SIGTERM: nothing of it is left.
        stopped = await GracefulShutdown(0.5).shutdown(stubborn)
        print("stubborn:", stopped.step, stopped.exit)

        # Keep two warm: each serves one user, and ends.
        config = AgentConfig("warm", "parrot", "")
        async with AgentPool(runner, config, min_agents=2, max_agents=4) as pool:
            async with pool.take() as warm:
                await warm.write_stdin(b"Hello, pool!\n")
                print("pool:", await warm.next_stdout())

        try:
            await runner.spawn(AgentConfig("nobody", "no-such-cli", ""))
        except SpawnFailed as error:
            print("nobody:", error.message)


if __name__ == "__main__":
    asyncio.run(main())

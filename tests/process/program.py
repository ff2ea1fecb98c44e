"""A program that owns a keeper, for the tests that end it or count what it has."""

import asyncio
import collections
import json
import os
import resource
import signal
import sys
import threading
from typing import Any

from retinue.errors import SpawnFailed
from retinue.keeper.tree import children
from retinue.process import AgentConfig, AgentHandle, Backend, LocalProcessRunner
from retinue.process.child import Child, Streams
from retinue.process.link import Command, KeeperLink

SLEEP = Command(path="/bin/sleep", argv=("sleep", "1000"), env={"PATH": os.defpath}, cwd="/")
TREE = "setsid sleep 1000 & echo $!; exec sleep 1001"


def peak_memory() -> int:
    # Not ru_maxrss: that one begins with what our parent had.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def owner(forks: bool) -> None:
    """Run 100 agents, each with a tool that left its session; wait to be killed."""
    link = KeeperLink()
    command = Command(path="/bin/sh", argv=("sh", "-c", TREE), env={"PATH": os.defpath}, cwd="/")
    agents = await asyncio.gather(*(link.spawn(command, Streams()) for _ in range(100)))
    tools = [int(await agent.stdout.next() or 0) for agent in agents]
    told: dict[str, Any] = {
        "agents": [agent.pid for agent in agents],
        "tools": tools,
        "keeper": link.pid,
        "scope": link.scope,
    }
    if forks:
        told["forked"] = os.fork()  # it has our end of the keeper's socket, too
        if told["forked"] == 0:
            signal.pause()
    print(json.dumps(told), flush=True)
    await asyncio.Event().wait()


async def hostile(argv: tuple[str, ...]) -> None:
    """Run one agent, say its first line, and read the rest; wait to be killed."""
    link = KeeperLink()
    command = Command(path=argv[0], argv=argv, env={"PATH": os.defpath}, cwd="/")
    agent = await link.spawn(command, Streams())
    print((await agent.stdout.next() or b"").decode(), end="", flush=True)
    while await agent.stdout.next() is not None:
        pass
    await asyncio.Event().wait()


async def thousand() -> None:
    """Run 1,000 agents at once, call each ten times, kill them all, and count."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cat = Backend(command=("cat",), prompt="none")
    async with LocalProcessRunner(catalogue={"cat": cat}) as runner:
        await (await runner.spawn(AgentConfig("first", "cat", ""))).kill()
        before = open_files()
        configs = [AgentConfig(f"agent-{n}", "cat", "") for n in range(1000)]
        handles = [
            handle
            for handle in await runner.spawn_many(configs, batch=100)
            if isinstance(handle, AgentHandle)
        ]
        threads = threading.active_count()
        listed = await runner.list_agents()
        running = sum(not agent.status.final for agent in listed)
        names = {agent.name for agent in listed}

        async def call(handle: AgentHandle) -> int:
            answered = 0
            for n in range(10):
                line = b"%s %d\n" % (handle.name.encode(), n)
                await handle.write_stdin(line)
                answered += await handle.next_stdout() == line
            return answered

        calls = sum(await asyncio.gather(*map(call, handles)))
        memory = peak_memory() >> 20
        await asyncio.gather(*(runner.kill(handle.id()) for handle in handles))
        exits = collections.Counter([(await handle.wait()).signal for handle in handles])
        after = sum(not agent.status.final for agent in await runner.list_agents())
        fds = open_files() - before
    answer: dict[str, Any] = {"running": running, "names": len(names), "threads": threads}
    answer |= {"calls": calls, "memory": memory, "exits": exits, "after": after, "fds": fds}
    print(json.dumps(answer))


async def descriptors() -> None:
    """Start processes until there is no descriptor left, and go on after that."""
    link = KeeperLink()
    await link.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    agents: list[Child] = []
    refused = False
    while not refused:
        try:
            agents.append(await link.spawn(SLEEP, Streams()))
        except SpawnFailed as error:
            refused = "too many open files" in error.message
    for agent in agents:
        agent.kill()
        await agent.wait_gone()
    command = Command(path="/bin/true", argv=("true",), env={}, cwd="/")
    again = await (await link.spawn(command, Streams())).wait()
    for child in list(link.children.values()):
        await child.wait_gone()
    left = len(children(link.pid or 0))
    await link.close()
    print(json.dumps({"refused": refused, "left": left, "again": again.code}))


async def fork() -> None:
    """Have a forked process use the keeper of its parent."""
    link = KeeperLink()
    await link.start()
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            await link.start()
        except SpawnFailed as error:
            os.write(writes, error.message.encode())
        finally:
            os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)
    said = os.read(reads, 1000).decode()
    await link.close()
    print(json.dumps({"said": said}))


if __name__ == "__main__":
    match sys.argv[1]:
        case "owner":
            asyncio.run(owner(sys.argv[2] == "1"))
        case "hostile":
            asyncio.run(hostile(tuple(sys.argv[2:])))
        case "thousand":
            asyncio.run(thousand())
        case "descriptors":
            asyncio.run(descriptors())
        case "fork":
            asyncio.run(fork())

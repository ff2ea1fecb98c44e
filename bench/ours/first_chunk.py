"""From asking to the first chunk of a worker's stream, ten streams at one time.

``--way pipe`` is by hand: one durable commit (the probe's, which shares it among its callers), then
a bare JSON-line pipe to the same child. ``durable`` is the whole path: accepted, performed by the
worker, the chunk journaled, and read by a follower.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec

from bench.environment import CHECKOUT
from bench.load import TEXT, Load, Run, arguments, closed_loop, report, scratch
from bench.ours.stdio_child import CHUNKS
from bench.probe import Session, Task, Writer
from retinue import Runtime, Settings
from retinue.domain.event import EventType
from retinue.domain.execution import Task as Asked
from retinue.settings import WorkerReference

First = Callable[[], Awaitable[float]]
"""One stream from its beginning to its end; returns when its first chunk was there."""
COMMAND = (sys.executable, "-m", "bench.ours.stdio_child", "hand")
STREAMS = 10
_clock = time.perf_counter


@asynccontextmanager
async def by_hand(run: Run) -> AsyncIterator[First]:
    """Yield a stream that is a commit and a bare pipe."""
    child = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=CHECKOUT
    )
    assert child.stdin is not None
    assert child.stdout is not None
    stdin, stdout = child.stdin, child.stdout
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
    heard: dict[str, asyncio.Queue[dict[str, Any]]] = {}
    await stdout.readline()
    ids = (f"{number:026d}" for number in itertools.count(1))

    async def read() -> None:
        rest = b""
        while chunk := await stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                frame = decode(line)
                heard[frame["correlation_id"]].put_nowait(frame)

    with scratch(run) as root:
        writer = Writer(root / "probe.db", asyncio.get_running_loop())
        writer.start()
        body = json.dumps({"parameters": {"text": TEXT}}).encode()

        async def stream() -> float:
            name, at = next(ids), time.time_ns() // 1000
            await writer.commit(Task(name, Session(f"s-{name}", at), body, next(ids), at))
            frames = heard[name] = asyncio.Queue()
            options = {"stream": True}
            payload = {"operation": "agent.invoke", "agent_name": "talk", "options": options}
            stdin.write(encode({"type": "request", "message_id": name, "payload": payload}) + b"\n")
            assert (await frames.get())["type"] == "stream"
            first = _clock()
            while (await frames.get())["type"] == "stream":
                pass
            del heard[name]
            return first

        reading = asyncio.create_task(read())
        yield stream
        stdin.close()
        await child.wait()
        await reading
        writer.stop()


@asynccontextmanager
async def durable(run: Run) -> AsyncIterator[First]:
    """Yield a stream through a system with that worker, one process of it."""
    with scratch(run) as root:
        worker = WorkerReference(
            driver="stdio", name="w", command=COMMAND, work_dir=CHECKOUT,
            process_pool_size=1, max_concurrent_requests=STREAMS * 2,
        )  # fmt: skip
        runtime = Runtime(
            Settings(data_dir=root, examples=False, entry_points=False, agents=(worker,))
        )
        orchestrator = await runtime.start()
        made = itertools.count()

        async def stream() -> float:
            first = 0.0
            said = ""
            task = Asked(session_id=f"s-{next(made)}", agent_id="talk", parameters={"text": TEXT})
            accepted = await orchestrator.submit(task)
            async with aclosing(orchestrator.follow(accepted.execution_id)) as batches:
                async for events in batches:
                    for event in events:
                        if event.type is EventType.CONTENT_CHUNK:
                            first = first or _clock()
                            said += json.loads(event.data)["content"]
            assert said == "".join(CHUNKS), said
            return first

        yield stream
        await runtime.stop()


async def measure(run: Run) -> Load:
    """Run the loop; what is counted is the time to the first chunk."""
    way = by_hand if run.options.way == "pipe" else durable
    firsts: list[tuple[float, float]] = []
    async with way(run) as stream:

        async def call(_: int) -> None:
            began = _clock()
            first = await stream()
            firsts.append((first, first - began))

        begin = _clock() + run.warm
        load = await closed_loop(call, callers=STREAMS, warm=run.warm, seconds=run.seconds)
    end = begin + run.seconds
    load.latencies = [seconds for at, seconds in firsts if begin <= at < end]
    return load


def main() -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--way", choices=("pipe", "durable"), required=True)

    run = arguments("The first chunk of a stream over stdio", more)
    report(asyncio.run(measure(run)).line())


if __name__ == "__main__":
    main()

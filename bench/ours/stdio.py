"""Round trips to one echo worker over stdio, and what a warm process saves.

``--way pipe`` is a bare JSON-line pipe by hand: no envelope but an id, nothing checked. ``driver``
is our driver on one process, ``durable`` the whole path (accepted, journaled, chained) through the
pool of one process. ``warm`` is a single caller of a process that runs, ``cold`` starts one for
each call and counts until its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from bench.environment import CHECKOUT
from bench.load import TEXT, Load, Run, arguments, closed_loop, report, scratch
from retinue import Runtime, Settings
from retinue.domain.agent import AgentDefinition
from retinue.domain.execution import Execution, State
from retinue.domain.policy import Delivery
from retinue.drivers.stdio import StdioDriver, WorkerConfig
from retinue.drivers.stdio.instance import StdioInstance
from retinue.interfaces import Birth, DriverContext, Job
from retinue.process.link import KeeperLink
from retinue.process.quarters import Ground
from retinue.settings import WorkerReference

Call = Callable[[int], Awaitable[object]]
CHUNK = 1 << 16


def command(run: Run) -> tuple[str, ...]:
    """Return the child's command line."""
    return (sys.executable, "-m", "bench.ours.stdio_child", run.options.child)


# -- by hand -------------------------------------------------------------------------------------


@asynccontextmanager
async def by_hand(run: Run) -> AsyncIterator[Call]:
    """Yield a call: ids and futures, and all requests of one turn of the loop in one write."""
    child = await asyncio.create_subprocess_exec(
        *command(run),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=CHECKOUT,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
    loop = asyncio.get_running_loop()
    waiting: dict[str, asyncio.Future[Any]] = {}
    queued: list[bytes] = []
    stdin, stdout = child.stdin, child.stdout
    await stdout.readline()
    number = 0

    def flush() -> None:
        stdin.write(b"".join(queued))
        queued.clear()

    async def read() -> None:
        rest = b""
        while chunk := await stdout.read(CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                frame = decode(line)
                waiting.pop(frame["correlation_id"]).set_result(frame["payload"]["result"])

    async def call(_: int) -> None:
        nonlocal number
        number += 1
        name = str(number)
        payload = {"operation": "agent.invoke", "agent_name": "echo", "input": {"text": TEXT}}
        if not queued:
            loop.call_soon(flush)
        queued.append(encode({"type": "request", "message_id": name, "payload": payload}) + b"\n")
        future = waiting[name] = loop.create_future()
        assert await future == TEXT

    reading = asyncio.create_task(read())
    yield call
    stdin.close()
    await child.wait()
    await reading


# -- by our driver -------------------------------------------------------------------------------


class _Record:
    """Stands for a row of the store, which this measures without."""

    record: Any = None

    def __init__(self, name: str) -> None:
        self.id = name

    def started(self, process: Any, handle: Any = None, **more: Any) -> None: ...
    def busy(self, execution: Any) -> None: ...
    def idle(self, execution: Any) -> None: ...
    def draining(self, reason: str | None = None) -> None: ...
    def failed(self, reason: str) -> None: ...


class _Book:
    async def begin(self, birth: Birth, stop: Any = None) -> Any:
        return _Record(birth.instance_id or "")


async def _refuse(*_: Any) -> Any:
    raise NotImplementedError


def _job() -> Job:
    execution = Execution(
        id="01" * 13, owner="local", created_by="local", session_id="s", from_agent="bench",
        agent_id="echo", capability="echo", queue_key="agent:echo", state=State.RUNNING,
        priority=0, attempt=1, worker="w", delivery=Delivery.AT_MOST_ONCE, max_attempts=1,
        last_seq=0, digest=b"", deadline_at=None, run_at=0, cancel_requested_at=None, created_at=0,
        started_at=0, finished_at=None, outcome=None, error_code=None, cursor=None, request_id="r",
        request_n=1, response_id=None, response_n=None, parent_id=None, depth=0,
    )  # fmt: skip
    return Job(execution, {"text": TEXT}, None, None)


class Starter:
    """Starts processes of the child by our driver."""

    def __init__(self, run: Run, root: Path, link: KeeperLink) -> None:
        self._driver = StdioDriver(Ground(link, root, dict(os.environ)))
        config = WorkerConfig(command=command(run), work_dir=str(CHECKOUT))
        self._worker = AgentDefinition(agent_id="w", name="w", driver="stdio", config=config)
        self._lent = DriverContext(_refuse, 1 << 24, _Book())

    async def __call__(self) -> StdioInstance:
        """Return one that is ready."""
        return await self._driver.start(self._worker, self._lent)


async def perform(instance: StdioInstance, job: Job) -> None:
    """Have one execution performed."""
    async with instance.execute(job) as events:
        last = [event async for event in events][-1]
    assert last.data["result"] == TEXT


@asynccontextmanager
async def by_driver(run: Run) -> AsyncIterator[Call]:
    """Yield a call on one process that runs, or (``cold``) on a new one for each call."""
    with scratch(run) as root:
        link = KeeperLink()
        start, job = Starter(run, root, link), _job()
        ending: set[asyncio.Task[None]] = set()

        async def cold(_: int) -> None:
            fresh = await start()
            await perform(fresh, job)
            task = asyncio.create_task(fresh.stop(0.0))
            ending.add(task)
            task.add_done_callback(ending.discard)

        if run.options.way == "cold":
            yield cold
        else:
            running = await start()
            yield lambda _: perform(running, job)
            await running.stop(1.0)
        with suppress(ValueError):
            await asyncio.wait(ending)
        await link.close()


# -- the whole path ------------------------------------------------------------------------------


@asynccontextmanager
async def durable(run: Run) -> AsyncIterator[Call]:
    """Yield a call through a system with that worker, one process of it."""
    with scratch(run) as root:
        worker = WorkerReference(
            driver="stdio", name="w", command=command(run), work_dir=CHECKOUT,
            process_pool_size=1, max_concurrent_requests=run.callers * 2,
        )  # fmt: skip
        runtime = Runtime(
            Settings(data_dir=root, examples=False, entry_points=False, agents=(worker,))
        )
        orchestrator = await runtime.start()
        made = 0

        async def call(_: int) -> None:
            nonlocal made
            made += 1
            task = {"capability": "echo", "parameters": {"text": TEXT}}
            reply = await orchestrator.orchestrate(f"session_{made % 64}", task)
            assert reply["data"] == TEXT, reply

        yield call
        await runtime.stop()


async def measure(run: Run) -> Load:
    """Run the loop the way that is asked for."""
    way = {"pipe": by_hand, "durable": durable}.get(run.options.way, by_driver)
    callers = 1 if run.options.way in {"warm", "cold"} else run.callers
    async with way(run) as call:
        return await closed_loop(call, callers=callers, warm=run.warm, seconds=run.seconds)


def main() -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        ways = ("pipe", "driver", "durable", "warm", "cold")
        parser.add_argument("--way", choices=ways, default="driver")
        parser.add_argument("--child", choices=("hand", "sdk"), default="hand")

    run = arguments("Round trips to an echo worker over stdio", more)
    report(asyncio.run(measure(run)).line())


if __name__ == "__main__":
    main()

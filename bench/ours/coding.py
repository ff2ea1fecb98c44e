"""What a streamed update of a coding CLI costs, from the agent's pipe to the journal.

Every run reads the same lines, a turn of many small pieces of text in one CLI's dialect, written as
fast as ``cat`` can. ``bare`` reads the pipe in 64 KiB pieces, splits and parses, and does nothing
else; ``product`` is a whole execution: the driver, the events, the store on disk. A second of it
ends with a look at the journal: all the text is there. ``--sessions`` has that many sessions of one
app-server complete instead; nothing but completing counts there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec

from bench.load import Load, Run, arguments, peak_mb, report, scratch
from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.settings import CodingReference
from retinue.testing.coding_agent import install

UPDATES = 100_000
PIECE = "four or so words of text "
_clock = time.perf_counter


def claude() -> tuple[list[Any], list[Any]]:
    """Return what is said before the prompt is answered, and the turn."""
    begin = {"type": "system", "subtype": "init", "session_id": "s", "claude_code_version": "2.1.0"}
    delta = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": PIECE},
    }
    ids = {"session_id": "77ba029f-f0a7-4522-a02c-4e8c118976fc", "parent_tool_use_id": None}
    piece = {"type": "stream_event", "event": delta, **ids, "uuid": "2e924b75-8585-408d-afa8"}
    end = {"type": "result", "subtype": "success", "is_error": False, "result": "done"}
    return [], [begin, *[piece] * UPDATES, end]


def codex() -> tuple[list[Any], list[Any]]:
    """Return what is said before the prompt is answered, and the turn."""
    ids = {
        "threadId": "01a1fe43-39cf-7960-8c1f-081f556557ff",
        "turnId": "01a1fe43-39e0",
        "itemId": "m",
    }
    piece = {"method": "item/agentMessage/delta", "params": {**ids, "delta": PIECE}}
    end = {"method": "turn/completed", "params": {**ids, "turn": {"status": "completed"}}}
    return [
        {"id": 1, "result": {"userAgent": "retinue/0.169.0"}},
        None,
        {"id": 2, "result": {"thread": {"id": ids["threadId"]}}},
    ], [{"id": 3, "result": {"turn": {"id": "01a1fe43-39e0"}}}, *[piece] * UPDATES, end]


def acp() -> tuple[list[Any], list[Any]]:
    """Return what is said before the prompt is answered, and the turn."""
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": PIECE}}
    given = {"sessionId": "2aa29a5a-0bde-43d1-8f81-c32a2fb76729", "update": update}
    piece = {"jsonrpc": "2.0", "method": "session/update", "params": given}
    return [
        {"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": 1}},
        {"jsonrpc": "2.0", "id": 2, "result": {"sessionId": "s"}},
    ], [*[piece] * UPDATES, {"jsonrpc": "2.0", "id": 3, "result": {"stopReason": "end_turn"}}]


DIALECTS = {"claude": claude, "codex": codex, "acp": acp}


def program(kind: str, path: Path) -> tuple[str, Path]:
    """Write a program that says a dialect's turn; return it, and the file that the turn is in."""
    first, turn = DIALECTS[kind]()
    file = path / f"{kind}.jsonl"
    file.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in turn))
    answers = "".join(
        "read -r x\n" + (f"echo '{json.dumps(answer)}'\n" if answer is not None else "")
        for answer in first
    )
    script = path / kind
    script.write_text(f"#!/bin/sh\n{answers}read -r x\ncat {file}\n")
    script.chmod(0o755)
    return str(script), file


async def bare(file: Path) -> None:
    """Read and parse the lines, as lean as it goes."""
    loop = asyncio.get_running_loop()
    decode = msgspec.json.Decoder().decode
    done = loop.create_future()
    found = 0
    rest = b""
    with subprocess.Popen(["cat", str(file)], stdout=subprocess.PIPE) as cat:  # noqa: ASYNC220 it only starts
        assert cat.stdout is not None
        fd = cat.stdout.fileno()

        def readable() -> None:
            nonlocal found, rest
            chunk = os.read(fd, 64 * 1024)
            if not chunk:
                loop.remove_reader(fd)
                done.set_result(None)
                return
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                decode(line)
            found += len(lines)

        loop.add_reader(fd, readable)
        await done
    assert found >= UPDATES, found


async def bare_asyncio(file: Path) -> None:
    """Read and parse the lines as one does: asyncio's lines, the standard library's JSON."""
    cat = await asyncio.create_subprocess_exec("cat", str(file), stdout=subprocess.PIPE)
    assert cat.stdout is not None
    found = 0
    while line := await cat.stdout.readline():
        json.loads(line)
        found += 1
    await cat.wait()
    assert found >= UPDATES, found


async def product(runtime: Runtime, kind: str, number: int) -> None:
    """Run one turn, and see that its text is in the journal."""
    given = {"prompt": "go"}
    task = Task(session_id=f"s{number}", agent_id=kind, parameters=given)
    reply = await runtime.orchestrator.perform(task)
    assert reply.error is None, reply.error
    size = seq = 0
    while page := await runtime.store.events(reply.execution_id, after=seq):
        seq = page[-1].seq
        size += sum(e.data.count(b"four") for e in page if e.type == "content_chunk")
    assert size == UPDATES, size


async def updates(run: Run, path: Path) -> Load:
    """Read turn after turn; a latency is that of one update."""
    kind = run.options.kind
    name, file = program(kind, path)
    agent = CodingReference.model_validate({"driver": kind, "agent_id": kind, "command": (name,)})
    runtime = Runtime(
        Settings(data_dir=path / "data", examples=False, entry_points=False, agents=(agent,))
    )
    load = Load(0.0)
    await runtime.start()
    try:
        begin = _clock() + run.warm
        number = 0
        while load.seconds < run.seconds:
            began, cpu = _clock(), time.process_time()
            if run.options.bare == "lean":
                await bare(file)
            elif run.options.bare == "asyncio":
                await bare_asyncio(file)
            else:
                await product(runtime, kind, number)
            number += 1
            load.total += UPDATES
            if began >= begin or number > 1:
                took = _clock() - began
                load.seconds += took
                load.cpu += time.process_time() - cpu
                load.latencies += [took / UPDATES] * UPDATES
    finally:
        await runtime.stop()
    return load


async def sessions(run: Run, path: Path) -> Load:
    """Have many sessions of one app-server do a turn at a time, until all are done."""
    count = run.options.sessions
    programs = install(path / "bin", "codex")
    given = {"driver": "codex", "command": (programs["codex"],), "concurrency": count}
    agent = CodingReference.model_validate(given)
    runtime = Runtime(
        Settings(data_dir=path / "data", examples=False, entry_points=False, agents=(agent,))
    )
    load = Load(0.0)
    await runtime.start()

    async def one(number: int) -> None:
        began = _clock()
        prompt = {"prompt": "[[slow 20 0.1]] [[say done]]"}
        task = Task(session_id=f"s{number}", agent_id="codex", parameters=prompt)
        reply = await runtime.orchestrator.perform(task)
        assert reply.error is None, reply.error
        load.latencies.append(_clock() - began)
        load.total += 1

    try:
        began, cpu = _clock(), time.process_time()
        await asyncio.gather(*(one(number) for number in range(count)))
        load.seconds = _clock() - began
        load.cpu = time.process_time() - cpu
        assert len(runtime.keeper.children) == 1
    finally:
        await runtime.stop()
    return load


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender takes besides."""
    parser.add_argument("--kind", choices=sorted(DIALECTS), default="claude")
    parser.add_argument("--bare", choices=["lean", "asyncio"])
    parser.add_argument("--sessions", type=int, default=0)


def main() -> None:
    """Measure, and print the line."""
    run = arguments("what a streamed update of a coding CLI costs", options)
    with scratch(run) as path:
        load = asyncio.run((sessions if run.options.sessions else updates)(run, path))
    report({**load.line(), "peak_mb": peak_mb()})


if __name__ == "__main__":
    main()

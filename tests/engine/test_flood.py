"""An agent that writes without end costs the server little memory, whatever it writes."""

import asyncio
import gc
import sys
import tracemalloc
from pathlib import Path

import pytest

from retinue.drivers.command.dialect import Text

PROGRAM = """
import asyncio, sys
from pathlib import Path
from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.settings import CommandReference
from retinue.testing.agent import argv

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

def agent(name, output, *steps):
    last = 'say={"type":"result","result":1}'
    return CommandReference(
        driver="command", agent_id=name, command=argv(*steps, last), output=output
    )

async def perform(desk, name):
    task = Task(session_id=name, agent_id=name, parameters={"prompt": "x"})
    answer = await desk.perform(task)
    return answer.error["message"] if answer.error is not None else None

async def main():
    agents = (
        agent("little", "text", "say=x"),
        agent("text", "text", "line=64m"),
        agent("lines", "json-lines", "flood=24m"),
    )
    settings = Settings(
        data_dir=Path(sys.argv[1]), examples=False, entry_points=False, agents=agents
    )
    async with Runtime(settings) as desk:
        for _ in range(5):
            await perform(desk, "little")
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        said = await perform(desk, sys.argv[2])
        print((peak() - before) >> 10, said)

asyncio.run(main())
"""


@pytest.mark.requirement("001.bounded")
@pytest.mark.parametrize("kind", ["text", "lines"])
async def test_a_flood_of_text_adds_little_to_the_server(tmp_path: Path, kind: str) -> None:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(tmp_path), kind), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(program.communicate(), 100)
    kibibytes, _, said = out.decode().partition(" ")
    assert "output is larger than 16777216 bytes" in said or kind == "lines"
    assert int(kibibytes) < 32 << 10


def test_text_in_small_pieces_takes_hardly_more_than_its_bytes() -> None:
    pieces = ["x" * 99 + "\n", "\N{SNOWMAN}" * 30, "\N{GRINNING FACE}"]
    gc.collect()
    tracemalloc.start()
    try:
        text, size = Text(), 0
        while size < 4 << 20:
            for piece in pieces:
                text.append(f"{piece}{size % 10}")
                size += len(piece.encode()) + 1
        assert tracemalloc.get_traced_memory()[0] < size * 1.2
    finally:
        tracemalloc.stop()
    whole = "".join(text)
    assert len(whole.encode()) == size
    assert whole.startswith(pieces[0] + "0" + pieces[1])
    text.clear()
    assert "".join(text) == ""

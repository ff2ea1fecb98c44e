"""What is put goes out in order and whole, whatever the pipe takes, and beside calls that wait."""

import asyncio
import os

import pytest
from tests.process.rig import until

from retinue.errors import CommunicationError
from retinue.process.writing import Writer


async def drained(fd: int, size: int) -> bytes:
    """Read ``size`` bytes, as they come."""
    loop = asyncio.get_running_loop()
    found = b""
    while len(found) < size:
        found += await loop.run_in_executor(None, os.read, fd, size - len(found))
    return found


async def test_what_is_put_in_one_turn_is_one_write() -> None:
    reads, writes = os.pipe()
    writer = Writer(writes)
    assert [writer.put(b"a\n"), writer.put(b"b\n"), writer.put(b"c\n")] == [2, 4, 6]
    assert writer.bytes == 0
    await asyncio.sleep(0)
    assert (writer.bytes, writer.calls, writer.offered) == (6, 3, 6)
    assert os.read(reads, 100) == b"a\nb\nc\n"
    writer.close()
    os.close(reads)


async def test_more_than_the_pipe_holds_follows_in_order_with_what_waits_between() -> None:
    reads, writes = os.pipe()
    writer = Writer(writes)
    large = b"x" * 300_000 + b"\n"
    place = writer.put(large)
    await asyncio.sleep(0)
    assert 0 < writer.bytes < place
    waiting = asyncio.create_task(writer.write(b"waits\n"))
    await asyncio.sleep(0)
    last = writer.put(b"after\n")
    assert await drained(reads, len(large) + 12) == large + b"after\nwaits\n"
    await waiting
    assert writer.bytes >= last
    assert writer.bytes == writer.offered
    writer.put(b"again\n")
    assert await drained(reads, 6) == b"again\n"
    writer.close()
    os.close(reads)


async def test_what_is_put_while_another_call_waits_comes_after_it() -> None:
    reads, writes = os.pipe()
    writer = Writer(writes)
    large = b"x" * 300_000 + b"\n"
    waiting = asyncio.create_task(writer.write(large))
    await until(lambda: writer.bytes > 0)
    writer.put(b"after\n")
    assert await drained(reads, len(large) + 6) == large + b"after\n"
    await waiting
    writer.close()
    os.close(reads)


async def test_a_pipe_that_nobody_reads_any_more_is_closed_and_said_to_be() -> None:
    reads, writes = os.pipe()
    writer = Writer(writes)
    os.close(reads)
    writer.put(b"lost\n")
    await until(lambda: writer.closed)
    with pytest.raises(CommunicationError):
        writer.put(b"more\n")
    assert writer.bytes == 0

"""What agents write and read: bounded, byte for byte, whatever they do to us."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.process.rig import Start, alive, until

from retinue.errors import CommunicationError
from retinue.process.child import Streams
from retinue.process.ladder import Ladder, stop
from retinue.process.link import KeeperLink
from retinue.process.log import InstanceLog, LogWriter, read_log
from retinue.process.reading import Bounds, Counts, Splitter

MIB = 1 << 20


def peak(*, afresh: bool = False) -> int:
    """Return the most memory this process has had, in bytes; ``afresh``: since now."""
    if afresh:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@given(st.binary(max_size=400), st.lists(st.integers(1, 40), max_size=40), st.integers(1, 60))
def test_lines_are_what_they_were_however_they_are_cut(
    data: bytes, cuts: list[int], limit: int
) -> None:
    counts = Counts()
    splitter = Splitter(limit, counts)
    found: list[bytes] = []
    rest = data
    for cut in [*cuts, len(data) or 1]:
        found += splitter.feed(rest[:cut])
        rest = rest[cut:]
    last = splitter.rest()
    found += [last] if last is not None else []
    parts = data.split(b"\n")
    wanted = [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
    refused = [line for line in wanted if len(line) > limit]
    assert found == [line for line in wanted if len(line) <= limit]
    assert (counts.oversize_lines, counts.oversize_bytes) == (len(refused), sum(map(len, refused)))


async def test_one_that_writes_fast_leaves_others_their_turn(python: Start) -> None:
    child = await python(
        "print('x' * 99 + '\\n', end='', flush=True)\nprint(('y' * 9 + '\\n') * 9000)"
    )
    await child.stdout.next()
    await until(lambda: child.stdout.counts.bytes > 60_000, 10)
    turns = lines = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    while await child.stdout.next() is not None:
        lines += 1
    counting.cancel()
    assert lines == 9001
    assert turns >= lines // 64


async def test_bytes_that_are_no_text_and_a_last_line_without_newline_come_through(
    python: Start,
) -> None:
    child = await python(
        "import sys; w = sys.stdout.buffer.write; w(b'\\xff\\xfe\\x00\\n');"
        " w(b'\\xef\\xbb\\xbfbom\\r\\n'); w(b'\\xed\\xa0\\x80 last')"
    )
    lines = [line async for line in child.stdout]
    assert lines == [b"\xff\xfe\x00\n", b"\xef\xbb\xbfbom\r\n", b"\xed\xa0\x80 last"]
    assert await child.stdout.next() is None


async def test_a_line_of_100_mb_is_refused_and_the_next_one_is_read(python: Start) -> None:
    before = peak(afresh=True)
    child = await python(
        "import sys; w = sys.stdout.buffer.write\nfor _ in range(100): w(b'x' * (1 << 20))\n"
        "w(b'\\nshort\\n')"
    )
    assert await asyncio.wait_for(child.stdout.next(), 60) == b"short\n"
    assert child.stdout.counts.oversize_lines == 1
    assert child.stdout.counts.oversize_bytes == 100 * MIB + 1
    grown = peak() - before
    assert grown < 16 * MIB


async def test_one_that_nobody_reads_waits_and_nothing_is_lost(python: Start) -> None:
    child = await python("for n in range(50_000): print(n)")
    waiting = await _quiet(child)
    assert waiting < 50_000 * 6
    assert child.exit is None
    assert child.stdout.counts.lines == 1_000
    assert [int(line) async for line in child.stdout] == list(range(50_000))
    assert child.stdout.counts.dropped_lines == 0


async def _quiet(child: Any) -> int:
    """Wait until nothing comes any more."""
    while True:
        seen: int = child.stdout.counts.bytes
        await asyncio.sleep(0.1)
        if seen and seen == child.stdout.counts.bytes:
            return seen


async def test_what_is_dropped_is_counted_exactly(python: Start) -> None:
    program = "import sys\nfor n in range(400_000): print('%09d' % n, file=sys.stderr)"
    child = await python(program.replace("print", "sys.stdout.write('.') if n == 0 else 0; print"))
    assert (await asyncio.wait_for(child.wait(), 60)).code == 0
    await child.wait_gone()
    counts = child.stderr.counts
    kept = [line async for line in child.stderr]
    assert kept == [b"%09d\n" % n for n in range(1_000)]
    assert counts.bytes == 400_000 * 10
    assert (counts.lines, counts.dropped_lines) == (400_000, 399_000)
    assert counts.dropped_bytes == 399_000 * 10
    assert child.stderr.tail.endswith(b"000399999\n")


async def test_a_gigabyte_that_nobody_reads_costs_little_memory(
    python: Start, tmp_path: Path
) -> None:
    writer = LogWriter()
    log = InstanceLog(writer, tmp_path / "log", cap=MIB)
    before = peak(afresh=True)
    bounds = Bounds(when_full="drop")
    child = await python(
        "import sys; line = b'y' * 99_999 + b'\\n'\nfor _ in range(10_000):"
        " sys.stdout.buffer.write(line)",
        Streams(stdout=bounds, log=log),
    )
    assert (await asyncio.wait_for(child.wait(), 100)).code == 0
    await child.wait_gone()
    grown = peak() - before
    assert grown < 32 * MIB
    assert child.stdout.counts.bytes == 10_000 * 100_000
    kept = [line async for line in child.stdout]
    assert len(kept) + child.stdout.counts.dropped_lines == 10_000
    await asyncio.to_thread(writer.close)
    assert 0 < sum(file.stat().st_size for file in (tmp_path / "log").iterdir()) <= MIB


async def test_the_log_keeps_the_end_of_both_streams_after_the_exit(
    shell: Start, link: KeeperLink, tmp_path: Path
) -> None:
    log = InstanceLog(link.logs, tmp_path / "log", cap=2_000)
    child = await shell(
        "i=0; while [ $i -lt 500 ]; do echo out $i; i=$((i+1)); done; echo oops >&2",
        Streams(log=log),
    )
    await child.wait_gone()
    await asyncio.to_thread(link.logs.settle)
    kept = read_log(tmp_path / "log", "stdout")
    assert kept.endswith(b"out 498\nout 499\n")
    assert len(kept) <= 2_000
    assert read_log(tmp_path / "log", "stderr") == b"oops\n"
    assert read_log(tmp_path / "none", "stderr") == b""


async def test_stdin_arrives_unchanged_and_in_whole_calls(python: Start) -> None:
    child = await python(
        "import sys, hashlib; d = sys.stdin.buffer.read();"
        " print(len(d), all(len(set(d[i:i + 100_000])) == 1 for i in range(0, len(d), 100_000)))"
    )
    assert child.stdin is not None
    write = child.stdin.write
    await asyncio.gather(*(write(bytes([n]) * 100_000) for n in range(20)))
    child.stdin.close()
    assert await child.stdout.next() == b"2000000 True\n"


async def test_one_that_does_not_read_blocks_only_the_writer(shell: Start) -> None:
    deaf = await shell("exec sleep 1000")
    assert deaf.stdin is not None
    writing = asyncio.create_task(deaf.stdin.write(b"x" * MIB))
    other = await shell("cat")
    assert other.stdin is not None
    await other.stdin.write(b"hello\n")
    assert await other.stdout.next() == b"hello\n"
    assert not writing.done()
    deaf.kill()
    with pytest.raises(CommunicationError):
        await asyncio.wait_for(writing, 1)
    with pytest.raises(CommunicationError, match="closed"):
        await deaf.stdin.write(b"more")


async def test_a_closed_stdin_is_an_error_and_the_rest_still_works(shell: Start) -> None:
    child = await shell("exec <&-; echo closed; read x <&2; sleep 0.1; exit 3")
    assert await child.stdout.next() == b"closed\n"
    assert child.stdin is not None
    with pytest.raises(CommunicationError):
        await asyncio.wait_for(child.stdin.write(b"x" * MIB), 1)
    assert (await child.wait()).code is not None


LADDERS = {
    "cancel": ("read line; exit 0", Ladder(cancel=5, stdin=5, grace=5)),
    "stdin": ("cat >/dev/null; exit 0", Ladder(stdin=5, grace=5)),
    "signal": ("while :; do sleep 0.01; done", Ladder(grace=5)),
    "kill": ("while :; do sleep 0.01; done", Ladder(grace=0.2)),
}
TRAPS = {"signal": "trap 'exit 0' TERM", "kill": "trap '' TERM INT HUP"}


@pytest.mark.parametrize("step", LADDERS)
async def test_each_step_of_the_ladder_ends_one_that_heeds_it(step: str, shell: Start) -> None:
    script, ladder = LADDERS[step]
    child = await shell(
        f"{TRAPS.get(step, ':')}; setsid sleep 1000 & echo $!; {script}", linger=60.0
    )
    tool = int(await child.stdout.next() or 0)
    stdin = child.stdin
    assert stdin is not None

    async def cancel() -> None:
        await stdin.write(b"end\n")

    begun = time.monotonic()
    stopped = await stop(child, ladder, cancel if step == "cancel" else None)
    assert time.monotonic() - begun < 2
    assert (stopped.step, stopped.clean) == (step, True)
    assert not alive(tool)
    assert (await stop(child, ladder)).step == "already"


async def test_the_ladder_goes_on_when_its_steps_do_nothing(shell: Start) -> None:
    child = await shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")
    assert await child.stdout.next() == b"ready\n"

    async def broken() -> None:
        raise CommunicationError("no way to tell it")

    stopped = await stop(child, Ladder(cancel=0.1, stdin=0.1, grace=0.1), broken)
    assert stopped.step == "kill"
    assert stopped.exit is not None
    assert stopped.exit.signal == signal.SIGKILL


async def test_a_paused_agent_can_be_stopped(shell: Start) -> None:
    child = await shell("trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
    assert await child.stdout.next() == b"ready\n"
    await child.pause()
    stopped = await stop(child, Ladder(grace=5))
    assert stopped.step == "signal"
    assert stopped.exit is not None
    assert stopped.exit.code == 9


LIMITS: dict[str, tuple[str, dict[str, float]]] = {
    "limit_memory": (
        "x = bytearray(200 << 20)\nimport time; time.sleep(1000)",
        {"memory_bytes": 100 << 20},
    ),
    "limit_runtime": ("import time; time.sleep(1000)", {"runtime_seconds": 0.3}),
}


@pytest.mark.parametrize("limit", LIMITS)
async def test_past_a_limit_the_tree_is_ended_and_the_limit_is_named(
    limit: str, python: Start
) -> None:
    program, limits = LIMITS[limit]
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    child = await python(nested, limits=limits)
    status = await asyncio.wait_for(child.wait(), 10)
    assert (status.signal, status.reason) == (9, limit)
    assert str(status).startswith(f"was ended by its {limit}: ")
    await asyncio.wait_for(child.wait_gone(), 2)


async def test_limits_of_each_process_hold(python: Start) -> None:
    child = await python(
        "import resource as r; print(*(r.getrlimit(k)[0] for k in"
        " (r.RLIMIT_NOFILE, r.RLIMIT_FSIZE, r.RLIMIT_AS)))",
        limits={"files": 64, "file_bytes": 4096, "address_space": 1 << 30},
    )
    assert await child.stdout.next() == b"64 4096 1073741824\n"


async def test_usage_is_of_the_whole_tree(python: Start) -> None:
    busy = "x = bytearray(64 << 20)\\nimport time\\nwhile time.process_time() < 0.5: pass"
    child = await python(
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-I', '-S', '-c',"
        f" '{busy}\\nprint(1, flush=True); time.sleep(1000)']); p.wait()"
    )
    assert await asyncio.wait_for(child.stdout.next(), 30) == b"1\n"
    usage = await child.usage()
    assert usage["processes"] == 2
    assert 0.4 < usage["cpu"] < 0.9
    assert 64 * MIB < usage["memory"] < 100 * MIB
    child.kill()
    status = await child.wait()
    assert status.peak >= usage["memory"]
    assert await child.usage() == {}
    await until(lambda: child.gone)

"""Specification 001's runner: spawn, status, wait, signal, shut down, list."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import alive, until

import retinue.process as public
from retinue.domain.ids import now_us
from retinue.errors import (
    CommunicationError,
    InvalidContext,
    IoError,
    NotFound,
    SpawnFailed,
    Timeout,
)
from retinue.process import (
    AgentConfig,
    AgentHandle,
    AgentSignal,
    AgentStatus,
    Backend,
    Bounds,
    Exit,
    GracefulShutdown,
    LocalProcessRunner,
    ProcessRunnerConfig,
    ResourceLimits,
)
from retinue.process.log import read_log
from retinue.process.standing import Standing

ROOT = Path(__file__).parents[2]
ECHO = "import sys; print(sys.argv[-1])"
ARGUMENTS = "import json, sys; print(json.dumps(sys.argv[1:]))"
INPUT = "import json, sys; print(json.dumps([sys.stdin.read(), sys.argv[1:]]))"
ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"
TRAP = "trap 'echo caught; exit 7' INT TERM; echo ready; while :; do sleep 0.01; done"
DEAF = "trap '' TERM INT; setsid sleep 1000 & echo $!; while :; do sleep 0.01; done"


def program(source: str, prompt: Any = "argument", **more: Any) -> Backend:
    return Backend(command=(sys.executable, "-I", "-S", "-c", source), prompt=prompt, **more)


def shell(script: str) -> Backend:
    return Backend(command=("sh", "-c", script), prompt="none")


CATALOGUE = {
    "echo": program(ECHO),
    "arguments": program(ARGUMENTS, system_prompt="--append-system-prompt"),
    "input": program(INPUT, "stdin"),
    "environment": program(ENVIRONMENT, environment={"FROM": "catalogue"}),
    "cat": Backend(command=("cat",), prompt="none"),
    "sleep": shell("exec sleep 1000"),
    "trap": shell(TRAP),
    "deaf": shell(DEAF),
    "fail": shell("echo oops >&2; exit 3"),
    "where": shell("pwd -P"),
    "absent": Backend(command=("no-such-cli",), install="npm install -g no-such-cli"),
}


@pytest.fixture
async def runner() -> AsyncIterator[LocalProcessRunner]:
    async with LocalProcessRunner(catalogue=CATALOGUE) as found:
        yield found


def configured(**config: Any) -> LocalProcessRunner:
    return LocalProcessRunner.with_config(ProcessRunnerConfig(**config), catalogue=CATALOGUE)


def agent(backend: str, task: str = "", **more: Any) -> AgentConfig:
    return AgentConfig(name=f"my-{backend}", model_backend=backend, task=task, **more)


async def lines(handle: AgentHandle) -> list[bytes]:
    return [line.raw async for line in handle.output()]


@pytest.mark.requirement("001.errors", "001.spawn", "001.runner-api")
async def test_a_spawned_agent_is_listed_and_what_cannot_be_spawned_says_why(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    handle = await runner.spawn(agent("sleep"))
    (listed,) = await runner.list_agents()
    assert (listed.id, listed.name, listed.pid) == (handle.id(), "my-sleep", handle.pid)
    assert not listed.status.final
    found = await runner.get_agent(handle.id())
    assert found is not None
    assert (found.id, found.pid) == (listed.id, listed.pid)
    assert await runner.get_agent("unknown") is None
    for call in (runner.kill("unknown"), runner.signal("unknown", AgentSignal.KILL)):
        with pytest.raises(NotFound) as missing:
            await call
        assert (missing.value.code, missing.value.retryable) == ("E_NOT_FOUND", False)
    with pytest.raises(SpawnFailed, match=r"no-such-cli.*PATH.*npm install") as absent:
        await runner.spawn(agent("absent"))
    assert (absent.value.code, absent.value.retryable) == ("E_MODULE_LOAD", False)
    with pytest.raises(SpawnFailed, match=r"'unknown' in the catalogue; it has: .*echo"):
        await runner.spawn(agent("unknown"))
    plain = tmp_path / "plain"
    plain.write_text("")
    runner.catalogue["plain"] = Backend(command=(str(plain),))
    with pytest.raises(SpawnFailed, match="is not executable"):
        await runner.spawn(agent("plain"))
    plain.chmod(0o755)  # executable, and yet no program
    with pytest.raises(SpawnFailed, match="Exec format"):
        await runner.spawn(agent("plain"))
    assert len(await runner.list_agents()) == 1
    async with configured(working_dir=tmp_path / "absent") as nowhere:
        with pytest.raises(SpawnFailed, match=r"working directory .*absent does not exist"):
            await nowhere.spawn(agent("echo"))
        assert await nowhere.list_agents() == []


class Counted(dict[str, AgentHandle]):
    """A dictionary that counts what is done with it."""

    lookups = 0
    walks = 0

    def get(self, *key: Any) -> Any:
        self.lookups += 1
        return super().get(*key)

    def __getitem__(self, key: str) -> AgentHandle:
        self.lookups += 1
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        self.walks += 1
        return super().__iter__()

    def values(self) -> Any:
        self.walks += 1
        return super().values()

    def items(self) -> Any:
        self.walks += 1
        return super().items()


@pytest.mark.requirement("001.registry")
@pytest.mark.parametrize("agents", [10, 10_000])
async def test_one_of_many_is_found_by_one_lookup(runner: LocalProcessRunner, agents: int) -> None:
    handle = await runner.spawn(agent("sleep"))
    # One process stands for all: what is counted is how it is found.
    others = {f"agent-{number}": handle for number in range(agents - 1)}
    runner._agents = counted = Counted({**others, handle.id(): handle})
    found = await runner.get_agent(handle.id())
    assert (found and found.id, counted.lookups, counted.walks) == (handle.id(), 1, 0)
    assert await runner.get_agent("unknown") is None
    assert (counted.lookups, counted.walks) == (2, 0)
    assert len(await runner.list_agents()) == agents
    assert counted.walks == 1


@pytest.mark.requirement("001.errors")
async def test_a_log_that_cannot_be_kept_is_said_before_the_agent_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with configured(log_dir=tmp_path / "file" / "logs") as runner:
        with pytest.raises(IoError, match="cannot be made: Not a directory") as caught:
            await runner.spawn(agent("sleep"))
        assert isinstance(caught.value.__cause__, NotADirectoryError)
        assert (caught.value.code, caught.value.retryable) == ("E_STREAM_BROKEN", True)
        assert await runner.list_agents() == []


@pytest.mark.requirement("001.config-defaults")
def test_the_defaults_are_the_specifications() -> None:
    config = ProcessRunnerConfig()
    assert config.working_dir is None
    assert config.enable_json_streaming is True
    assert config.enable_health_checks is True
    assert config.health_check_interval_secs == 30
    assert config.max_concurrent_agents is None
    assert LocalProcessRunner().config == config


@pytest.mark.requirement("001.errors", "001.backend-generic", "001.prompt-parts")
async def test_every_part_of_the_prompt_reaches_the_agent_as_text(
    runner: LocalProcessRunner,
) -> None:
    handle = await runner.spawn(
        agent("arguments-cli", "--yolo 'x' $HOME", context="ctx", system_prompt="be brief")
    )
    (line,) = await lines(handle)
    assert json.loads(line) == [
        "--append-system-prompt", "be brief", "--", "ctx\n\n--yolo 'x' $HOME",
    ]  # fmt: skip
    large = "--" + "ü" * 100_000
    handle = await runner.spawn(agent("input", large, context="ctx", system_prompt="be brief"))
    (line,) = await lines(handle)
    assert json.loads(line) == [f"be brief\n\nctx\n\n{large}", []]
    handle = await runner.spawn(agent("environment", "x", context="the context"))
    assert json.loads((await lines(handle))[0])["AGENT_CONTEXT"] == "the context"
    with pytest.raises(InvalidContext, match="stdin"):
        await runner.spawn(agent("echo", large))
    with pytest.raises(InvalidContext, match="NUL") as bad:
        await runner.spawn(agent("echo", "a\0b"))
    assert (bad.value.code, bad.value.retryable) == ("E_INVALID_INPUT", False)


@pytest.mark.requirement("001.environment")
async def test_an_agent_sees_its_own_environment_and_no_secret(
    runner: LocalProcessRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_API_KEY", "secret")
    monkeypatch.setenv("LANG", "inherited")
    one = await runner.spawn(agent("environment", environment={"WHO": "one", "LANG": "given"}))
    two = await runner.spawn(agent("environment", environment={"FROM": "config"}))
    first, second = [json.loads((await lines(handle))[0]) for handle in (one, two)]
    assert (first["WHO"], first["LANG"], first["FROM"]) == ("one", "given", "catalogue")
    assert ("WHO" in second, second["LANG"], second["FROM"]) == (False, "inherited", "config")
    assert first["PATH"] == os.environ["PATH"]
    assert "CANARY_API_KEY" not in first | second


async def test_the_working_directory_is_given_or_inherited(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    assert await lines(await runner.spawn(agent("where"))) == [os.fsencode(os.getcwd()) + b"\n"]
    async with configured(working_dir=tmp_path) as elsewhere:
        handle = await elsewhere.spawn(agent("where"))
        assert await lines(handle) == [os.fsencode(tmp_path) + b"\n"]


@pytest.mark.requirement("001.errors", "001.wait", "001.handle-concurrency")
async def test_everybody_who_waits_gets_the_same_answer_at_any_time(
    runner: LocalProcessRunner,
) -> None:
    failing = await runner.spawn(agent("fail"))
    early = [asyncio.create_task(failing.wait()) for _ in range(5)]
    answers = [*await asyncio.gather(*early), await failing.wait()]
    assert {(answer.code, answer.signal) for answer in answers} == {(3, None)}
    assert failing.status() is AgentStatus.FAILED
    sleeping = await runner.spawn(agent("cat"))
    with pytest.raises(Timeout) as late:
        await sleeping.wait(timeout=0.05)
    assert (late.value.code, late.value.retryable) == ("E_TIMEOUT", True)
    await asyncio.gather(*(sleeping.write_stdin(b"%d" % n * 5000 + b"\n") for n in range(9)))
    readers = [asyncio.create_task(sleeping.next_stdout()) for _ in range(9)]
    assert sorted(await asyncio.gather(*readers)) == [b"%d" % n * 5000 + b"\n" for n in range(9)]  # type: ignore[type-var]
    await asyncio.gather(sleeping.kill(), sleeping.kill(), sleeping.wait())
    assert (await sleeping.wait()).signal == signal.SIGKILL
    assert sleeping.status() is AgentStatus.TERMINATED


@pytest.mark.requirement("001.errors", "001.stdin")
async def test_stdin_is_written_closed_and_refused_once_it_is_closed(
    runner: LocalProcessRunner,
) -> None:
    handle = await runner.spawn(agent("cat"))
    data = bytes(range(256)) * 100
    await handle.write_stdin(data)
    await handle.close_stdin()
    assert b"".join(await lines(handle)) == data
    assert (await handle.wait()).code == 0
    with pytest.raises(CommunicationError) as closed:
        await asyncio.wait_for(handle.write_stdin(b"late"), 1)
    assert (closed.value.code, closed.value.retryable) == ("E_STREAM_BROKEN", True)
    assert handle.status() is AgentStatus.COMPLETED


@pytest.mark.requirement("001.stdout", "001.eof")
async def test_reading_gives_the_next_line_or_none_at_once(runner: LocalProcessRunner) -> None:
    runner.catalogue["both"] = shell(
        r"printf 'one\ntwo\377'; echo error >&2; read x; sleep 1000 & exit 4"
    )
    handle = await runner.spawn(agent("both"))
    assert await handle.next_stdout() == b"one\n"
    assert await handle.read_stdout() is None
    assert await handle.next_stderr() == b"error\n"
    await handle.write_stdin(b"go on\n")
    assert (await handle.wait()).code == 4  # though a grandchild holds the output
    assert await handle.next_stdout() == b"two\xff"
    assert await handle.next_stdout() is None
    assert await handle.read_stdout() is None
    assert await handle.read_stderr() is None


@pytest.mark.requirement("001.signal")
@pytest.mark.parametrize("wanted", [AgentSignal.INTERRUPT, AgentSignal.TERMINATE])
async def test_a_signal_arrives_while_others_wait_read_and_write(
    runner: LocalProcessRunner, wanted: AgentSignal
) -> None:
    took = []
    for _ in range(3):  # the slowest may be the machine's fault
        handle = await runner.spawn(agent("trap"))
        assert await handle.next_stdout() == b"ready\n"
        busy = [
            asyncio.create_task(work)
            for work in (handle.wait(), handle.next_stdout(), handle.write_stdin(b"x" * (1 << 20)))
        ]
        await asyncio.sleep(0)
        begun = time.monotonic()
        assert await runner.signal(handle.id(), wanted)
        took.append(time.monotonic() - begun)
        status, line, written = await asyncio.gather(*busy, return_exceptions=True)
        assert isinstance(status, Exit)
        assert (status.code, line) == (7, b"caught\n")
        assert isinstance(written, CommunicationError)
        assert await runner.signal(handle.id(), wanted) is False
    assert min(took) < 0.1


@pytest.mark.requirement("001.kill")
async def test_kill_ends_the_tree_and_again_is_no_error(runner: LocalProcessRunner) -> None:
    handle = await runner.spawn(agent("deaf"))
    tool = int(await handle.next_stdout() or 0)
    await runner.kill(handle.id())
    assert not alive(tool)
    assert not alive(handle.pid)
    assert (await handle.wait()).signal == 9
    await handle.kill()
    assert await handle.signal(AgentSignal.KILL) is False


@pytest.mark.requirement("001.shutdown")
async def test_graceful_shutdown_kills_only_what_does_not_heed_sigterm(
    runner: LocalProcessRunner,
) -> None:
    heeding, deaf = await runner.spawn(agent("trap")), await runner.spawn(agent("deaf"))
    await heeding.next_stdout()
    tool = int(await deaf.next_stdout() or 0)
    stopped = await GracefulShutdown(5).shutdown(heeding)
    assert (stopped.step, stopped.exit and stopped.exit.code) == ("signal", 7)
    assert heeding.status() is AgentStatus.TERMINATED
    begun = time.monotonic()
    stopped = await GracefulShutdown(0.3).shutdown(deaf)
    assert 0.3 <= time.monotonic() - begun < 2.3
    assert (stopped.step, stopped.clean) == ("kill", True)
    assert not alive(tool)
    assert (await GracefulShutdown().shutdown(deaf)).step == "already"
    assert deaf.timeline[-1].reason == "shutdown"


@pytest.mark.requirement("001.pause")
async def test_pause_and_resume_lose_nothing(runner: LocalProcessRunner) -> None:
    runner.catalogue["count"] = shell("i=0; while :; do echo $i; i=$((i+1)); sleep 0.005; done")
    handle = await runner.spawn(agent("count"))
    assert await handle.next_stdout() == b"0\n"
    assert await handle.pause()
    assert handle.status() is AgentStatus.PAUSED
    frozen = handle.silent_secs
    await asyncio.sleep(0.05)
    assert handle.silent_secs == frozen
    await handle.look(silent_after=0.0)
    assert handle.unhealthy is None
    assert await handle.resume()
    assert handle.status() is AgentStatus.RUNNING
    assert [int(await handle.next_stdout() or -1) for _ in range(50)] == list(range(1, 51))
    await handle.pause()
    assert (await GracefulShutdown(5).shutdown(handle)).step == "signal"
    assert await handle.pause() is False
    polite = await runner.spawn(agent("cat"))
    assert await polite.pause(forced=False)
    assert json.loads(await polite.next_stdout() or b"") == {"type": "pause", "action": "pause"}
    assert polite.status() is AgentStatus.PAUSED
    assert await polite.resume()
    assert json.loads(await polite.next_stdout() or b"") == {"type": "pause", "action": "resume"}


@pytest.mark.requirement("001.health")
async def test_a_silent_or_stopped_agent_is_reported_by_the_next_check() -> None:
    async with configured(health_check_interval_secs=0.2) as checking:
        silent, stopped = [await checking.spawn(agent("cat")) for _ in range(2)]
        os.kill(stopped.pid, signal.SIGSTOP)
        await until(lambda: silent.unhealthy is not None and stopped.unhealthy is not None)
        assert str(silent.unhealthy).startswith("said nothing for 0.")
        assert str(stopped.unhealthy).startswith("stopped; said nothing for 0.")
        info = await checking.get_agent(silent.id())
        assert info is not None
        assert (info.healthy, info.status.final) == (False, False)
        os.kill(silent.pid, signal.SIGKILL)
        await until(lambda: silent.status() is AgentStatus.TERMINATED)
    async with configured(enable_health_checks=False, health_check_interval_secs=0.01) as none:
        quiet = await none.spawn(agent("cat"))
        os.kill(quiet.pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)
        assert quiet.unhealthy is None
        os.kill(quiet.pid, signal.SIGKILL)
        await until(lambda: quiet.status().final)


@pytest.mark.requirement("001.json-streaming")
async def test_json_lines_become_events_and_the_rest_stays_text() -> None:
    said = r"""printf '{"type":"thought_update"}\nplain {\n[1]\n{"a": NaN2}\n{"type":"x"}\n'"""
    for parses in (True, False):
        async with configured(enable_json_streaming=parses) as runner:
            runner.catalogue["said"] = shell(said)
            handle = await runner.spawn(agent("said"))
            found = [line async for line in handle.output()]
            assert [line.raw for line in found][1:3] == [b"plain {\n", b"[1]\n"]
            events = [line.event for line in found if line.event is not None]
            wanted = [{"type": "thought_update"}, {"type": "x"}] if parses else []
            assert events == wanted
            assert (handle.json_lines, handle.text_lines) == (len(wanted), 5 - len(wanted))


@pytest.mark.parametrize(
    ("script", "final"),
    [
        ("""echo '{"type":"result","is_error":false}'; exit 1""", AgentStatus.COMPLETED),
        ("""echo '{"type":"result","is_error":true}'; exit 0""", AgentStatus.FAILED),
        ("""echo '{"type":"error","recoverable":false}'; exit 0""", AgentStatus.FAILED),
        ("""echo '{"type":"error","recoverable":true}'; exit 0""", AgentStatus.COMPLETED),
        ("exit 0", AgentStatus.COMPLETED),
        ("exit 1", AgentStatus.FAILED),
        ("kill -9 $$", AgentStatus.TERMINATED),
    ],
)
async def test_the_final_status_is_the_events_where_there_is_one(
    runner: LocalProcessRunner, script: str, final: AgentStatus
) -> None:
    runner.catalogue["ends"] = shell(script)
    handle = await runner.spawn(agent("ends"))
    await handle.wait()
    assert handle.status() is final
    assert handle.timeline[0].status is AgentStatus.INITIALIZING
    assert [moved.status for moved in handle.timeline].count(final) == 1


def test_a_status_moves_as_the_lines_say_and_a_final_one_stays() -> None:
    standing = Standing(1)
    for line in (
        b"hello\n",
        b'{"type": "thought_update"}\n',
        b'{"type": "output"}\n',
        b'{"type": "status_update", "status": "thinking"}\n',
        b'{"type": "status_update", "status": "nonsense"}\n',
        b'{"type": "status_update", "status": 7}\n',
        b'{"type": ["output"]}\n',
    ):
        standing.line(line, 2, parse=True)
    standing.paused(3)
    standing.line(b'{"type": "output"}\n', 3, parse=True)
    assert standing.status is AgentStatus.PAUSED
    standing.resumed(4)
    standing.exited(Exit(code=0), 5)
    standing.move(AgentStatus.RUNNING, "never", 6)
    assert [str(moved.status) for moved in standing.timeline] == [
        "initializing", "running", "thinking", "running", "thinking", "paused", "thinking",
        "completed",
    ]  # fmt: skip
    for _ in range(3_000):
        standing = Standing(now_us()) if standing.status.final else standing
        standing.paused(1)
        standing.resumed(1)
    assert len(standing.timeline) <= 1_000
    assert standing.timeline[0].reason == "spawned"


async def test_more_than_may_run_are_refused_until_one_has_ended() -> None:
    async with configured(max_concurrent_agents=3) as runner:
        answers = await runner.spawn_many([agent("sleep")] * 50, batch=50)
        started = [handle for handle in answers if isinstance(handle, AgentHandle)]
        assert len(started) == 3
        assert all("3" in str(e) for e in answers if isinstance(e, SpawnFailed))
        await started[0].kill()
        assert (await runner.spawn(agent("sleep"))).id()


@pytest.mark.requirement("001.batch-spawn")
async def test_many_are_spawned_in_batches_and_one_failure_stops_no_other(
    runner: LocalProcessRunner,
) -> None:
    configs = [agent("absent" if n % 10 == 3 else "echo", str(n)) for n in range(25)]
    answers = await runner.spawn_many(configs, batch=10)
    for n, answer in enumerate(answers):
        if n % 10 == 3:
            assert isinstance(answer, SpawnFailed)
        else:
            assert isinstance(answer, AgentHandle)
            assert await answer.next_stdout() == b"%d\n" % n
    assert len(await runner.list_agents()) == 22


@pytest.mark.requirement("001.bounded")
async def test_unread_output_is_bounded_as_set(tmp_path: Path) -> None:
    source = "import sys\nfor n in range(100_000): print(n)\nprint('done', file=sys.stderr)"
    keep = Bounds(most=10, when_full="drop")
    async with configured(stdout=keep, log_dir=tmp_path) as runner:
        runner.catalogue["many"] = program(source, "none")
        handle = await runner.spawn(agent("many"))
        assert (await handle.wait()).code == 0
        assert await handle.next_stderr() == b"done\n"
        assert [int(line) for line in await lines(handle)] == list(range(10))
        assert handle.stdout_counts.dropped_lines == 99_990
    assert handle.log_dir is not None
    assert read_log(handle.log_dir, "stdout").split() == [b"%d" % n for n in range(100_000)]
    async with configured(stdout=Bounds(most=10)) as runner:
        runner.catalogue["many"] = program(source, "none")
        handle = await runner.spawn(agent("many"))
        with pytest.raises(Timeout):
            await handle.wait(timeout=0.3)  # it waits for its reader
        assert [int(line) for line in await lines(handle)] == list(range(100_000))


@pytest.mark.requirement("001.limits")
async def test_past_its_limits_an_agent_is_ended_with_the_reason() -> None:
    async with configured(limits=ResourceLimits(max_runtime_secs=0.3)) as runner:
        handle = await runner.spawn(agent("sleep"))
        assert (await handle.wait()).reason == "limit_runtime"
        assert handle.timeline[-1].reason == "limit_runtime"
    async with configured(limits=ResourceLimits(max_memory_mb=50)) as runner:
        source = "import time; x = bytearray(100 << 20); time.sleep(1000)"
        runner.catalogue["large"] = program(source, "none")
        assert (await (await runner.spawn(agent("large"))).wait()).reason == "limit_memory"
    async with configured(limits=ResourceLimits()) as runner:
        handle = await runner.spawn(agent("echo", "unlimited"))
        assert (await handle.wait()).reason is None


async def test_metrics_are_of_the_agents_tree_and_stay_after_its_end(
    runner: LocalProcessRunner,
) -> None:
    handle = await runner.spawn(agent("cat"))
    for _ in range(3):
        await handle.write_stdin(b"line\n")
        await handle.next_stdout()
    seen = await handle.metrics()
    assert (seen.messages_sent, seen.messages_received) == (3, 3)
    assert 0 < seen.memory_mb < 50
    await handle.kill()
    after = await handle.metrics()
    assert (after.memory_mb, after.messages_received) == (seen.memory_mb, 3)
    assert after.uptime_secs == (await handle.metrics()).uptime_secs
    unseen = await runner.spawn(agent("cat"))
    await unseen.close_stdin()
    await unseen.wait()
    assert (await unseen.metrics()).memory_mb > 0


async def test_two_runners_do_not_see_each_others_agents(runner: LocalProcessRunner) -> None:
    async with LocalProcessRunner(catalogue=CATALOGUE) as other:
        handle = await other.spawn(agent("sleep"))
        assert await runner.get_agent(handle.id()) is None
        assert await runner.list_agents() == []
    assert handle.status() is AgentStatus.TERMINATED
    assert not alive(handle.pid)


def test_a_runner_works_in_one_event_loop_after_another() -> None:
    runner = LocalProcessRunner(catalogue=CATALOGUE)

    async def use() -> AgentHandle:
        handle = await runner.spawn(agent("echo", "again"))
        assert await handle.next_stdout() == b"again\n"
        left = await runner.spawn(agent("sleep"))
        return left

    first = asyncio.run(use())

    async def use_again() -> None:
        await use()
        await until(lambda: not alive(first.pid))
        await runner.close()

    asyncio.run(use_again())


@pytest.mark.requirement("001.zombies")
async def test_a_thousand_rounds_leave_no_zombie_and_no_descriptor() -> None:
    async with configured(enable_health_checks=False) as runner:
        await (await runner.spawn(agent("echo", "warm"))).kill()
        before = len(os.listdir("/proc/self/fd"))
        room = asyncio.Semaphore(40)

        async def once(n: int) -> None:
            async with room:
                handle = await runner.spawn(agent("fail" if n % 3 == 0 else "sleep"))
                if n % 3 == 0:
                    assert (await handle.wait()).code == 3
                elif n % 3 == 1:
                    await handle.kill()
                else:
                    await GracefulShutdown(5).shutdown(handle)

        await asyncio.gather(*(once(n) for n in range(1_000)))
        # Fewer, too: what other tests left to the collector goes when it will.
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert len(await runner.list_agents()) <= 1_040


@pytest.mark.requirement("001.example")
async def test_the_example_runs_with_no_cli_installed() -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(ROOT / "examples" / "agent_runner.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "research: {'type': 'thought_update', 'content': 'reading the task'}",
        "research: {'type': 'output', 'content': 'Focus'}",
        "research: {'type': 'output', 'content': 'on'}",
        "research: {'type': 'output', 'content': 'LLMs'}",
        "research: {'type': 'result', 'result': 'done'}",
        "research: exited 0 completed",
        "parrot: b'heard Hello, agent!\\n'",
        "parrot: was ended by SIGTERM",
        "research: completed",
        "parrot: terminated",
        "stubborn: running",
        "stubborn: kill was ended by SIGKILL",
        "pool: b'heard Hello, pool!\\n'",
        "nobody: there is no backend 'no-such-cli' in the catalogue;"
        " it has: parrot, researcher, stubborn",
    ]
    assert done.stderr == ""


def test_the_public_names_are_there_and_cost_nothing_before_they_are_used() -> None:
    assert len(set(public.__all__)) == len(public.__all__)
    for name in public.__all__:
        assert getattr(public, name) is not None
    seen = "import sys, retinue.process; print(*(m for m in sys.modules if 'msgspec' in m))"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

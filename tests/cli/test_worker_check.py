"""``retinue worker check``: good workers in three languages pass, and every rule can fail."""

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Place
from tests.process.rig import alive

from retinue.cli.check.peer import Peer, Plan
from retinue.cli.check.suite import EVERY_RUN, RULES, Finding, check

WORKERS = Path(__file__).parents[2] / "examples" / "workers"
BROKEN = Path(__file__).parent / "broken_worker.py"
PYTHON = [sys.executable, str(WORKERS / "python_worker.py")]
COMMANDS = {
    "python": PYTHON,
    "node": ["node", str(WORKERS / "node_worker.mjs")],
    "shell": ["sh", str(WORKERS / "shell_worker.sh")],
}
# What a worker that has one agent, and does the least, has nothing to show for.
LEAST = {"stream", "failure", "human-input", "asked-time", "cancel", "timeout", "drain", "deadline"}
SHOWN_BY = {
    "accumulated": "stream",
    "always-accumulated": "stream",
    "any-node": "stream",
    "frames-only": "invoke",
    "in-place": "correlation",
    "metadata": "invoke-id",
    "true-is-one": "echo",
    "unanswered": "deadline",
    "wrong-type": "unknown-operation",
}
"""Faults that are not named like a rule, or are looked at in every run: the rule to run."""


@pytest.mark.requirement("000.any-language")
@pytest.mark.parametrize("language", COMMANDS)
async def test_a_good_worker_in_any_language_passes(language: str) -> None:
    command = COMMANDS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} IS NOT INSTALLED: the worker in {language} was not checked")
    found = await check(Plan(command, seconds=30, start_seconds=30))
    assert [f for f in found if f.outcome == "fail"] == []
    skipped = {f.rule for f in found if f.outcome == "skip"}
    assert skipped == (LEAST if language == "shell" else set())
    assert [f.rule for f in found] == [*RULES, *EVERY_RUN]


@pytest.mark.requirement("000.any-language")
@pytest.mark.parametrize("fault", [*RULES, *EVERY_RUN, *sorted(SHOWN_BY.keys() - EVERY_RUN)])
async def test_every_rule_fails_for_a_worker_that_breaks_it(fault: str) -> None:
    command = [sys.executable, str(BROKEN), fault, *PYTHON]
    start = 1.0 if fault == "ready" else 30.0
    rule = SHOWN_BY.get(fault, fault)
    found = await check(Plan(command, seconds=4, start_seconds=start), [rule])
    broken = fault if fault in EVERY_RUN else rule
    failed = {f.rule: f.why for f in found if f.outcome == "fail"}
    assert broken in failed
    assert failed[broken]


@pytest.mark.parametrize("rule", ["correlation", "stream"])
async def test_what_comes_after_the_answer_is_noticed(rule: str) -> None:
    command = [sys.executable, str(BROKEN), "twice", *PYTHON]
    found = await check(Plan(command, start_seconds=30), [rule])
    assert {f.rule for f in found if f.outcome == "fail"} == {"in-place"}


@pytest.mark.parametrize("fault", ["array", "number", "deep", "deep-object", "half"])
async def test_an_odd_line_is_a_finding_and_the_check_goes_on(fault: str) -> None:
    command = [sys.executable, str(BROKEN), fault, *PYTHON]
    found = await check(Plan(command, start_seconds=30), ["envelope", "ping", "invoke"])
    assert [f.rule for f in found] == ["envelope", "ping", "invoke", *EVERY_RUN]
    assert {f.rule for f in found if f.outcome == "fail"} == {"frames-only"}


async def test_why_an_answer_is_missing_is_said_where_it_is_missed() -> None:
    command = [sys.executable, str(BROKEN), "retryable-text", *PYTHON]
    found = await check(Plan(command, seconds=1, start_seconds=30), ["unknown-agent"])
    why = found[0].why or ""
    assert "did not come" in why
    assert "retryable" in why


async def test_a_worker_that_writes_without_end_is_ended() -> None:
    ready = json.dumps(
        {"type": "control", "payload": {"status": "ready", "module_name": "m", "agents": ["a"]}}
    )
    command = ["sh", "-c", f"echo '{ready}'; exec yes"]
    async with asyncio.timeout(60):
        found = await check(Plan(command, start_seconds=30), ["ping"])
    assert "wrote more than 1000 lines that are no frames" in (found[0].why or "")


@pytest.mark.parametrize("rule", ["ready", "shutdown"])
async def test_a_child_that_holds_the_pipes_holds_up_nothing(tmp_path: Path, rule: str) -> None:
    pid = tmp_path / "pid"
    child = f"setsid sh -c 'echo $$ > {pid}; exec sleep 300' & exec {' '.join(PYTHON)}"
    async with asyncio.timeout(60):
        found = await check(Plan(["sh", "-c", child], start_seconds=30), [rule])
    outcome = {f.rule: f.why for f in found}
    assert outcome[rule] is None or "holds its stdout" in (outcome[rule] or "")
    while alive(int(pid.read_text())):
        assert rule == "shutdown", "left behind"
        os.kill(int(pid.read_text()), signal.SIGKILL)  # its parent had ended: nobody's child
        await asyncio.sleep(0.01)


async def test_the_filter_alone_breaks_nothing() -> None:
    found = await check(Plan([sys.executable, str(BROKEN), "none", *PYTHON], start_seconds=30))
    assert [(f.rule, f.why) for f in found if f.outcome != "pass"] == []


async def test_a_program_that_is_no_worker_is_not_checked_further() -> None:
    heard: list[Finding] = []
    found = await check(Plan(["sh", "-c", "echo hello; echo oops >&2"]), None, heard.append)
    assert heard == found
    assert found[0].rule == "ready"
    assert found[0].outcome == "fail"
    assert found[0].why == (
        "the ready frame (control, status ready) did not come: the program ended;"
        " its stderr ends with: oops; what it wrote last that is no frame: the line is not JSON:"
        " JSON is malformed: invalid character (byte 0): hello"
    )
    assert [f.rule for f in found] == ["ready", *EVERY_RUN]
    assert found[1].outcome == "fail"


async def test_nothing_is_left_of_a_program_that_will_not_end(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stubborn = f"trap '' TERM INT; echo $$ > {pid}; while :; do sleep 0.05; done"
    async with Peer(Plan(["sh", "-c", stubborn])):
        while not (pid.exists() and pid.read_text().strip()):
            await asyncio.sleep(0.01)
    assert not Path(f"/proc/{pid.read_text().strip()}/status").exists()  # noqa: ASYNC240


def test_the_command_says_what_fails_and_why(place: Place) -> None:
    done = place.retinue("worker", "check", "--rule", "ping", "--", *PYTHON)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "ok    ping"
    assert done.out.splitlines()[-1] == "3 rules hold, 0 are broken, 0 were not shown"
    broken = [sys.executable, str(BROKEN), "ping", *PYTHON]
    done = place.retinue("worker", "check", "--rule", "ping", "--", *broken)
    assert done.code == 1
    assert "FAIL  ping" in done.out
    assert "the rule: Control ping is answered by a response with status pong." in done.out
    done = place.retinue("worker", "check", "--rule", "ping", "--json", "--", *broken)
    assert done.code == 1
    told = json.loads(done.out)
    assert told["passed"] is False
    assert told["rules"][0]["rule"] == "ping"
    assert told["rules"][0]["outcome"] == "fail"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rule", "nonsense", "--", "true"], "there is no rule nonsense"),
        (["--input", "{", "--", "true"], "--input"),
        (["--", "./no-such-program"], "cannot be started"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_use_is_explained(place: Place, arguments: list[str], said: str) -> None:
    done = place.retinue("worker", "check", *arguments)
    assert done.code != 0
    assert said in done.err

"""``retinue repl``: a conversation, over a pipe and at a terminal."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import COMMANDS, Place, Server

WORKER = Path(__file__).parents[2] / "examples" / "workers" / "python_worker.py"


@pytest.fixture
def fleet(place: Place) -> Place:
    """A directory with the example worker's agents."""
    place.write("python_worker.py", WORKER.read_text())
    place.write(
        "retinue.yaml",
        'examples: false\nagents: ["python_worker:Echo", "python_worker:tell",'
        ' "python_worker:ask", "python_worker:fail"]\n',
    )
    return place


@pytest.mark.requirement("000.repl")
def test_every_verb_works_on_a_pipe(fleet: Place) -> None:
    said = 'agents\nhealth\n\ninvoke echo {"text": "é"}\nstream tell {"words": 2}\n'
    done = fleet.retinue("repl", given=said + "invoke tell 1\nquit\ninvoke echo {}\n")
    assert done.code == 0
    assert re.search(r"^tell +available +tell$", done.out, re.M)
    assert '"status": "healthy"' in done.out
    assert '{\n  "text": "é"\n}' in done.out
    assert "NonceOnce 1 2\n" in done.out
    assert '" 1"' in done.out
    assert done.out.count("text") == 1  # nothing after quit
    assert "error" not in done.err


@pytest.mark.requirement("000.repl")
@pytest.mark.requirement("000.input")
@pytest.mark.parametrize("given", ['[["hi"]]', "5", '"text"', "true", "0"])
def test_any_value_can_be_given(fleet: Place, given: str) -> None:
    done = fleet.retinue("repl", given=f"invoke echo {given}\n")
    assert (done.code, done.err.count("error")) == (0, 0), done.err
    assert json.loads(done.out) == json.loads(given)


@pytest.mark.requirement("000.repl")
def test_a_bad_line_is_explained_and_the_next_one_read(fleet: Place) -> None:
    wrong = {
        "dance": "'dance' is none of invoke, stream, answer",
        "invoke": "write: invoke AGENT JSON",
        "invoke nobody": "nobody is no agent",
        "invoke echo {oops": "not valid JSON",
        "invoke tell/draft": "which capability",
        'invoke tell {"words": "many"}': "$.parameters.words",
        "answer 7": "write: answer ID VALUE",
        "answer 01ARZ3NDEKTSV4RRFFQ69G5FAV 1": "no question",
        "invoke fail": "this agent always fails",
    }
    done = fleet.retinue("repl", given="\n".join([*wrong, 'invoke echo {"still": "here"}']))
    assert done.code == 0
    complaints = [line for line in done.err.splitlines() if line.startswith("error ")]
    assert len(complaints) == len(wrong)
    for complaint, reason in zip(complaints, wrong.values(), strict=True):
        assert reason in complaint
    assert '"still": "here"' in done.out


@pytest.mark.requirement("000.repl")
def test_a_question_is_answered_at_the_prompt(fleet: Place) -> None:
    process = subprocess.Popen(
        [sys.executable, str(COMMANDS / "retinue"), "repl"],
        cwd=fleet.directory,
        env=fleet.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write('invoke ask {"prompt": "Well?"}\n')
        process.stdin.flush()
        assert process.stdout.readline() == "? Well?\n"
        answer = process.stdout.readline().split()
        assert answer[0] == "answer"
        process.stdin.write(f"answer {answer[1]} fine\n")
        process.stdin.close()
        assert '"answer": "fine"' in process.stdout.read()
        assert process.wait(30) == 0


def test_it_talks_with_a_server_that_runs(served: Server) -> None:
    done = served.place.retinue("repl", "--url", served.url, given="agents\n")
    assert done.code == 0
    assert "agent_example_001" in done.out


def test_at_a_terminal_there_is_a_prompt(fleet: Place) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(COMMANDS / "retinue"), "repl"],
        cwd=fleet.directory,
        env={**fleet.environment, "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while b"retinue> " not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"health\n")
    while seen.count(b"retinue> ") < 2:
        seen += os.read(ours, 4096)
    assert b"healthy" in seen
    os.write(ours, b"\x04")
    assert process.wait(30) == 0
    os.close(ours)

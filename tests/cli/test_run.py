"""``retinue run``: in this process, or by the server that runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess

import pytest
from tests.cli.conftest import COMMANDS, SECONDS, Place, Server, in_steps

SLOW = ("text=One is here. Two is here. Three is here.", "pause_ms=60000")


# -- with no server ------------------------------------------------------------------------------


def test_it_runs_with_nothing_but_a_directory(place: Place) -> None:
    done = place.retinue("run", "echo", "text=hi")
    assert (done.code, done.json, done.err) == (0, {"message": "Echo: hi"}, "")
    assert (place.directory / ".retinue" / "retinue.db").exists()


def test_it_works_on_the_users_own_files(place: Place) -> None:
    place.write("tool.py", "# TODO: begin\n")
    done = place.call("run", "survey_repository", "--session", "mine", "--json")
    reply = done.json
    assert reply["success"] is True
    assert reply["agent_id"] == "agent_survey_001"
    assert reply["data"]["todos"]["items"] == [
        {"file": "tool.py", "line": 1, "text": "TODO: begin"}
    ]
    record = place.call("session", "contracts", "mine", "--json").json
    assert [contract["status"] for contract in record["contracts"]] == ["completed"] * 2


def test_it_runs_on_postgresql_just_so(place: Place, postgres_url: str) -> None:
    done = place.call("run", "echo", "text=hi", DATABASE_URL=postgres_url)
    assert (done.code, done.json, done.err) == (0, {"message": "Echo: hi"}, "")
    assert place.call("execution", "--json", DATABASE_URL=postgres_url).json["total"] == 1
    assert place.call("ledger", "verify", DATABASE_URL=postgres_url).code == 0
    assert list(place.directory.iterdir()) == []


def test_an_agents_failure_is_status_1(place: Place) -> None:
    done = place.call("run", "survey_repository", "path=..")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error E_INVALID_INPUT: .. is outside")
    assert "retinue execution show" in done.err
    done = place.call("run", "survey_repository", "path=..", "--json")
    assert done.code == 1
    assert done.json["error_info"]["code"] == "E_INVALID_INPUT"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ecko", "text=x"], "did you mean echo?"),
        (["echo"], '"text" is a required property'),
        (["echo", "text=x", "more=1"], "'more' was unexpected"),
        (["echo", "text"], "write key=value"),
        (["summarize_text", "text=x", "sentences=few"], "not of type integer"),
        (["agent_example_001"], "echo, uppercase"),
        (["echo", "text=x", "--session", "../x"], "session_id must match"),
        (["echo", "text=x", "--agent", "agent_review_001"], "echo of agent agent_review_001"),
        (["echo", "text=x", "--timeout", "0"], "--timeout"),
    ],
)
def test_what_is_refused_is_status_2(served: Server, words: list[str], said: str) -> None:
    done = served.place.call("run", *words)
    assert done.code == 2
    # What the option parser prints is in a box whose lines are broken anywhere.
    assert said in " ".join(done.err.replace("│", " ").split())


def test_an_agents_mistake_is_one_line_unless_asked_for(place: Place) -> None:
    place.write(
        "wrong.py",
        "from retinue import capability\n"
        "@capability()\n"
        "def fall() -> int:\n"
        "    return {}['here']\n",
    )
    place.write("retinue.yaml", "agents: ['wrong:fall']\n")
    done = place.retinue("run", "fall")
    assert done.code == 1
    assert done.err.splitlines()[0] == "error E_INTERNAL: KeyError: 'here'"
    assert "RETINUE_LOG_LEVEL=warning" in done.err
    asked = place.start("run", "fall", RETINUE_LOG_LEVEL="warning")
    _, err = asked.communicate(timeout=SECONDS)
    assert "wrong.py" in err
    assert "return {}['here']" in err


def test_a_task_past_its_time_is_status_1(place: Place) -> None:
    done = place.call("run", "summarize_text", *SLOW, "--timeout", "0.2")
    assert done.code == 1
    assert done.err.startswith("error E_TIMEOUT")


def test_ctrl_c_cancels_it(place: Place) -> None:
    process = in_steps(place, "run", "summarize_text", *SLOW, "--follow", until="One is here.")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "cancelled 0" in err
    listing = place.call("execution", "--json").json
    assert [execution["state"] for execution in listing["executions"]] == ["cancelled"]


def test_two_at_once_wait_for_each_other(place: Place) -> None:
    first = in_steps(place, "run", "summarize_text", *SLOW, "--follow", until="One")
    second = place.start("run", "echo", "text=second")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=SECONDS)
    out, err = second.communicate(timeout=SECONDS)
    assert (second.returncode, json.loads(out), err) == (0, {"message": "Echo: second"}, "")


ASKING = (
    "from retinue import Context, capability\n"
    "@capability()\n"
    "async def decide(context: Context) -> str:\n"
    "    return await context.ask('which \\x1b[5mone?') + '\\x9b31m'\n"
)


def test_at_a_terminal_a_question_is_answered_there_and_then(place: Place) -> None:
    place.write("asking.py", ASKING)
    place.write("retinue.yaml", "agents: ['asking:decide']\n")
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            [str(COMMANDS / "retinue"), "run", "decide"],
            cwd=place.directory,
            env=place.environment | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        seen = b""
        while b"which one?" not in seen:
            seen += os.read(ours, 1000)
        os.write(ours, b"the left\n")
        with contextlib.suppress(OSError):  # the terminal is gone when the command has ended
            while piece := os.read(ours, 1000):
                seen += piece
        assert process.wait(timeout=SECONDS) == 0
    finally:
        os.close(ours)
    assert b'\x1b[32m"the left31m"\x1b[0m' in seen  # rich's own colours, not the agent's


def test_a_question_is_answered_by_nobody_in_a_script(place: Place) -> None:
    place.write("asking.py", ASKING)
    place.write("retinue.yaml", "agents: ['asking:decide']\n")
    done = place.retinue("run", "decide")
    assert done.code == 1
    assert "which one?" in done.err
    assert "nobody can answer here" in done.err


# -- as the client of a server ---------------------------------------------------------------------


def test_it_finds_the_server_by_the_stores_lock(served: Server) -> None:
    done = served.place.retinue("run", "echo", "text=there", "--session", "found", "--json")
    assert done.json["data"] == {"message": "Echo: there"}
    assert served.place.call("execution", "--session", "found", "--json").json["total"] == 1
    held = sqlite3.connect(f"file:{served.place.directory}/.retinue/retinue.db?mode=ro", uri=True)
    try:
        workers = held.execute("SELECT COUNT(*) FROM worker").fetchone()[0]
    finally:
        held.close()
    assert workers == 1, "a command opened the store itself"


def test_a_server_can_be_named(served: Server, place: Place) -> None:
    done = place.call("run", "echo", "text=x", "--url", served.url)
    assert done.json == {"message": "Echo: x"}
    done = place.call("run", "echo", "text=x", RETINUE_URL=served.url)
    assert done.json == {"message": "Echo: x"}
    assert not (place.directory / ".retinue").exists()


def test_a_server_that_is_not_there_is_said(place: Place) -> None:
    done = place.call("run", "echo", "text=x", "--url", "http://127.0.0.1:9")
    assert done.code == 1
    assert done.err.startswith("error E_UNAVAILABLE: no server answers at http://127.0.0.1:9")
    done = place.call("run", "echo", "text=x", "--url", "nonsense")
    assert done.code == 2
    assert "--url=nonsense" in done.err


def test_following_shows_text_and_progress(served: Server) -> None:
    done = served.place.call("run", "review_repository", "--follow")
    assert done.code == 0
    assert "notes.md" in done.out
    assert done.err.splitlines()[0] == "· waiting for the survey"
    assert "· completed: 0" in done.err
    assert "its result has more than this text: retinue execution show 0" in done.err
    done = served.place.call("run", "echo", "text=x", "--follow")
    assert done.json == {"message": "Echo: x"}


def test_progress_in_words_can_be_followed(place: Place) -> None:
    place.write("planner.sh", 'echo \'{"type": "progress", "percentage": "planning"}\'\n')
    place.write(
        "retinue.yaml",
        "agents:\n- {driver: command, agent_id: planner, command: [sh, planner.sh],"
        " output: json-lines, work_dir: .}\n",
    )
    done = place.retinue("run", "planner", "prompt=x", "--follow")
    assert done.err.splitlines()[0] == "· planning"
    assert "fault of ours" not in done.err
    last = place.call("execution", "--json").json["executions"][0]["execution_id"]
    assert "· planning" in place.retinue("execution", "follow", last).err


def test_following_as_json_prints_every_event(served: Server) -> None:
    done = served.place.call("run", "survey_repository", "--follow", "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["eventType"] == "completed"
    assert events[-1]["result"]["files"] >= 1
    assert done.err == ""


def test_ctrl_c_cancels_at_the_server(served: Server) -> None:
    place = served.place
    words = ("run", "summarize_text", *SLOW, "--follow", "--session", "interrupted")
    process = in_steps(place, *words, until="One is here.")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    listing = place.call("execution", "--session", "interrupted", "--json").json
    assert [execution["state"] for execution in listing["executions"]] == ["cancelled"]


def test_a_value_from_a_file_or_from_a_pipe(served: Server) -> None:
    place = served.place
    place.write("long.txt", "from a file")
    assert place.call("run", "echo", "text=@long.txt").json == {"message": "Echo: from a file"}
    done = place.retinue("run", "echo", "text=@-", given="from a pipe")
    assert done.json == {"message": "Echo: from a pipe"}


def test_escapes_in_an_agents_text_stay_out_of_the_terminal(served: Server) -> None:
    text = "\x1b]0;owned\x07One \x1b[2Jis here."
    done = served.place.call("run", "summarize_text", f"text={text}", "--follow")
    assert done.out == "One is here.\n"

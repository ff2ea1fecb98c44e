"""The nouns: what is there, with a server and without one, for people and for programs."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from tests.cli.conftest import SECONDS, Place, Server, in_steps


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A directory with a record and no server: two tasks that went well, one that failed."""
    place = Place(tmp_path_factory.mktemp("past"))
    for words in (["echo", "text=a"], ["echo", "text=b"], ["survey_repository", "path=.."]):
        place.call("run", *words, "--session", "s1")
    return place


@pytest.mark.parametrize("noun", ["agent", "execution", "session", "question", "key"])
def test_a_bare_noun_lists(past: Place, noun: str) -> None:
    bare, listed = past.call(noun), past.call(noun, "list")
    empty = noun in {"question", "key"}
    assert (bare.code, bare.err) == (0, "there are none\n" if empty else "")
    assert bare.out == listed.out
    assert bool(bare.out) is not empty


@pytest.mark.parametrize("noun", ["agent", "execution", "session", "question", "key"])
def test_reading_makes_no_store(place: Place, noun: str) -> None:
    done = place.call(noun)
    assert done.code == 0
    assert "no store" in done.err
    assert not (place.directory / ".retinue").exists()


@pytest.mark.parametrize("noun", ["agent", "execution", "session", "question", "key"])
def test_with_a_server_the_shape_is_the_same(past: Place, served: Server, noun: str) -> None:
    local, remote = past.call(noun, "--json").json, served.place.call(noun, "--json").json
    assert local.keys() == remote.keys()


def test_executions_are_listed_and_filtered(past: Place) -> None:
    listing = past.call("execution", "--json").json
    assert listing["total"] == 3
    assert past.call("execution", "--state", "failed", "--json").json["total"] == 1
    assert past.call("execution", "--capability", "echo", "--json").json["total"] == 2
    assert past.call("execution", "--agent", "agent_survey_001", "--json").json["total"] == 1
    assert past.call("execution", "--session", "other", "--json").json["total"] == 0
    done = past.call("execution", "--limit", "1")
    assert len(done.out.splitlines()) == 2
    assert "1 of 3" in done.err
    assert past.call("execution", "--state", "odd").code == 2


def test_one_execution_is_shown_and_its_events_again(past: Place) -> None:
    newest = past.call("execution", "--json").json["executions"][0]["execution_id"]
    shown = past.call("execution", "show", newest)
    assert "session_id" in shown.out
    assert "is outside of the directory" in shown.out
    assert past.call("execution", "show", newest, "--json").json["input"]["parameters"] == {
        "path": ".."
    }
    done = past.call("execution", "follow", newest)
    assert done.code == 1
    assert "error E_INVALID_INPUT" in done.err
    done = past.call("execution", "follow", newest, "--json", "--after", "1")
    assert (done.code, done.out, done.err) == (0, "", "")
    done = past.call("execution", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert (done.code, done.err) == (
        2,
        "error E_NOT_FOUND: no execution 01ARZ3NDEKTSV4RRFFQ69G5FAV\n",
    )


def test_an_execution_is_cancelled_and_followed_at_the_server(served: Server) -> None:
    place = served.place
    words = ("summarize_text", "text=One is. Two is.", "pause_ms=60000", "--session", "cancelled")
    running = in_steps(place, "run", *words, "--follow", until="One is.")
    listing = place.call("execution", "--session", "cancelled", "--json").json
    execution_id = listing["executions"][0]["execution_id"]
    following = in_steps(place, "execution", "follow", execution_id, until="One is.")
    done = place.call("execution", "cancel", execution_id)
    assert done.out == f"{execution_id} is cancelled\n"
    for process in (running, following):
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert "· cancelled" in err
    assert place.call("execution", "cancel", execution_id, "--json").json["state"] == "cancelled"


def test_a_sessions_contracts_are_in_order(past: Place) -> None:
    done = past.call("session", "contracts", "s1")
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [str(n), "REQUEST" if n % 2 else "RESPONSE"] for n in range(1, 7)
    ]
    assert "is outside" in lines[-1]
    assert "s1" in past.call("session").out
    assert past.call("session", "contracts", "../x").code == 2
    unknown = past.call("session", "contracts", "nope")
    assert (unknown.code, unknown.err) == (2, "error E_NOT_FOUND: no session nope\n")


def test_a_question_is_answered(place: Place) -> None:
    place.write(
        "asking.py",
        "from retinue import Context, capability\n"
        "@capability()\n"
        "async def decide(context: Context) -> dict:\n"
        "    return {'said': await context.ask('which \\x1b[31mone?')}\n",
    )
    place.write("retinue.yaml", "agents: ['asking:decide']\n")
    assert place.call("question", "answer", "Q", "1").err.startswith("error E_UNAVAILABLE")
    with place.serve():
        running = place.start("run", "decide", "--follow")
        assert running.stderr is not None
        question = None
        for line in running.stderr:
            if "answer with" in line:
                question = line.split()[-2]
                break
        assert question is not None
        assert "which one?" in place.call("question").out
        done = place.call("question", "answer", question, '{"n": 1}')
        assert done.out == f"{question} is answered\n"
        out, _ = running.communicate(timeout=SECONDS)
        assert json.loads(out) == {"said": {"n": 1}}
        done = place.call("question", "answer", question, "again")
        assert (done.code, done.err.startswith("error E_CONFLICT")) == (1, True)


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_who_waits_without_following_is_told_of_a_question(
    place: Place, words: tuple[str, ...]
) -> None:
    place.write(
        "asking.py",
        "from retinue import Context, capability\n"
        "@capability()\n"
        "async def decide(context: Context) -> str:\n"
        "    return await context.ask('which one?')\n",
    )
    place.write("retinue.yaml", "agents: ['asking:decide']\n")
    with place.serve():
        running = place.start("run", "decide", *words)
        assert running.stderr is not None
        assert running.stderr.readline() == "? which one?\n"
        answer = running.stderr.readline().removeprefix("  answer with: retinue ").split()
        done = place.call(*answer[:-1], "left")
        assert done.code == 0
        out, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (0, "")
    assert (json.loads(out)["data"] if words else json.loads(out)) == "left"


@pytest.mark.parametrize(("word", "result"), [("approve", "gone"), ("reject", "kept")])
def test_leave_is_given_or_refused(place: Place, word: str, result: str) -> None:
    place.write(
        "asking.py",
        "from retinue import Context, capability\n"
        "@capability()\n"
        "async def delete(context: Context) -> str:\n"
        "    return 'gone' if await context.approve('Delete it?', role='admin') else 'kept'\n",
    )
    place.write("retinue.yaml", "agents: ['asking:delete']\n")
    with place.serve():
        running = place.start("run", "delete", "--follow")
        assert running.stderr is not None
        question = next(line.split()[-3] for line in running.stderr if "answer with" in line)
        listed = place.call("question").out
        assert "approval" in listed
        assert "admin" in listed
        assert place.call("question", word, question).out == f"{question} is answered\n"
        out, _ = running.communicate(timeout=SECONDS)
        assert json.loads(out) == result


def test_what_a_crash_left_is_cancelled_by_the_next_start(place: Place) -> None:
    with place.serve() as server:
        words = ("summarize_text", "text=One is. Two is.", "pause_ms=60000", "--follow")
        running = in_steps(place, "run", *words, until="One is.")
        server.stop(signal.SIGKILL)
    running.kill()
    running.communicate(timeout=SECONDS)
    (left,) = place.call("execution", "--json").json["executions"]
    assert left["state"] == "running"
    done = place.call("execution", "follow", left["execution_id"])
    assert done.code == 1
    assert "no server runs it" in done.err
    done = place.call("execution", "cancel", left["execution_id"])
    assert "the next start ends it" in done.err
    assert place.call("run", "echo", "text=x").code == 0
    assert place.call("execution", "--state", "cancelled", "--json").json["total"] == 1


# -- the ledger ------------------------------------------------------------------------------------


def test_the_ledger_holds(past: Place, served: Server) -> None:
    done = past.call("ledger", "verify")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("the ledger holds: 1 sessions, 6 contracts")
    assert past.call("ledger").out == done.out
    assert served.place.call("ledger", "verify", "--json").json["ok"] is True


CHANGES = {
    "body": "UPDATE contract SET body = CAST(replace(body, 'two', 'six') AS BLOB)",
    "type": "UPDATE contract SET body = replace(body, 'two', 'six')",
    "sort": "UPDATE contract SET body = 5, hash = 99999999999",
    "word": "UPDATE contract SET type = 'QUESTION'",
    "gone": "DELETE FROM contract",
    "name": "UPDATE contract SET to_agent = 'somebody else'",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_record_is_named(place: Place, change: str) -> None:
    for text in ("one", "two", "three"):
        assert place.call("run", "echo", f"text={text}", "--session", "mine").code == 0
    tamper(place, CHANGES[change] + " WHERE session_id = 'mine' AND n = 3")
    done = place.call("ledger", "verify")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error E_LEDGER_BROKEN: session mine of local, row 3"), done.err
    done = place.call("ledger", "verify", "--json")
    assert done.code == 1
    assert done.json["fault"]["n"] == 3


def test_a_changed_event_and_a_changed_audit_are_named(place: Place) -> None:
    assert place.call("run", "echo", "text=one", "--session", "mine").code == 0
    tamper(place, "UPDATE event SET data = '{\"a\":1}' WHERE seq = 1")
    assert "error E_LEDGER_BROKEN: events of 0" in place.call("ledger", "verify").err
    tamper(place, "UPDATE audit SET actor = 'nobody' WHERE n = 1")
    assert "error E_LEDGER_BROKEN: audit, row 1" in place.call("ledger", "verify").err


def tamper(place: Place, statement: str) -> None:
    """Change the file as one can who has it: what guards its rows goes first."""
    with closing(sqlite3.connect(place.directory / ".retinue" / "retinue.db")) as db, db:
        triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        for (name,) in db.execute(triggers).fetchall():
            db.execute(f"DROP TRIGGER {name}")
        assert db.execute(statement).rowcount == 1


def test_verifying_nothing_is_an_error(place: Place) -> None:
    done = place.call("ledger", "verify")
    assert done.code == 2
    assert "there is no store at" in done.err
    assert not (place.directory / ".retinue").exists()


def test_an_anchor_is_printed_and_checked(place: Place) -> None:
    assert place.call("run", "echo", "text=one").code == 0
    done = place.call("ledger", "anchor")
    anchor = done.out.strip()
    n, _, digest = anchor.partition(":")
    assert (n.isdigit(), len(digest)) == (True, 64)
    assert place.call("run", "echo", "text=two").code == 0
    assert place.call("ledger", "verify", "--anchor", anchor).code == 0
    done = place.call("ledger", "verify", "--anchor", f"{n}:{'0' * 64}")
    assert done.code == 1
    assert f"audit, row {n}: the row is not the one that the anchor names" in done.err
    done = place.call("ledger", "verify", "--anchor", "nonsense")
    assert done.code == 2
    assert "it must be N:HASH, as `retinue ledger anchor` prints it" in done.err


def test_what_was_said_is_erased(place: Place) -> None:
    for text in ("tell-nobody", "nor-this"):
        assert place.call("run", "echo", f"text={text}", "--session", "mine").code == 0
    first = place.call("execution", "--json").json["executions"][-1]["execution_id"]
    assert place.call("execution", "erase", first).out == f"{first}: 2 contracts erased\n"
    shown = place.call("execution", "show", first, "--json").json
    assert (shown["erased"], shown["input"], shown["result"]) == (True, None, None)
    assert place.call("session", "erase", "mine").out == "mine: 2 contracts erased\n"
    assert place.call("session", "erase", "mine").out == "mine: 0 contracts erased\n"
    assert place.call("session", "erase", "nowhere").code == 2
    assert place.call("ledger", "verify").code == 0
    listed = place.call("session", "contracts", "mine", "--json").out
    assert "tell-nobody" not in listed
    followed = place.call("execution", "follow", first)
    assert (followed.code, followed.out) == (0, "")
    assert "was erased" in followed.err


def test_what_is_old_is_removed(place: Place) -> None:
    words = ("summarize_text", "text=One is. Two is.", "--session", "mine")
    for _ in range(3):
        assert place.call("run", *words).code == 0
    done = place.call("ledger", "prune")
    assert "no retention is set" in done.err
    old = place.call("execution", "--json").json["executions"][-1]["execution_id"]
    place.write("retinue.yaml", "retention_executions: 1\n")
    done = place.call("ledger", "prune", "--dry-run")
    assert done.out == (
        "would remove the events of 2 executions; 1 sessions begin with old contracts\n"
    )
    done = place.call("ledger", "prune", "--json")
    assert (done.json["executions"], done.json["contracts"]) == (2, 4)
    done = place.call("execution", "follow", old)
    assert done.code == 0
    assert "were removed by retention" in done.err
    assert f"completed: {old}" in done.err
    assert place.call("execution", "show", old, "--json").json["removed"] is True
    assert place.call("ledger", "verify").code == 0


# -- keys ------------------------------------------------------------------------------------------


def test_a_keys_secret_is_shown_once_and_kept_nowhere(place: Place) -> None:
    made = place.call("key", "create", "ci", "--role", "admin", "--owner", "team")
    secret = made.out.strip()
    assert secret.startswith("rtn_")
    assert secret not in made.err
    stored = b"".join(
        path.read_bytes() for path in Path(place.directory, ".retinue").iterdir() if path.is_file()
    )
    assert secret.encode() not in stored
    assert secret.removeprefix("rtn_").encode() not in stored
    listing = place.call("key", "--json").json
    assert secret not in json.dumps(listing)
    (key,) = listing["keys"]
    assert (key["name"], key["role"], key["owner"]) == ("ci", "admin", "team")
    assert place.call("key", "revoke", key["key_id"]).out == f"{key['key_id']} is revoked\n"
    assert place.call("key", "revoke", key["key_id"]).code == 2
    assert place.call("key", "--json").json["keys"][0]["revoked_at"] is not None
    assert place.call("key", "create", "x", "--role", "king").code == 2


def test_from_the_first_key_on_a_server_wants_one(place: Place) -> None:
    with place.serve() as server:
        assert place.call("agent").code == 0
        done = place.call("key", "create", "me", "--role", "viewer")
        assert done.code != 0
        assert "the first key must be an admin's" in done.err
        admin = place.call("key", "create", "boss", "--role", "admin").out.strip()
        secret = place.call(
            "key", "create", "me", "--role", "viewer", RETINUE_API_KEY=admin
        ).out.strip()
        done = place.call("agent")
        assert done.code == 1
        assert done.err.startswith("error E_UNAUTHENTICATED")
        assert "RETINUE_API_KEY" in done.err
        assert place.call("agent", RETINUE_API_KEY=secret).code == 0
        done = place.call("run", "echo", "text=x", RETINUE_API_KEY=secret)
        assert done.code == 1
        assert done.err.startswith("error E_FORBIDDEN")
        place.write(".env", f"RETINUE_API_KEY={secret}\n")
        assert place.call("agent").code == 0
    assert secret not in server.log
    # Whoever has the file is its admin again once no server has it open.
    assert place.call("key").code == 0


# -- the rest --------------------------------------------------------------------------------------


def test_settings_are_shown_and_described(place: Place) -> None:
    place.write("retinue.yaml", "port: 1234\ndatabase_url: postgresql://me:hidden@host/x\n")
    shown = place.call("settings", "--json").json
    assert shown["port"] == 1234
    assert "hidden" not in json.dumps(shown)
    assert "1234" in place.call("settings").out
    schema = place.call("settings", "schema").json
    assert schema["properties"]["port"]["description"]
    done = place.call("settings", "--config", "other.yaml")
    assert (done.code, "other.yaml" in done.err) == (2, True)


def test_the_version_is_said(place: Place) -> None:
    assert place.call("version").out.startswith("retinue ")
    assert "version" in place.call("version", "--json").json


def test_an_agent_is_shown_with_its_parameters(past: Place) -> None:
    done = past.call("agent", "show", "agent_summary_001")
    assert "summarize_text" in done.out
    assert "text (string, needed): what to summarise" in done.out
    assert "sentences (integer, default 3): how many sentences to keep" in done.out
    assert past.call("agent", "show", "nobody").code == 2


def test_output_that_nobody_reads_is_no_error(past: Place) -> None:
    process = past.start("execution", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=SECONDS)
    assert "Traceback" not in err


def test_unknown_words_are_status_2(past: Place) -> None:
    for words in (["nothing"], ["agent", "nothing"], ["run"], ["execution", "--odd"]):
        assert past.call(*words).code == 2


def test_a_store_that_is_none_is_one_line(place: Place) -> None:
    (place.directory / ".retinue").mkdir()
    (place.directory / ".retinue" / "retinue.db").write_bytes(b"not a database" * 1000)
    for words in (["run", "echo", "text=x"], ["execution"], ["ledger", "verify"]):
        done = place.call(*words)
        assert done.code == 1
        assert len(done.err.splitlines()) <= 2
        assert "retinue.db" in done.err


def test_it_is_a_module_too(place: Place) -> None:
    done = subprocess.run(
        ["python", "-m", "retinue", "version"],
        cwd=place.directory,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout.startswith("retinue ")

"""The example fleet does real work, within its bounds, with no key and no network."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue import Orchestrator, Runtime, Settings
from retinue.domain.event import EventType
from retinue.domain.execution import Task
from retinue.domain.strictjson import loads
from retinue.errors import InvalidInput
from retinue.examples import SurveyAgent, summary, survey
from retinue.examples.languages import language
from retinue.examples.review import findings
from retinue.interfaces import ContractFilter, Page

mark = pytest.mark


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A small repository."""
    root = tmp_path / "work"
    (root / "src").mkdir(parents=True)
    (root / "src" / "main.py").write_text("import os\n\n# TODO: name it\nprint('TODO')\n")
    (root / "src" / "tool").write_text("#!/usr/bin/env bash\necho hi\n# FIXME(me): later")
    (root / "notes.md").write_text("# Notes\n\nTODO, FIXME and the like\n")
    for skipped in (".git", "node_modules", "env"):
        (root / skipped).mkdir()
        (root / skipped / "inside.py").write_text("x = 1\n")
    (root / "env" / "pyvenv.cfg").write_text("")
    (root / "picture.png").write_bytes(b"\x89PNG\0\0")
    return root


@pytest.fixture
async def fleet(files: Path) -> AsyncIterator[Orchestrator]:
    """The fleet, at work in memory."""
    options = Settings(database_url="sqlite://", survey_root=files, entry_points=False)
    async with Runtime(options) as orchestrator:
        yield orchestrator


async def ask(fleet: Orchestrator, capability: str, **parameters: Any) -> dict[str, Any]:
    return await fleet.orchestrate("s", {"capability": capability, "parameters": parameters})


async def events_of(fleet: Orchestrator, execution_id: str) -> list[tuple[EventType, Any]]:
    return [
        (event.type, loads(event.data))
        async for events in fleet.follow(execution_id)
        for event in events
    ]


@mark.requirement("003.example-agent")
async def test_the_example_agent_echoes_and_capitalises(fleet: Orchestrator) -> None:
    agent = await fleet.agent("agent_example_001")
    assert agent.name == "Example Agent"
    assert [(c["name"], c["description"]) for c in agent.capabilities] == [
        ("echo", "Echo text back"),
        ("uppercase", "Convert to uppercase"),
    ]
    answer = await ask(fleet, "echo", text="Hello, world!")
    assert answer["data"] == {"message": "Echo: Hello, world!"}
    assert answer["agent_id"] == "agent_example_001"
    assert (await ask(fleet, "uppercase", text="straße"))["data"] == {"result": "STRASSE"}


async def test_the_survey_counts_what_is_there(fleet: Orchestrator) -> None:
    found = (await ask(fleet, "survey_repository"))["data"]
    assert (found["files"], found["lines"]) == (3, 10)
    assert found["languages"] == [
        {"language": "Python", "files": 1, "lines": 4, "share": 40.0},
        {"language": "Markdown", "files": 1, "lines": 3, "share": 30.0},
        {"language": "Shell", "files": 1, "lines": 3, "share": 30.0},
    ]
    assert found["todos"] == {
        "total": 2,
        "items": [
            {"file": "src/main.py", "line": 3, "text": "TODO: name it"},
            {"file": "src/tool", "line": 3, "text": "FIXME(me): later"},
        ],
    }
    assert found["largest"][0]["file"] == "src/tool"
    assert found["skipped"] == {"directories": 3, "binary": 1, "unreadable": 0, "links": 0}
    assert found["complete"] is True


async def test_the_survey_can_be_of_a_part(fleet: Orchestrator, files: Path) -> None:
    assert (await ask(fleet, "survey_repository", path="src"))["data"]["files"] == 2
    assert (await ask(fleet, "survey_repository", path="notes.md"))["data"]["files"] == 1
    assert (await ask(fleet, "survey_repository", path=str(files / "src")))["success"]


@mark.parametrize("path", ["..", "../../etc", "/etc", "link", "link/passwd", "src/../..", "no"])
async def test_the_survey_stays_below_its_root(fleet: Orchestrator, files: Path, path: str) -> None:
    (files / "link").symlink_to("/etc")
    answer = await ask(fleet, "survey_repository", path=path)
    assert answer["success"] is False
    assert answer["error_info"]["code"] == "E_INVALID_INPUT"
    assert path in answer["error"]


async def test_wrong_paths_do_not_make_the_agent_fail(fleet: Orchestrator) -> None:
    for _ in range(6):
        await ask(fleet, "survey_repository", path="..")
    assert (await fleet.agent("agent_survey_001")).status == "available"


async def test_the_survey_bears_whatever_lies_there(fleet: Orchestrator, files: Path) -> None:
    odd = files / "odd"
    odd.mkdir()
    (odd / "latin.txt").write_bytes("# TODO: caf\xe9\n".encode("latin-1"))
    (odd / "wide.txt").write_bytes("# TODO: wide\n".encode("utf-16"))
    (odd / "nul.txt").write_bytes(b"x" * 9000 + b"\n# TODO: a\0b\n")
    (odd / "empty").write_bytes(b"")
    (odd / "long.txt").write_bytes(b"y" * (5 << 20))
    (odd / os.fsdecode(b"bad\xff.txt")).write_text("x\n")
    os.mkfifo(odd / "pipe")
    (odd / "loop").symlink_to(odd)
    found = (await ask(fleet, "survey_repository", path="odd"))["data"]
    assert found["files"] == 6
    assert found["skipped"]["unreadable"] == 1
    assert found["skipped"]["links"] == 1
    assert sorted(note["text"] for note in found["todos"]["items"]) == [
        "TODO: ab",
        "TODO: caf\ufffd",
        "TODO: wide",
    ]
    assert "bad\ufffd.txt" in [file["file"] for file in found["largest"]]
    assert found["largest"][0] == {"file": "long.txt", "bytes": 5 << 20, "lines": 1}


async def test_the_survey_is_bounded(
    fleet: Orchestrator, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MOST_FILES", 1)
    found = (await ask(fleet, "survey_repository"))["data"]
    assert (found["complete"], found["note"]) == (False, "it stopped after 1 files")
    monkeypatch.setattr(survey, "MOST_SECONDS", -1.0)
    found = (await ask(fleet, "survey_repository"))["data"]
    assert found["complete"] is False
    assert found["files"] == 0


async def test_the_survey_says_how_far_it_is(fleet: Orchestrator) -> None:
    answer = await ask(fleet, "survey_repository")
    events = await events_of(fleet, answer["execution_id"])
    messages = [data["message"] for kind, data in events if kind is EventType.PROGRESS]
    assert messages == ["reading the directory", "3 files, 10 lines: done"]


async def test_the_summary_keeps_the_telling_sentences_and_streams_them(
    fleet: Orchestrator,
) -> None:
    text = (
        "Ledgers keep every contract. A cat sat there. The ledger of contracts is a chain.\n"
        "Contracts in a chain cannot change. It rained."
    )
    answer = await ask(fleet, "summarize_text", text=text, sentences=2)
    assert answer["data"]["of"] == 5
    assert answer["data"]["sentences"] == 2
    assert "rained" not in answer["data"]["summary"]
    assert "cat" not in answer["data"]["summary"]
    chunks = [
        data["content"]
        for kind, data in await events_of(fleet, answer["execution_id"])
        if kind is EventType.CONTENT_CHUNK
    ]
    assert "".join(chunks) == answer["data"]["summary"]


async def test_a_summary_of_nothing_is_empty(fleet: Orchestrator) -> None:
    assert (await ask(fleet, "summarize_text", text=" …\n"))["data"]["summary"] == ""
    with pytest.raises(InvalidInput, match="pause_ms"):
        await ask(fleet, "summarize_text", text="x", pause_ms=-1)


async def test_splitting_takes_linear_time() -> None:
    assert len(summary.split("a" * 400_000)) == 1
    assert summary.split("One. Two! Three?\nFour") == ["One.", "Two!", "Three?", "Four"]
    assert summary.split("Version 1.2 is out.") == ["Version 1.2 is out."]


async def test_the_review_calls_the_survey(fleet: Orchestrator) -> None:
    answer = await ask(fleet, "review_repository", path=".")
    assert "3 text files with 10 lines" in answer["data"]["review"]
    assert "src/main.py:3: TODO: name it" in answer["data"]["review"]
    listing = await fleet.contracts(ContractFilter(session_id="s"), Page())
    assert [(c.contract.from_agent, c.contract.to_agent) for c in listing.items] == [
        ("orchestrator", "agent_review_001"),
        ("agent_review_001", "agent_survey_001"),
        ("agent_survey_001", "agent_review_001"),
        ("agent_review_001", "orchestrator"),
    ]


async def test_the_review_of_a_bad_path_says_why(fleet: Orchestrator) -> None:
    answer = await ask(fleet, "review_repository", path="..")
    assert answer["success"] is False
    assert "outside" in answer["error"]


def test_the_review_names_long_files_and_gaps() -> None:
    found = {
        "path": "x",
        "files": 0,
        "lines": 0,
        "bytes": 0,
        "languages": [],
        "largest": [{"file": "a.py", "lines": 2_000, "bytes": 1}],
        "todos": {"total": 0, "items": []},
        "skipped": {"unreadable": 2},
        "complete": False,
        "note": "it stopped",
    }
    text = "\n".join(findings(found))
    assert "a.py has 2000 lines" in text
    assert "2 files could not be read" in text
    assert "not complete: it stopped" in text


@mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a.PY", b"", "Python"),
        ("Makefile", b"", "Makefile"),
        ("x", b"#!/usr/bin/python3.11\n", "Python"),
        ("x", b"#! /usr/bin/env -S node --x\n", "JavaScript"),
        ("x", b"#!/bin/sh\n", "Shell"),
        ("x", b"plain", "Other"),
        ("x.unknown", b"", "Other"),
    ],
)
def test_languages_by_name_or_first_line(name: str, head: bytes, expected: str) -> None:
    assert language(name, head) == expected


async def test_tasks_left_by_a_crash_run_again() -> None:
    assert SurveyAgent(Path()).options.delivery == "idempotent"
    task = Task(session_id="s", capability="echo", parameters={"text": "x"})
    async with Runtime(Settings(database_url="sqlite://", entry_points=False)) as orchestrator:
        assert (await orchestrator.perform(task)).success

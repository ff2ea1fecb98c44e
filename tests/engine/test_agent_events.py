"""The lines of specification 001 become our events."""

import json
from pathlib import Path

import pytest

from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.settings import CommandReference

LINES = [
    {"type": "lifecycle", "event": "started"},
    {"type": "status_update", "status": "running", "message": "at it"},
    {"type": "thought_update", "content": "hm"},
    {
        "type": "progress_update",
        "percentage": 50,
        "current_step": 1,
        "total_steps": 2,
        "message": "half",
        "details": {"a": 1},
    },
    {"type": "heartbeat"},
    {"type": "error", "message": "a hitch", "recoverable": True},
    {"type": "output", "content": "text"},
    {"type": "result", "result": "done"},
]


@pytest.mark.requirement("001.agent-events")
async def test_the_lines_of_the_specification_become_events(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    agent = CommandReference(
        driver="command",
        agent_id="it",
        command=("cat", str(tmp_path / "lines")),
        output="json-lines",
    )
    settings = Settings(data_dir=tmp_path, examples=False, entry_points=False, agents=(agent,))
    system = Runtime(settings)
    async with system as orchestrator:
        task = Task(session_id="s", agent_id="it", parameters={"prompt": ""})
        reply = await orchestrator.perform(task)
        assert json.loads(reply.data or b"") == "done"
        stored = await system.store.events(reply.execution_id)
    events = [(str(e.type), json.loads(e.data)) for e in stored if e.type != "attempt_started"]
    assert [kind for kind, _ in events] == [
        *("log", "progress", "thinking", "progress", "log", "log", "content_chunk", "completed"),
    ]
    assert events[1][1] == {"status": "running", "message": "at it"}
    assert events[3][1] == {
        "percentage": 50,
        "current_step": 1,
        "total_steps": 2,
        "message": "half",
        "details": {"a": 1},
    }
    levels = [data["level"] for kind, data in events if kind == "log"]
    assert levels == ["info", "debug", "warning"]
    assert [data["message"] for kind, data in events if kind == "log"][2] == "a hitch"

"""``POST /bench/echo``: the hot route without engine and store, to measure what the door costs."""

from __future__ import annotations

from retinue.domain.execution import State
from retinue.domain.strictjson import dumps
from retinue.orchestrator import Reply
from retinue.server.orchestrate import TaskBody, reply_bytes, task_of
from retinue.server.routing import Call

_ID = "0" * 26


async def echo(call: Call) -> bytes:
    """Answer a task with its own parameters; nothing is stored."""
    task, _ = await task_of(call, TaskBody)
    return reply_bytes(Reply(_ID, _ID, "echo", State.COMPLETED, dumps(task.parameters)))

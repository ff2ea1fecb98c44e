"""What a worker's agent has others do: a request of the worker's own, within one of ours."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.domain.execution import Task
from retinue.domain.principal import Authority
from retinue.domain.strictjson import dumps
from retinue.drivers.stdio.pipe import Pipe
from retinue.errors import RetinueError, UnknownOperation
from retinue.interfaces import DriverContext, Job
from retinue.wire import envelope
from retinue.wire.envelope import Request
from retinue.wire.faults import fault_of, payload_as
from retinue.wire.payloads import RESULT_NODE, Chunk, Invoke

PIECE = 64 * 1024


async def perform_call(
    pipe: Pipe, lent: DriverContext, from_agent: str, job: Job, frame: Request
) -> None:
    """Perform a worker's request on behalf of ``job``, and answer it."""
    try:
        if frame.payload.get("operation") != "agent.invoke":
            raise UnknownOperation(f"there is no operation {frame.payload.get('operation')!r}")
        result = await _call(lent, from_agent, job, payload_as(frame.payload, Invoke))
    except RetinueError as error:
        pipe.send(envelope.error(frame.message_id, fault_of(error)))
        return
    _answer(pipe, frame.message_id, result)


async def _call(lent: DriverContext, from_agent: str, job: Job, asked: Invoke) -> Any:
    execution = job.execution
    options = asked.options
    timeout = options.timeout_ms if options is not None else None
    given = asked.input
    task = Task(
        session_id=execution.session_id,
        capability=options.capability if options is not None else None,
        agent_id=asked.agent_name or None,
        parameters=given if given is not msgspec.UNSET else {},
        context=asked.context,
        intent=asked.intent,
        deadline_us=int(timeout * 1000) if timeout is not None else None,
    )
    authority = Authority(
        owner=execution.owner,
        created_by=execution.created_by,
        from_agent=execution.agent_id or from_agent,
        parent_id=execution.id,
        depth=execution.depth + 1,
    )
    return await lent.submit(task, authority)


def _answer(pipe: Pipe, to: str, result: Any) -> None:
    """Send a result; one that is longer than a line goes as the chunks of a node of its own."""
    payload: dict[str, Any] = {"status": "success", "result": result, "metadata": {}}
    answer = envelope.response(to, payload)
    if not pipe.fits(answer):
        text = dumps(result).decode()
        for at in range(0, len(text), PIECE):
            last = at + PIECE >= len(text)
            piece = Chunk(node_name=RESULT_NODE, chunk=text[at : at + PIECE], is_complete=last)
            pipe.send(envelope.stream(to, piece))
        payload = {**payload, "result": None, "result_node": RESULT_NODE}
        answer = envelope.response(to, payload)
    pipe.send(answer)

"""The last event as readers get it: the ledger keeps a result once, in the RESPONSE's body."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.domain.event import Event, EventType
from retinue.domain.execution import State
from retinue.domain.retention import GONE_ERASED
from retinue.domain.strictjson import dumps, loads
from retinue.interfaces import Store


async def complete(store: Store, event: Event) -> Event:
    """Return an execution's last event with what its row and its contracts say; others as is.

    ``completed`` gets the result (null and ``erased`` once that is erased). ``truncated`` gets the
    state, and the result or the failure if they are still there.
    """
    if event.type not in {EventType.COMPLETED, EventType.TRUNCATED}:
        return event
    execution = await store.execution(event.execution_id, None)
    if execution is None:
        return event
    _, body = await store.bodies(execution)
    said = loads(body) if body is not None else None
    data: dict[str, Any] = {}
    if event.type is EventType.COMPLETED:
        if body is None:
            data = {"final_response": None, "result": None, "erased": True}
        else:
            text = said if isinstance(said, str) else body.decode()
            data = {"final_response": text, "result": said}
    else:
        data["state"] = execution.state.value
        if body is not None:
            data["result" if execution.state is State.COMPLETED else "failure"] = said
        elif any(m.kind == GONE_ERASED for m in await store.marks_of([execution.id])):
            data["erased"] = True
    return msgspec.structs.replace(event, data=dumps({**data, **loads(event.data)}))

"""Seals: what a contract's digest says of the execution it belongs to.

A RESPONSE seals its execution as it ended: every column of the row, the digest of its events
among them. A REQUEST seals what never changes from acceptance on. So no column of an ended
execution can be changed without the chain of its session saying so, and the events may go while
the seal still holds. A column that a later version added counts only where it holds more than its
default: what was sealed before stays sealed.
"""

from __future__ import annotations

import hashlib
from operator import attrgetter

import msgspec

from retinue.domain.event import SECOND_KIND
from retinue.domain.execution import Execution

_given = attrgetter("created_by", "delivery", "max_attempts", "parent_id", "depth")
_encode = msgspec.json.Encoder().encode


def seal(execution: Execution) -> bytes:
    """Return the digest of a RESPONSE: its execution, as it ended.

    Its place in the chain is not known yet when the seal is made; the contract itself says it.
    """
    place, execution.response_n = execution.response_n, None
    said = _encode(execution)
    execution.response_n = place
    return SECOND_KIND + hashlib.sha256(b"response|" + said).digest()


def seal_request(execution: Execution) -> bytes:
    """Return the digest of a REQUEST: what never changes of its execution."""
    return SECOND_KIND + hashlib.sha256(b"request|" + _encode(_given(execution))).digest()

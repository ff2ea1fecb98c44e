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
from typing import Any

import msgspec

from retinue.domain.event import SECOND_KIND
from retinue.domain.execution import Execution

_SET_LATER = frozenset({"response_n"})
"""What is not known yet when the seal is made; the contract's own place says it."""

_optional: dict[str, Any] = dict(
    zip(
        reversed(Execution.__struct_fields__),
        reversed(Execution.__struct_defaults__),
        strict=False,
    )
)
assert msgspec.NODEFAULT not in _optional.values(), "an execution's optional columns come last"
_needed = tuple(
    name for name in Execution.__struct_fields__ if name not in _optional and name not in _SET_LATER
)
_values = attrgetter(*_needed)
_given = attrgetter("created_by", "delivery", "max_attempts", "parent_id", "depth")
_encode = msgspec.json.Encoder().encode


def seal(execution: Execution) -> bytes:
    """Return the digest of a RESPONSE: its execution, as it ended."""
    more = {
        name: value
        for name, usual in _optional.items()
        if (value := getattr(execution, name)) != usual
    }
    said = _encode((_values(execution), dict(sorted(more.items()))))
    return SECOND_KIND + hashlib.sha256(b"response|" + said).digest()


def seal_request(execution: Execution) -> bytes:
    """Return the digest of a REQUEST: what never changes of its execution."""
    return SECOND_KIND + hashlib.sha256(b"request|" + _encode(_given(execution))).digest()

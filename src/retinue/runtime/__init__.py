"""The composition root: settings become a started system. Only it names implementations."""

from retinue.drivers.coding.look import Look
from retinue.runtime.agents import (
    CODING_KINDS,
    check_capacity,
    command_agent,
    load_agent,
    look_at,
    remote_agent,
)
from retinue.runtime.exposure import exposed
from retinue.runtime.stores import holders_of, is_shared, open_store, store_file
from retinue.runtime.system import Runtime

__all__ = [
    "CODING_KINDS",
    "Look",
    "Runtime",
    "check_capacity",
    "command_agent",
    "exposed",
    "holders_of",
    "is_shared",
    "load_agent",
    "look_at",
    "open_store",
    "remote_agent",
    "store_file",
]

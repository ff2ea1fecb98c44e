"""Settings: one frozen object, read once.

``retinue.yaml`` is what a person writes; the environment wins over it, and the options of a
command over both. ``.env`` stands for environment that is not set.
"""

from retinue.settings.coding import CodingReference
from retinue.settings.commands import CommandReference, SandboxReference, environment
from retinue.settings.model import (
    AgentReference,
    Caller,
    HttpReference,
    Settings,
    schema,
    without_password,
)
from retinue.settings.sources import caller, find_config, here, load, looked_at
from retinue.settings.workers import WorkerReference

__all__ = [
    "AgentReference",
    "Caller",
    "CodingReference",
    "CommandReference",
    "HttpReference",
    "SandboxReference",
    "Settings",
    "WorkerReference",
    "caller",
    "environment",
    "find_config",
    "here",
    "load",
    "looked_at",
    "schema",
    "without_password",
]

"""Retinue runs AI agents of every kind behind one door, and keeps a record that can be checked.

The public names; each is imported when it is first used, so that ``import retinue`` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinue.agent import Agent, AgentCapability, Context, Options, capability, current
    from retinue.errors import RetinueError
    from retinue.orchestrator import Orchestrator
    from retinue.runtime import Runtime
    from retinue.settings import Settings

__version__ = "0.1.0"

_HOME = {
    "Agent": "retinue.agent",
    "AgentCapability": "retinue.agent",
    "Context": "retinue.agent",
    "Options": "retinue.agent",
    "Orchestrator": "retinue.orchestrator",
    "RetinueError": "retinue.errors",
    "Runtime": "retinue.runtime",
    "Settings": "retinue.settings",
    "capability": "retinue.agent",
    "current": "retinue.agent",
}

__all__ = [
    "Agent",
    "AgentCapability",
    "Context",
    "Options",
    "Orchestrator",
    "RetinueError",
    "Runtime",
    "Settings",
    "capability",
    "current",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'retinue' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

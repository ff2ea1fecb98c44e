"""Agent processes: how they are started, read, written to and stopped.

The names below are specification 001's, for programs that run agents themselves; each is imported
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinue.errors import (
        CommunicationError,
        ExecutionError,
        InvalidContext,
        IoError,
        NotFound,
        ProviderError,
        SpawnFailed,
        Timeout,
    )
    from retinue.errors import RetinueError as AgentError
    from retinue.process.catalogue import CODING_CLIS
    from retinue.process.child import Exit
    from retinue.process.config import (
        AgentConfig,
        AgentInfo,
        AgentMetrics,
        AgentSignal,
        AgentStatus,
        Backend,
        ProcessRunnerConfig,
        ResourceLimits,
    )
    from retinue.process.handle import AgentHandle, GracefulShutdown, OutputLine
    from retinue.process.pool import AgentPool, first_line
    from retinue.process.reading import Bounds
    from retinue.process.runner import LocalProcessRunner
    from retinue.process.sandbox import Sandbox

_HOME = {
    "CODING_CLIS": "catalogue",
    "AgentConfig": "config",
    "AgentHandle": "handle",
    "AgentInfo": "config",
    "AgentMetrics": "config",
    "AgentPool": "pool",
    "AgentSignal": "config",
    "AgentStatus": "config",
    "Backend": "config",
    "Bounds": "reading",
    "Exit": "child",
    "GracefulShutdown": "handle",
    "LocalProcessRunner": "runner",
    "OutputLine": "handle",
    "ProcessRunnerConfig": "config",
    "ResourceLimits": "config",
    "Sandbox": "sandbox",
    "first_line": "pool",
}
_ERRORS = {
    "AgentError": "RetinueError",
    "CommunicationError": "CommunicationError",
    "ExecutionError": "ExecutionError",
    "InvalidContext": "InvalidContext",
    "IoError": "IoError",
    "NotFound": "NotFound",
    "ProviderError": "ProviderError",
    "SpawnFailed": "SpawnFailed",
    "Timeout": "Timeout",
}

__all__ = [
    "CODING_CLIS",
    "AgentConfig",
    "AgentError",
    "AgentHandle",
    "AgentInfo",
    "AgentMetrics",
    "AgentPool",
    "AgentSignal",
    "AgentStatus",
    "Backend",
    "Bounds",
    "CommunicationError",
    "ExecutionError",
    "Exit",
    "GracefulShutdown",
    "InvalidContext",
    "IoError",
    "LocalProcessRunner",
    "NotFound",
    "OutputLine",
    "ProcessRunnerConfig",
    "ProviderError",
    "ResourceLimits",
    "Sandbox",
    "SpawnFailed",
    "Timeout",
    "first_line",
]


def __getattr__(name: str) -> Any:
    if name in _ERRORS:
        return getattr(importlib.import_module("retinue.errors"), _ERRORS[name])
    if name not in _HOME:
        raise AttributeError(f"module 'retinue.process' has no attribute {name!r}")
    return getattr(importlib.import_module(f"retinue.process.{_HOME[name]}"), name)

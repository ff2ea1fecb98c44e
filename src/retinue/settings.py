"""Settings: one frozen object, read once.

``retinue.yaml`` is what a person writes; the environment wins over it, and ``.env`` stands for
environment that is not set. The environment is read here and nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class AgentReference(BaseModel):
    """An agent to register: ``module:Class`` and the arguments it is made with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(8888, ge=0, le=65535)
    data_dir: Path = Path(".retinue")
    database_url: str | None = None
    lease_seconds: float = Field(15.0, gt=0)
    examples: bool = True
    survey_root: Path = Path()
    agents: tuple[AgentReference, ...] = ()
    entry_points: bool = True
    queue_bound: int = Field(10_000, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1024)
    max_result_bytes: int = Field(16 << 20, ge=1024)
    grace_seconds: float = Field(20.0, ge=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    trace_url: str = "http://localhost:8787"
    memagent_url: str = "http://localhost:8799"

"""Coding CLIs as agents: Claude Code, Codex, Gemini, OpenCode, and whatever speaks ACP."""

from retinue.drivers.coding.acp import AcpDriver
from retinue.drivers.coding.claude import ClaudeDriver
from retinue.drivers.coding.codex import CodexDriver
from retinue.drivers.coding.config import CodingConfig

__all__ = ["AcpDriver", "ClaudeDriver", "CodexDriver", "CodingConfig"]

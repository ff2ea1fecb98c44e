"""Specification 003's example agent: echo and uppercase."""

from __future__ import annotations

from typing import Any

from retinue.agent import Agent, AgentCapability


class ExampleAgent(Agent):
    """The smallest useful agent: one class, two capabilities."""

    def __init__(self) -> None:
        super().__init__(
            agent_id="agent_example_001",
            name="Example Agent",
            description="Echoes text and writes it in capitals",
        )

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Echo the text, or write it in capitals."""
        text = task["parameters"]["text"]
        match task["capability"]:
            case "echo":
                return {"success": True, "data": {"message": f"Echo: {text}"}}
            case "uppercase":
                return {"success": True, "data": {"result": text.upper()}}
            case other:
                return {"success": False, "error": f"Unknown capability: {other}"}

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``echo`` and ``uppercase``."""
        return [
            AgentCapability("echo", "Echo text back", {"text": "string"}),
            AgentCapability("uppercase", "Convert to uppercase", {"text": "string"}),
        ]

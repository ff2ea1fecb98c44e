"""A worker in Python: `retinue worker check -- python examples/workers/python_worker.py`.

The same agents run inside a server, too (`agents: [python_worker:echo]` in retinue.yaml).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from retinue import Agent, AgentCapability, Context, Options, capability
from retinue.sdk import serve


class Echo(Agent):
    """Answers with its input, whatever that is."""

    def __init__(self) -> None:
        super().__init__("echo", "Echo", "Answers with its input.")

    async def execute(self, task: dict[str, Any]) -> Any:
        """Answer with the input."""
        return task["parameters"]

    def get_capabilities(self) -> list[AgentCapability]:
        """Return the one thing it can do."""
        return [AgentCapability("echo", "Answer with the input.")]


@capability(options=Options(nodes=("draft", "final")))
async def tell(context: Context, words: int = 3) -> str:
    """Tell a story, in two parts: a draft, which is thrown away once, and the final text."""
    context.text("Nonce", node="draft")
    context.text("Once", node="draft", reset=True)
    for n in range(words):
        context.text(f" {n + 1}", node="final")
        await asyncio.sleep(0)
    return "".join(f" {n + 1}" for n in range(words))


@capability()
def slow(seconds: float = 1.0) -> str:
    """Take a while, without a thought for others: it blocks."""
    time.sleep(seconds)
    return f"slept {seconds:g} s"


@capability()
async def ask(context: Context, prompt: str = "May I?") -> Any:
    """Ask a person, and answer with the answer."""
    return {"answer": await context.ask(prompt)}


@capability()
async def fail(message: str = "this agent always fails") -> None:
    """Fail."""
    raise RuntimeError(message)


if __name__ == "__main__":
    serve(Echo(), tell, slow, ask, fail)

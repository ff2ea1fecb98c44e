"""The agents of the server under test. They leave a trace outside of its store.

Every attempt appends a line to the effect journal before it answers: the only witness of how often
work was really done, whatever the ledger says about it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from retinue.agent import Agent, AgentCapability, Options, current
from torture.journals import Effect, Lines

RETRY_MS = 20
NEVER = 1_000_000


class Recorder(Agent):
    """Does what its parameters say, and writes down that it did.

    ``marker`` names the task, ``delay_ms`` is how long it takes, with the effect in its middle;
    ``chunks`` pieces of text are streamed after it. The first ``failures`` attempts raise at their
    end, the first ``deaths`` attempts take the whole process with them.
    """

    def __init__(
        self,
        agent_id: str,
        journal: str,
        delivery: str = "at_most_once",
        max_attempts: int = 3,
        concurrency: int = 6,
    ) -> None:
        super().__init__(agent_id, agent_id, "Writes down what it does.")
        self.options = Options(
            concurrency=concurrency,
            delivery=delivery,
            max_attempts=max_attempts,
            retry_waits_ms=(RETRY_MS,),
            failure_threshold=NEVER,
        )
        self._effects = Lines(Path(journal))

    def get_capabilities(self) -> list[AgentCapability]:
        """Return the one capability, named as the agent."""
        return [AgentCapability(self.agent_id, self.description)]

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Take a while, have an effect, take another while, answer."""
        asked = task["parameters"]
        context = current()
        half = asked.get("delay_ms", 0) / 2000
        await asyncio.sleep(half)
        effect = Effect(
            execution_id=context.execution_id,
            attempt=context.attempt,
            capability=task["capability"],
            marker=asked["marker"],
            pid=os.getpid(),
        )
        self._effects.write(effect)
        chunks = asked.get("chunks", 0)
        for number in range(chunks):
            context.text(f"{asked['marker']} {number} ")
            await asyncio.sleep(half / chunks)
        if not chunks:
            await asyncio.sleep(half)
        if context.attempt <= asked.get("deaths", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if context.attempt <= asked.get("failures", 0):
            raise RuntimeError(f"attempt {context.attempt} of {asked['marker']} was told to fail")
        return {"marker": asked["marker"], "attempt": context.attempt}


class Delegate(Recorder):
    """Has its effect, then lets the agent ``once`` do the same again as a task of its own."""

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do it, then have it done."""
        done = await super().execute(task)
        child = {**task["parameters"], "marker": f"{done['marker']}/child"}
        await current().call("once", child)
        return done


class Asker(Recorder):
    """Has its effect, then asks a person, for ``wait_ms`` at most."""

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do it, then have it confirmed."""
        done = await super().execute(task)
        wait = task["parameters"]["wait_ms"] / 1000
        answer = await current().ask("Well done?", {"type": "string"}, timeout=wait)
        return {**done, "answer": answer}

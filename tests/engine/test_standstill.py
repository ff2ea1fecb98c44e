"""Code that blocks the loop is named in the log, while it does and when it has ended."""

import asyncio
import logging
import time
from collections.abc import Callable

import pytest

from retinue import Agent, AgentCapability, Orchestrator, capability
from retinue.domain.execution import Task
from retinue.engine.standstill import MOST_SECONDS

LOGGER = "retinue.engine.standstill"


async def said(log: pytest.LogCaptureFixture, words: str) -> logging.LogRecord:
    """Return the first such line, once there is one."""
    while True:
        for record in log.get_records("call"):
            if record.name == LOGGER and words in record.getMessage():
                return record
        await asyncio.sleep(0.01)


def sleep() -> None:
    time.sleep(MOST_SECONDS * 2)


def hold() -> None:
    """Keep every other thread from running, in compiled code, for seconds of its own work."""
    begun = time.process_time()
    sum(range(1_000_000))
    pace = (time.process_time() - begun) / 1_000_000
    sum(range(int(MOST_SECONDS * 2.5 / pace)))


@pytest.mark.parametrize("block", [sleep, hold])
async def test_an_agent_that_blocks_is_named(
    block: Callable[[], None], orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    @capability()
    async def frozen() -> str:
        block()
        return "done"

    orchestrator.register_agent(frozen)
    task = Task(session_id="s", capability="frozen", parameters={})
    accepted = await orchestrator.submit(task)
    record = await said(caplog, "agent frozen holds up everything")
    assert record.levelno == logging.WARNING
    assert record.__dict__["execution_id"] == accepted.execution_id
    assert f"in {block.__name__}" in record.getMessage()
    assert "it stood still for" in (await said(caplog, "the event loop goes on")).getMessage()


async def test_a_health_check_that_blocks_is_named(
    orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    class Frozen(Agent):
        def __init__(self) -> None:
            super().__init__("frozen_001", "Frozen")

        def get_capabilities(self) -> list[AgentCapability]:
            return [AgentCapability("freeze")]

        async def health(self) -> bool:
            sleep()
            return True

    orchestrator.register_agent(Frozen())
    record = await said(caplog, "agent frozen_001 holds up everything")
    assert "in sleep (time.sleep(" in record.getMessage()


async def test_what_else_blocks_is_named_by_its_line(
    orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.get_running_loop().call_soon(sleep)
    record = await said(caplog, "something holds up everything")
    assert "in sleep (time.sleep(" in record.getMessage()

"""One process of a worker, for programs that want no more than that (specification 000 §5).

::

    async with await WorkerProcess.spawn("python", "my_worker.py") as worker:
        assert await worker.healthy()

A system with a queue, a record and a pool of them is ``retinue.Runtime`` with a
``WorkerReference``. Here nothing is kept: when it has ended, no process, file or thread is left.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.domain.instance import InstanceRecord, InstanceState
from retinue.drivers.stdio import StdioDriver, WorkerConfig
from retinue.drivers.stdio.instance import StdioInstance
from retinue.errors import NotSupported, SpawnFailed
from retinue.interfaces import Birth, DriverContext, Process
from retinue.process.environment import inherited
from retinue.process.link import KeeperLink
from retinue.process.quarters import Ground
from retinue.settings import environment as given_environment

STOP_SECONDS = 5.0


class Healthy(msgspec.Struct, frozen=True):
    """Whether a process answers, and how long that took; true when it does."""

    healthy: bool
    latency_ms: float

    def __bool__(self) -> bool:
        return self.healthy


class WorkerProcess:
    """A worker's process. Only ``spawn`` makes one."""

    def __init__(
        self, instance: StdioInstance, link: KeeperLink, root: Path, agents: list[str]
    ) -> None:
        self.agents = agents
        self.pid = instance.child.pid
        self._instance = instance
        self._link = link
        self._root = root
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(
        cls,
        *command: str,
        environment: Mapping[str, str] | None = None,
        work_dir: Path | None = None,
        startup_timeout: float = 10.0,
    ) -> Self:
        """Start a worker; return once it is ready.

        It runs in ``work_dir``, by default where this process does, so paths among its arguments
        mean what they mean here. It sees PATH and the like, and what ``environment`` names, nothing
        else of this process's.

        Raises:
            SpawnFailed: it cannot be started, or is not ready in time; nothing of it is left.
        """
        root = Path(tempfile.mkdtemp(prefix="retinue-worker-"))
        link = KeeperLink()
        driver = StdioDriver(Ground(link, root, given_environment(inherited)))
        config = WorkerConfig(
            command=command,
            environment=dict(environment or {}),
            work_dir=str((work_dir or Path.cwd()).absolute()),
        )
        worker = AgentDefinition(agent_id="worker", name="worker", driver="stdio", config=config)
        try:
            async with asyncio.timeout(startup_timeout):
                instance = await driver.start(worker, DriverContext(_alone, 16 << 20, _NoBook()))
        except TimeoutError:
            await _leave(link, root)
            raise SpawnFailed(f"the worker was not ready within {startup_timeout:g} s") from None
        except BaseException:
            await _leave(link, root)
            raise
        return cls(instance, link, root, [offer.agent_id for offer in instance.offers])

    def alive(self) -> bool:
        """Say whether the process has not ended."""
        return self._instance.child.exit is None

    async def healthy(self, timeout: float = 5.0) -> Healthy:
        """Ask the process whether it is there; one that is busy answers, too."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                healthy = self.alive() and (await self._instance.ping()).healthy
        except TimeoutError:
            healthy = False
        return Healthy(healthy, round((time.monotonic() - begun) * 1000, 3))

    async def shutdown(self, timeout: float = STOP_SECONDS) -> None:
        """Have it finish what it does within ``timeout`` seconds and end; nothing of it is left."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(timeout))
        await asyncio.shield(self._closing)

    async def _close(self, timeout: float) -> None:
        await self._instance.stop(timeout)
        await self._instance.ended()
        await _leave(self._link, self._root)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.shutdown()


async def _leave(link: KeeperLink, root: Path) -> None:
    await link.close()
    await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)


async def _alone(*_: Any) -> Any:
    raise NotSupported("there are no other agents here")


class _NoBook:
    """Stands where a system has a record of its processes: here there is no store."""

    async def begin(self, birth: Birth, stop: Any = None) -> _Unrecorded:
        """Note nothing."""
        return _Unrecorded(birth)


class _Unrecorded:
    """A process that is on no record."""

    def __init__(self, birth: Birth) -> None:
        self.record = InstanceRecord(
            instance_id=birth.instance_id or ulid(),
            owner=birth.owner,
            agent_id=birth.agent_id,
            driver=birth.driver,
            node="",
            worker="",
            execution_id=None,
            attempt=None,
            state=InstanceState.STARTING,
            kept=0,
            handle=b"{}",
            created_at=0,
        )

    @property
    def id(self) -> str:
        """Its id."""
        return self.record.instance_id

    def started(self, process: Process, handle: dict[str, Any] | None = None) -> None:
        """Note nothing."""

    def busy(self, execution: Any) -> None:
        """Note nothing."""

    def idle(self, execution: Any) -> None:
        """Note nothing."""

    def draining(self, reason: str | None = None) -> None:
        """Note nothing."""

    def thinking(self, on: bool, /) -> None:
        """Note nothing."""

    def judged(self, reason: str | None, /) -> None:
        """Note nothing."""

    def failed(self, reason: str) -> None:
        """Note nothing."""

    def let_go(self) -> None:
        """Note nothing."""

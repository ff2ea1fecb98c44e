"""What an attempt sees of a pool: an instance that is always there, and its own time with one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from retinue.domain.event import EventData
from retinue.engine.pool import Member, Pool
from retinue.errors import AgentUnavailable, CommunicationError
from retinue.interfaces import Health, InstanceHandle, Job


class Door:
    """A pool, as an attempt sees it: an instance that is always there.

    ``end`` stops the pool, where it is this agent's alone.
    """

    def __init__(
        self, pool: Pool, agent_id: str, end: Callable[[float], Awaitable[None]] | None = None
    ) -> None:
        self.pool = pool
        self.handle = InstanceHandle(agent_id, pool.definition.agent_id)
        self._end = end

    def execute(self, job: Job, /) -> Turn:
        """Perform ``job`` on an instance of the pool."""
        return Turn(self.pool, job)

    async def answer(self, question_id: str, answer: Any, /) -> None:
        """Hand in an answer; the instance that asked knows the question."""
        for member in list(self.pool.members.values()):
            if member.instance is not None:
                await member.instance.answer(question_id, answer)

    async def ping(self) -> Health:
        """Say whether the pool can take work; its instances are asked by the supervisor."""
        return self.pool.health()

    async def stop(self, grace: float, /) -> None:
        """Stop the pool, unless other agents are behind it, too."""
        if self._end is not None:
            await self._end(grace)


class Turn:
    """One execution's time with an instance."""

    __slots__ = ("_begun", "_inner", "_job", "_pool", "lent", "member")

    def __init__(self, pool: Pool, job: Job) -> None:
        self._pool = pool
        self._job = job
        self.member: Member | None = None
        self.lent = False
        self._inner: AbstractAsyncContextManager[AsyncIterator[EventData]] | None = None
        self._begun = 0.0

    async def __aenter__(self) -> AsyncIterator[EventData]:
        pool, execution = self._pool, self._job.execution
        key = (execution.owner, execution.session_id) if pool.bound else None
        agent = execution.agent_id
        while True:
            member = self.member = pool.take(key, agent) if not pool.waiting else None
            if member is None:
                member = self.member = await pool.acquire(key, agent)
            self._begun = time.monotonic()
            pool.begun(execution.id, self)
            assert member.instance is not None
            try:
                self._inner = member.instance.execute(self._job)
                return await self._inner.__aenter__()
            except (CommunicationError, AgentUnavailable) as error:
                if error.outcome != "not_started":
                    self._over(failed=True)
                    raise
                # It ended a moment ago, or is about to: another one has this.
                member.broken = True
                self.member = None
                pool.ended(execution.id, self)
                pool.release(member)
            except BaseException:
                self._over(failed=True)
                raise

    async def __aexit__(self, kind: type[BaseException] | None, *rest: Any) -> bool | None:
        assert self._inner is not None
        try:
            return await self._inner.__aexit__(kind, *rest)
        finally:
            self._over(failed=kind is not None)

    def back(self) -> None:
        """Count it again among those that its instance works on."""
        if self.lent and self.member is not None:
            self.lent = False
            self.member.lent -= 1

    def _over(self, *, failed: bool) -> None:
        self._pool.ended(self._job.execution.id, self)
        self.back()
        member, self.member = self.member, None
        if member is not None:
            self._pool.count.add(time.monotonic() - self._begun, failed=failed)
            self._pool.release(member)

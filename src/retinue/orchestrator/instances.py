"""Instances: the processes that agents are, looked at, listened to, paused, ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from retinue.domain.execution import State
from retinue.domain.instance import InstanceRecord
from retinue.domain.principal import Principal, Role
from retinue.engine.instances import Live
from retinue.engine.rounds import Silence
from retinue.errors import Conflict, NotFound
from retinue.interfaces import InstanceFilter, Listing, Page
from retinue.orchestrator.base import LOCAL_ADMIN, Desk
from retinue.orchestrator.instance_views import InstanceView, view_of
from retinue.process.log import LogFollower

TAIL_BYTES = 64 * 1024
LOOK_SECONDS = 0.1
STOP_SECONDS = 5.0
_MOST_LEFT = 1_000
_STREAMS = ("stdout", "stderr")


class LogTail(NamedTuple):
    """The end of a stream, how many bytes before it are kept, and how many before those not."""

    text: str = ""
    skipped: int = 0
    dropped: int = 0


class Instances(Desk):
    """The processes that are supervised."""

    async def instances(
        self, where: InstanceFilter, page: Page, principal: Principal = LOCAL_ADMIN
    ) -> Listing[InstanceView]:
        """List the caller's instances, newest first; those that run with what they use now."""
        scoped = msgspec.structs.replace(where, owner=principal.owner)
        found = await self._store.instances(scoped, page)
        items = await asyncio.gather(*map(self._instance_view, found.items))
        return Listing(items, found.total, found.next_cursor)

    async def instance(self, instance_id: str, principal: Principal = LOCAL_ADMIN) -> InstanceView:
        """Return one instance.

        Raises:
            NotFound: there is none of this owner.
        """
        return await self._instance_view(await self._instance(instance_id, principal))

    async def pause_instance(
        self, instance_id: str, principal: Principal = LOCAL_ADMIN
    ) -> InstanceView:
        """Stop an instance's whole tree where it is; harmless when it stands already.

        Raises:
            NotFound, Forbidden; Conflict: it has ended, or another server supervises it.
        """
        live = await self._control(instance_id, "instance.pause", principal)
        if await live.pause():
            questions = self._engine.attempts.questions
            # As for a question: what stands still is not to run out of time.
            live.halted += map(questions.stand_still, self._engine.rounds.attempts(live))
        return await self._instance_view(live.record)

    async def resume_instance(
        self, instance_id: str, principal: Principal = LOCAL_ADMIN
    ) -> InstanceView:
        """Let a paused instance go on.

        Raises:
            NotFound, Forbidden; Conflict: it has ended, or another server supervises it.
        """
        live = await self._control(instance_id, "instance.resume", principal)
        await live.resume()
        return await self._instance_view(live.record)

    async def signal_instance(
        self,
        instance_id: str,
        number: int,
        *,
        tree: bool = False,
        principal: Principal = LOCAL_ADMIN,
    ) -> int:
        """Signal an instance, or its whole tree; return how many processes got it.

        One that has ended gets none, and that is no error.

        Raises:
            NotFound, Forbidden; Conflict: another server supervises it.
        """
        record = await self._instance(instance_id, principal)
        action = "instance.signal"
        await self.require(principal, Role.OPERATOR, action, instance_id)
        if record.ended:
            return 0
        live = self._here(record)
        await self._audit(principal, action, instance_id, signal.Signals(number).name)
        if live.process is None:
            return 0
        return await live.process.signal(number, tree=tree)

    async def stop_instance(
        self, instance_id: str, principal: Principal = LOCAL_ADMIN
    ) -> InstanceView:
        """Stop an instance, step by step; what it works on is cancelled.

        Raises:
            NotFound, Forbidden; Conflict: another server supervises it.
        """
        record = await self._instance(instance_id, principal)
        await self.require(principal, Role.OPERATOR, "instance.stop", instance_id)
        if not record.ended:
            live = self._here(record)
            await self._audit(principal, "instance.stop", instance_id)
            live.why = f"stopped by {principal.name}"
            execution_id = live.record.execution_id
            if live.stop is not None:
                await live.stop(STOP_SECONDS)
            elif execution_id is not None:
                await self._engine.cancel(execution_id, principal.owner, principal.name)
            await live.settled()
            record = live.record
        return await self._instance_view(record)

    async def tell_instance(
        self,
        instance_id: str,
        data: bytes,
        *,
        last: bool = False,
        principal: Principal = LOCAL_ADMIN,
    ) -> None:
        """Write to an instance's stdin; ``last``: and close it.

        Raises:
            NotFound, Forbidden; Conflict: it has none that is open, it has ended, or another
                server supervises it.
            CommunicationError: it does not read any more.
        """
        live = await self._control(instance_id, "instance.stdin", principal)
        if live.process is None or not live.hears:
            raise Conflict(f"instance {instance_id} has no stdin that is open")
        await live.process.say(data, last=last)

    # -- what it wrote -------------------------------------------------------------------------

    async def log_of(
        self, instance_id: str, tail: int | None = None, principal: Principal = LOCAL_ADMIN
    ) -> dict[str, str]:
        """Return what is kept of an instance's output, by stream: its last ``tail`` bytes.

        Raises:
            NotFound: there is no such instance of this owner.
        """
        tails = await self.log_tails(instance_id, tail, principal)
        return {stream: found.text for stream, found in tails.items()}

    async def log_tails(
        self, instance_id: str, tail: int | None = None, principal: Principal = LOCAL_ADMIN
    ) -> dict[str, LogTail]:
        """Return what ``log_of`` does, and how much came before it.

        Raises:
            NotFound: there is no such instance of this owner.
        """
        record = await self._instance(instance_id, principal)
        return await asyncio.to_thread(_read_once, record, tail)

    async def follow_log(
        self,
        instance_id: str,
        tail: int | None = None,
        *,
        heartbeat: float = 15.0,
        principal: Principal = LOCAL_ADMIN,
    ) -> AsyncGenerator[list[tuple[str, bytes]], None]:
        """Yield what an instance writes, by stream, from its last ``tail`` bytes to its end.

        Nothing comes as an empty list every ``heartbeat`` seconds.

        Raises:
            NotFound: there is no such instance of this owner.
        """
        followers = _followers(await self._instance(instance_id, principal), tail)
        silent = 0.0
        try:
            while True:
                live = self._engine.instances.here(instance_id)
                over = live is None or live.record.ended
                read = await asyncio.to_thread(_read_all, followers)
                if found := [(stream, data) for stream, data in read if data]:
                    silent = 0.0
                    yield found
                    continue
                if over or self._engine.intake.closed:
                    return
                await asyncio.sleep(LOOK_SECONDS)
                silent += LOOK_SECONDS
                if silent >= heartbeat:
                    silent = 0.0
                    yield []
        finally:
            for _, follower in followers:
                follower.close()

    # -- finding -------------------------------------------------------------------------------

    async def _instance(self, instance_id: str, principal: Principal) -> InstanceRecord:
        live = self._engine.instances.here(instance_id)
        if live is not None and live.record.owner == principal.owner:
            return live.record
        record = await self._store.instance(instance_id, principal.owner)
        if record is None:
            raise NotFound(f"no instance {instance_id}")
        return record

    async def _control(self, instance_id: str, action: str, principal: Principal) -> Live:
        record = await self._instance(instance_id, principal)
        await self.require(principal, Role.OPERATOR, action, instance_id)
        if record.ended:
            raise Conflict(
                f"instance {instance_id} has ended", details={"state": record.state.value}
            )
        live = self._here(record)
        await self._audit(principal, action, instance_id)
        return live

    def _here(self, record: InstanceRecord) -> Live:
        live = self._engine.instances.here(record.instance_id)
        if live is None:
            raise Conflict(
                f"instance {record.instance_id} is supervised by another server",
                details={"node": record.node, "worker": record.worker},
            )
        return live

    async def _instance_view(self, record: InstanceRecord) -> InstanceView:
        live = self._engine.instances.here(record.instance_id)
        used: dict[str, Any] = {}
        if live is not None:
            used = await live.measure()
            record = live.record
        return view_of(
            record,
            live,
            used,
            self._engine.rounds.silence(live) if live is not None else Silence(),
            waiting_for=await self._waiting_for(record),
            unowned=live is None and not record.ended and await self._unowned(record),
        )

    async def _unowned(self, record: InstanceRecord) -> bool:
        """Whether nobody supervises it: its server is gone, and no other has come yet."""
        left = await self._store.ownerless(self._engine.instances.node, _MOST_LEFT)
        return any(one.instance_id == record.instance_id for one in left)

    async def _waiting_for(self, record: InstanceRecord) -> str | None:
        if record.ended or record.execution_id is None:
            return None
        attempt = self._engine.attempts.running.get(record.execution_id)
        if attempt is not None:
            return "input" if attempt.question is not None else None
        execution = await self._store.execution(record.execution_id, record.owner)
        asks = execution is not None and execution.state is State.INPUT_REQUIRED
        return "input" if asks else None


_Followers = list[tuple[str, LogFollower]]


def _followers(record: InstanceRecord, tail: int | None) -> _Followers:
    place = record.found().get("log")
    if place is None:
        return []
    return [(stream, LogFollower(Path(place), stream, tail)) for stream in _STREAMS]


def _read_once(record: InstanceRecord, tail: int | None) -> dict[str, LogTail]:
    followers = _followers(record, tail)
    try:
        return {
            stream: LogTail(data.decode("utf-8", "replace"), follower.skipped, follower.dropped)
            for (stream, follower), (_, data) in zip(followers, _read_all(followers), strict=True)
        }
    finally:
        for _, follower in followers:
            follower.close()


def _read_all(followers: _Followers) -> list[tuple[str, bytes]]:
    return [(stream, follower.read()) for stream, follower in followers]

"""The Store seam, seventh part: the processes that are supervised."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec
import pytest
from msgspec.structs import replace

from retinue.domain.event import EventData, EventType
from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us, ulid
from retinue.domain.instance import InstanceRecord, InstanceState
from retinue.domain.intent import (
    AdoptInstance,
    Append,
    Fence,
    ForgetInstances,
    PutInstance,
    SaveInstance,
)
from retinue.domain.result import Adopted, Appended, Conflict, Ok, Rejected, Swept
from retinue.errors import InvalidInput
from retinue.interfaces import InstanceFilter, Page, Store
from retinue.testing.store_samples import execution, fence, finish, load, run, text

Reopen: TypeAlias = Callable[[], Awaitable[Store]]
_EVERY_FIELD = {
    "started_at": 1,
    "state_at": 2,
    "reason": "café",
    "exit_code": 0,
    "exit_signal": 9,
    "cpu_us": 1 << 40,
    "peak_bytes": 1 << 41,
    "messages_in": 5,
    "messages_out": 6,
}


def instance(
    store: Store, e: Execution | None = None, *, owner: str = "ann", agent_id: str = "cli"
) -> InstanceRecord:
    """Return an instance that is about to be started by ``store``'s worker, for ``e``."""
    at = now_us()
    return InstanceRecord(
        instance_id=ulid(),
        owner=owner,
        agent_id=agent_id,
        driver="command",
        node="here",
        worker=store.worker,
        execution_id=e.id if e is not None else None,
        attempt=e.attempt if e is not None else None,
        state=InstanceState.STARTING,
        kept=1,
        handle=b'{"mark":"x"}',
        created_at=at,
        state_at=at,
    )


async def begin(store: Store, e: Execution | None = None, **given: str) -> InstanceRecord:
    """Store an instance that is about to be started; return it."""
    made = instance(store, e, **given)
    assert await store.write(PutInstance(replace(made))) == Ok()
    return made


async def save(store: Store, record: InstanceRecord) -> object:
    """Store an instance as it is now; return the answer."""
    return await store.write(SaveInstance(replace(record)))


class InstanceRules:
    """An instance is stored before it runs, by one worker at a time, along its machine."""

    async def test_it_comes_back_as_it_was(self, store: Store) -> None:
        made = await begin(store, await run(store))
        assert await store.instance(made.instance_id, "ann") == made
        assert await store.instance(made.instance_id, None) == made
        assert await store.instance(made.instance_id, "bob") is None
        assert await store.write(PutInstance(replace(made))) == Conflict("exists")
        for name, value in _EVERY_FIELD.items():
            setattr(made, name, value)
        made.to(InstanceState.BUSY, 7, "café")
        made.handle = b'{"pid":1}'
        assert await save(store, made) == Ok()
        assert await store.instance(made.instance_id, None) == made
        made.to(InstanceState.STOPPED, 9)
        made.execution_id = made.attempt = None
        assert await save(store, made) == Ok()
        found = await store.instance(made.instance_id, None)
        assert found == made
        assert (made.ended_at, made.state_at, made.reason) == (9, 9, None)

    async def test_a_row_follows_its_machine(self, store: Store) -> None:
        made = await begin(store)
        made.to(InstanceState.DRAINING, 1)
        await save(store, made)
        back = replace(made, state=InstanceState.READY)
        assert await save(store, back) == Conflict("illegal", {"from": "draining", "to": "ready"})
        made.to(InstanceState.FAILED, 2)
        await save(store, made)
        for state in InstanceState:
            answer = await save(store, replace(made, state=state))
            assert isinstance(answer, Ok) is (state is InstanceState.FAILED)
        assert await save(store, instance(store)) == Rejected("not_found")

    async def test_only_its_worker_writes_it(self, store: Store) -> None:
        made = await begin(store)
        stranger = replace(made, worker=ulid(), messages_in=7)
        assert await save(store, stranger) == Conflict("fenced")
        assert await store.instance(made.instance_id, None) == made

    async def test_within_one_batch_they_come_in_order(self, store: Store) -> None:
        made, other = instance(store), instance(store)
        busy, ended = replace(made), replace(made)
        busy.to(InstanceState.BUSY, 1)
        ended.to(InstanceState.STOPPED, 2)
        results = await asyncio.gather(
            store.write(PutInstance(replace(made))),
            store.write(SaveInstance(busy)),
            store.write(PutInstance(replace(other))),
            store.write(SaveInstance(ended)),
            store.write(SaveInstance(replace(busy))),
        )
        assert list(results) == [
            *[Ok()] * 4,
            Conflict("illegal", {"from": "stopped", "to": "busy"}),
        ]
        assert await store.instance(made.instance_id, None) == ended
        assert await store.instance(other.instance_id, None) == other

    async def test_they_are_listed_newest_first(self, store: Store) -> None:
        e = await run(store)
        made = [await begin(store, e if i == 3 else None, agent_id=f"a{i % 2}") for i in range(5)]
        await begin(store, owner="bob")
        made[0].to(InstanceState.STOPPED, now_us())
        await save(store, made[0])
        mine = InstanceFilter(owner="ann")
        first = await store.instances(mine, Page(limit=2))
        second = await store.instances(mine, Page(limit=3, cursor=first.next_cursor))
        assert [*first.items, *second.items] == made[::-1]
        assert (first.total, second.total, second.next_cursor) == (5, 5, None)
        assert (await store.instances(InstanceFilter(), Page())).total == 6

        async def among(**where: object) -> list[InstanceRecord]:
            found = await store.instances(replace(mine, **where), Page())
            assert found.total == len(found.items)
            return found.items

        assert await among(agent_id="a1") == [made[3], made[1]]
        assert await among(execution_id=e.id) == [made[3]]
        assert await among(live=True) == made[:0:-1]
        assert await among(states=(InstanceState.STOPPED, InstanceState.FAILED)) == [made[0]]
        with pytest.raises(InvalidInput):
            await store.instances(mine, Page(cursor="bad"))

    async def test_what_ended_long_ago_is_forgotten(self, store: Store) -> None:
        made = [await begin(store) for _ in range(4)]
        for at, each in enumerate(made[:3], 1):
            each.to(InstanceState.STOPPED, at)
            await save(store, each)
        assert await store.write(ForgetInstances(3, 1)) == Swept(1, True)
        assert await store.write(ForgetInstances(3, 5)) == Swept(1, False)
        assert (await store.instances(InstanceFilter(), Page())).items == [made[3], made[2]]


class AdoptRules:
    """What a dead worker supervised is taken over once, with the attempt it works on."""

    async def test_the_living_are_left_alone(self, store: Store) -> None:
        await begin(store)
        assert await store.ownerless("here", 10) == []

    async def test_an_attempt_goes_on_with_its_instance(self, store: Store, reopen: Reopen) -> None:
        e = await run(store, execution(agent_id="cli"))
        written = EventData(EventType.CONTENT_CHUNK, {"content": "a"}, "17")
        await store.write(Append(fence(e), (written,), now_us()))
        made = await begin(store, e)
        ended = await begin(store)
        ended.to(InstanceState.FAILED, 1)
        await save(store, ended)
        again = await reopen()
        (left,) = await again.ownerless("here", 10)
        assert left == made
        adopt = AdoptInstance(left, fence(e), again.worker, now_us())
        adopted = await again.write(adopt)
        assert isinstance(adopted, Adopted)
        assert adopted.instance == replace(made, worker=again.worker)
        assert adopted.execution is not None
        mine = adopted.execution
        assert (mine.worker, mine.attempt, mine.cursor) == (again.worker, 1, "17")
        assert await again.orphans(10) == []
        assert await again.ownerless("here", 10) == []
        assert await again.write(adopt) == Conflict("fenced")
        late = Append(fence(e), (text("late"),), now_us())
        assert await again.write(late) == Conflict("fenced", {"attempt": 1})
        assert await again.write(finish(mine)) == Appended(2)
        assert (await load(again, e)).state is State.COMPLETED

    async def test_one_that_has_ended_is_taken_over_with_an_attempt_that_has_not(
        self, store: Store, reopen: Reopen
    ) -> None:
        made, idle = await begin(store, e := await run(store)), await begin(store)
        for each in (made, idle):
            each.to(InstanceState.STOPPED, 1)
            await save(store, each)
        again = await reopen()
        adopted = await again.write(AdoptInstance(made, fence(e), again.worker, now_us()))
        assert isinstance(adopted, Adopted)
        assert adopted.execution is not None
        assert adopted.execution.worker == adopted.instance.worker == again.worker
        nothing = AdoptInstance(idle, None, again.worker, now_us())
        assert await again.write(nothing) == Conflict("ended")

    async def test_one_that_works_on_nothing_is_taken_over_too(
        self, store: Store, reopen: Reopen
    ) -> None:
        made = await begin(store)
        again = await reopen()
        intent = AdoptInstance(made, None, again.worker, now_us())
        assert await again.write(intent) == Adopted(replace(made, worker=again.worker), None)

    async def test_what_is_lost_on_another_node_is_not_found_again_and_again(
        self, store: Store, reopen: Reopen
    ) -> None:
        made = await begin(store)
        again = await reopen()
        assert await again.ownerless("there", 10) == [made]
        made.to(InstanceState.LOST, 5, "away")
        assert await save(again, made) == Ok()
        assert await again.ownerless("there", 10) == []
        assert await again.ownerless("here", 10) == [made]

    async def test_what_is_over_is_not_taken_over(self, store: Store, reopen: Reopen) -> None:
        done, lost, asked = [await run(store) for _ in range(3)]
        made = [await begin(store, e) for e in (done, lost, asked)]
        await store.write(finish(done))
        again = await reopen()
        intents = [
            AdoptInstance(made[0], fence(done), again.worker, now_us()),
            AdoptInstance(made[1], Fence(lost.id, 2, fence(lost).worker), again.worker, now_us()),
            AdoptInstance(replace(made[2], worker="x"), fence(asked), again.worker, now_us()),
        ]
        assert await again.write(intents[0]) == Conflict("terminal", {"state": "completed"})
        assert await again.write(intents[1]) == Conflict("fenced", {"attempt": 1})
        assert await again.write(intents[2]) == Conflict("fenced")
        assert [i.worker for i in await again.ownerless("here", 10)] == [store.worker] * 3
        assert len(await again.orphans(10)) == 2

    async def test_of_many_who_want_it_one_gets_it(self, store: Store, reopen: Reopen) -> None:
        made = await begin(store, e := await run(store))
        again = await reopen()
        intent = AdoptInstance(made, fence(e), again.worker, now_us())
        results = await asyncio.gather(
            *(again.write(msgspec.structs.replace(intent)) for _ in "abc")
        )
        assert sorted(isinstance(r, Adopted) for r in results) == [False, False, True]

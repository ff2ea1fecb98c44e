"""The Store seam, sixth part: the registrations of agents."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from retinue.domain.agent import StoredAgent
from retinue.domain.audit import AuditDraft
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import PutAgent, RemoveAgent
from retinue.domain.result import Conflict, Ok, Rejected
from retinue.interfaces import Page, Store
from retinue.testing.store_records import verify_audit

Reopen: TypeAlias = Callable[[], Awaitable[Store]]


def registration(agent_id: str = "remote") -> StoredAgent:
    """Return a registration to be; its revision is the store's to give."""
    return StoredAgent(
        id=ulid(),
        agent_id=agent_id,
        revision=0,
        owner="ann",
        created_by="root",
        driver="http",
        definition=b'{"name":"caf\xc3\xa9"}',
        fingerprint=bytes(range(32)),
        created_at=now_us(),
    )


def put(agent: StoredAgent) -> PutAgent:
    """Return the intent that registers ``agent``."""
    return PutAgent(agent, _draft("agent.register", agent.agent_id))


def remove(agent_id: str, at: int | None = None) -> RemoveAgent:
    """Return the intent that ends the registration of an agent."""
    return RemoveAgent(agent_id, "root", at or now_us(), _draft("agent.remove", agent_id))


def _draft(action: str, target: str) -> AuditDraft:
    return AuditDraft(owner="ann", actor="root", action=action, target=target)


class AgentRules:
    """An id is registered once at a time; what ends stays on record."""

    async def test_a_registration_comes_back_as_it_was(self, store: Store) -> None:
        assert (await store.agents(), await store.agent_changes()) == ([], 0)
        first, second = registration("b"), registration("a")
        assert await store.write(put(first)) == Ok()
        assert await store.write(put(second)) == Ok()
        expected = [msgspec.structs.replace(agent, revision=1) for agent in (first, second)]
        assert await store.agents() == expected
        listing = await store.audit(Page())
        assert [(row.action, row.target) for row in listing.items] == [
            ("agent.register", "b"),
            ("agent.register", "a"),
        ]

    async def test_an_id_is_registered_once_at_a_time(self, store: Store) -> None:
        results = await asyncio.gather(*(store.write(put(registration())) for _ in range(5)))
        assert sorted(map(str, results)) == sorted(map(str, [Ok(), *[Conflict("exists")] * 4]))
        assert len(await store.agents()) == 1
        assert await store.write(put(registration())) == Conflict("exists")
        assert await verify_audit(store) == 1

    async def test_a_removed_one_can_be_registered_again(self, store: Store) -> None:
        assert await store.write(remove("remote")) == Rejected("not_found")
        for revision in (1, 2, 3):
            agent = registration()
            assert await store.write(put(agent)) == Ok()
            assert await store.agents() == [msgspec.structs.replace(agent, revision=revision)]
            assert await store.write(remove("remote")) == Ok()
            assert await store.agents() == []
            assert await store.write(remove("remote")) == Rejected("not_found")
        assert await verify_audit(store) == 6

    async def test_within_one_batch_they_come_in_order(self, store: Store) -> None:
        again = registration()
        results = await asyncio.gather(
            store.write(put(registration())),
            store.write(put(registration("other"))),
            store.write(remove("remote")),
            store.write(put(again)),
            store.write(remove("remote")),
            store.write(put(again)),
        )
        assert list(results) == [Ok()] * 6
        assert {agent.agent_id: agent.revision for agent in await store.agents()} == {
            "other": 1,
            "remote": 3,
        }

    async def test_every_change_counts(self, store: Store) -> None:
        seen = [await store.agent_changes()]
        for intent in (put(registration()), remove("remote"), put(registration("x"))):
            await store.write(intent)
            seen.append(await store.agent_changes())
        assert sorted(set(seen)) == seen
        await store.write(put(registration("x")))
        await store.write(remove("never"))
        assert await store.agent_changes() == seen[-1]

    async def test_they_outlive_a_crash(self, store: Store, reopen: Reopen) -> None:
        await store.write(put(registration("gone")))
        await store.write(remove("gone"))
        await store.write(put(registration("kept")))
        agents, changes = await store.agents(), await store.agent_changes()
        again = await reopen()
        assert (await again.agents(), await again.agent_changes()) == (agents, changes)
        assert await again.write(put(registration("kept"))) == Conflict("exists")

"""The Store seam, third part: the chains, and what may never change."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from retinue.domain.audit import AuditDraft, audit_hash
from retinue.domain.contract import GENESIS, ContractStatus, ContractType, Draft
from retinue.domain.execution import State
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import Append, Audit, PutKey, Refuse, RevokeKey
from retinue.domain.principal import ApiKey, Role
from retinue.domain.result import Ok, Rejected
from retinue.domain.seal import seal
from retinue.interfaces import ContractFilter, Page, Store
from retinue.testing.store_samples import (
    execution,
    fence,
    finish,
    load,
    run,
    submit,
    text,
    verify_chain,
    verify_events,
)

Tamper: TypeAlias = Callable[[str], Awaitable[None]]
"""Runs a statement on the database itself, behind the store's back."""

WRITTEN_ONCE = [
    "UPDATE contract SET body = body",
    "UPDATE contract SET from_agent = 'mallory'",
    "UPDATE contract SET status = 'completed'",
    "UPDATE contract SET hash = body_hash, body = NULL",
    "UPDATE event SET data = data",
    "UPDATE event SET seq = seq + 100",
    "UPDATE audit SET actor = 'mallory'",
    "DELETE FROM audit",
]


def refusal(owner: str = "ann", session_id: str = "s1") -> Refuse:
    """Return the intent that records a task nobody could do."""
    sent = Draft(
        id=ulid(),
        type=ContractType.REQUEST,
        from_agent="orchestrator",
        to_agent=None,
        capability="unheard-of",
        status=None,
        execution_id=None,
        body=b'{"parameters":1}',
    )
    answered = Draft(
        id=ulid(),
        type=ContractType.RESPONSE,
        from_agent="orchestrator",
        to_agent="orchestrator",
        capability=None,
        status=ContractStatus.FAILED,
        execution_id=None,
        body=b'{"code":"E_AGENT_NOT_FOUND"}',
    )
    return Refuse(owner, session_id, sent, answered, now_us())


def audited(action: str = "key.create", target: str = "k") -> AuditDraft:
    """Return a row of the audit to be."""
    return AuditDraft(owner="ann", actor="root", action=action, target=target, detail=b'{"a":1}')


def api_key(name: str = "ci") -> ApiKey:
    """Return a new API key."""
    return ApiKey(
        id=ulid(),
        name=name,
        owner="ann",
        role=Role.OPERATOR,
        hash=os.urandom(16).hex(),
        created_at=now_us(),
    )


class ChainRules:
    """Contracts and the audit: chained, insert-only, exact."""

    async def test_a_refusal_leaves_both_sides(self, store: Store) -> None:
        assert await store.write(refusal()) == Ok()
        sent, answered = await verify_chain(store, "ann", "s1")
        assert (sent.type, sent.status) == (ContractType.REQUEST, None)
        assert (answered.type, answered.status) == (ContractType.RESPONSE, ContractStatus.FAILED)
        assert answered.digest is None
        listing = await store.contracts(ContractFilter(owner="ann"), Page())
        assert [view.state for view in listing.items] == [State.FAILED, State.FAILED]
        assert [view.answered for view in listing.items] == [answered.body] * 2
        assert listing.items[0].finished_at == answered.at

    async def test_chains_hold_under_many_callers_and_sessions(self, store: Store) -> None:
        owners = ("ann", "bob")
        ended: dict[str, str] = {}

        async def caller(number: int) -> None:
            owner = owners[number % 2]
            for turn in range(4):
                e = execution(owner=owner, session_id=f"s{(number + turn) % 5}", key=f"k{number}")
                await run(store, e)
                for _ in range(turn):
                    await store.write(Append(fence(e), (text("é" * turn),), now_us()))
                await store.write(finish(e))
                ended[e.id] = owner
                if turn == 1:
                    await store.write(refusal(owner, f"s{number % 5}"))

        await asyncio.gather(*(caller(number) for number in range(24)))
        seen: set[str] = set()
        for owner in owners:
            for i in range(5):
                for row in await verify_chain(store, owner, f"s{i}"):
                    if row.status is ContractStatus.COMPLETED:
                        e = await store.execution(row.execution_id or "", owner)
                        assert e is not None
                        await verify_events(store, e)
                        assert row.digest == seal(e)
                        assert row.n == e.response_n
                        seen.add(e.id)
        assert seen == ended.keys()

    async def test_the_same_session_name_is_another_session_for_another_owner(
        self, store: Store
    ) -> None:
        for owner in ("ann", "bob", "ann"):
            await store.write(finish(await run(store, execution(owner=owner))))
        assert len(await verify_chain(store, "ann", "s1")) == 4
        assert len(await verify_chain(store, "bob", "s1")) == 2
        assert (await store.sessions(None, Page())).total == 2

    @pytest.mark.parametrize("statement", WRITTEN_ONCE)
    async def test_what_is_written_once_stays(
        self, store: Store, tamper: Tamper, statement: str
    ) -> None:
        e = await run(store)
        await store.write(finish(e))
        await store.write(Audit(audited(), now_us()))
        with pytest.raises(Exception, match="insert-only"):
            await tamper(statement)
        await verify_chain(store, "ann", "s1")
        await verify_events(store, e)
        await verify_audit(store)

    async def test_an_erased_body_leaves_the_chain_whole(
        self, store: Store, tamper: Tamper
    ) -> None:
        e = await run(store)
        await store.write(finish(e))
        await tamper("UPDATE contract SET body = NULL")
        rows = await verify_chain(store, "ann", "s1")
        assert [row.body for row in rows] == [None, None]
        assert await store.bodies(await load(store, e)) == (None, None)

    async def test_a_big_body_comes_back_byte_for_byte(self, store: Store) -> None:
        big = b'"%s"' % os.urandom(2_500_000).hex().encode()
        e = execution()
        await asyncio.gather(
            store.write(submit(e, worker=store.worker, body=big)),
            *(run(store, execution(session_id=f"s{i}")) for i in range(2, 6)),
        )
        await store.write(finish(e, body=big[::-1]))
        assert await store.bodies(await load(store, e)) == (big, big[::-1])
        await verify_chain(store, "ann", "s1")

    async def test_every_character_comes_back(self, store: Store) -> None:
        said = "日本語 \U0001f9d1‍\U0001f680 \x01\t\n\r\u2028 'quote' \"double\" \\ $1 ?1 ; --"
        e = execution(owner=f"o{said}", session_id=f"s{said}", key=f"k{said}", agent_id=said)
        e.from_agent = said
        await run(store, e, key=said, body=said.encode())
        await store.write(finish(e, events=(text(said),), body=said.encode()))
        stored = await store.execution(e.id, e.owner)
        assert stored is not None
        assert (stored.session_id, stored.agent_id, stored.queue_key) == (
            e.session_id,
            said,
            f"k{said}",
        )
        assert await store.bodies(stored) == (said.encode(), said.encode())
        assert len(await verify_chain(store, e.owner, e.session_id)) == 2
        events = await verify_events(store, e)
        assert events[0].data.decode().startswith('{"text":"日本語')


async def verify_audit(store: Store) -> int:
    """Recompute the audit chain, page by page; return how many rows it has."""
    digest, n = GENESIS, 0
    page = Page(limit=7)
    while True:
        listing = await store.audit(page)
        for row in listing.items:
            n += 1
            assert row.n == n
            digest = audit_hash(digest, row)
            assert row.hash == digest
        if listing.next_cursor is None:
            assert (listing.total, *await store.audit_head()) == (n, n, digest)
            return n
        page = Page(7, listing.next_cursor)


class AuditRules:
    """Keys, and the record of who did what."""

    async def test_the_audit_is_one_chain(self, store: Store) -> None:
        assert await verify_audit(store) == 0
        await asyncio.gather(
            *(store.write(Audit(audited("act", str(i)), now_us())) for i in range(20))
        )
        await store.write(Audit(audited("last"), now_us()))
        assert await verify_audit(store) == 21

    async def test_keys_are_put_and_revoked_with_their_audit(self, store: Store) -> None:
        first, second = api_key("first"), api_key("second")
        assert await store.write(PutKey(first, audited(target=first.id))) == Ok()
        assert await store.write(PutKey(second, audited(target=second.id))) == Ok()
        assert await store.keys() == [first, second]
        at = now_us()
        revoke = RevokeKey(first.id, at, audited("key.revoke", first.id))
        assert await store.write(revoke) == Ok()
        assert await store.write(revoke) == Rejected("not_found")
        unknown = RevokeKey(ulid(), at, audited("key.revoke"))
        assert await store.write(unknown) == Rejected("not_found")
        assert [key.revoked_at for key in await store.keys()] == [at, None]
        assert await verify_audit(store) == 3
        listing = await store.audit(Page())
        assert [row.action for row in listing.items] == ["key.create", "key.create", "key.revoke"]
        assert listing.items[2].target == first.id
        assert listing.items[0].detail == b'{"a":1}'

    async def test_a_key_that_is_there_already_fails_alone(self, store: Store) -> None:
        key = api_key()
        await store.write(PutKey(key, audited()))
        results = await asyncio.gather(
            store.write(PutKey(api_key(), audited())),
            store.write(PutKey(key, audited())),
            store.write(PutKey(api_key(), audited())),
            return_exceptions=True,
        )
        assert results[0] == results[2] == Ok()
        assert isinstance(results[1], Exception)
        assert len(await store.keys()) == await verify_audit(store) == 3

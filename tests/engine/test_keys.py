"""API keys: how often the store is asked for them."""

import asyncio

from retinue import Runtime, Settings
from retinue.domain.principal import ApiKey, Role
from retinue.engine.keys import Keys
from retinue.orchestrator import LOCAL_ADMIN
from retinue.storage.sqlite import SqliteStore


class Counted(SqliteStore):
    """A store that counts how often its keys are read."""

    reads = 0

    async def keys(self) -> list[ApiKey]:
        self.reads += 1
        return await super().keys()


async def test_one_look_serves_all_who_ask_at_once() -> None:
    store = Counted(None)
    async with Runtime(Settings(database_url="sqlite://", examples=False), store=store):
        keys = Keys(store)
        before = store.reads
        found = await asyncio.gather(*(keys.active() for _ in range(500)))
        assert store.reads == before + 1
        assert found == [[]] * 500


async def test_a_new_key_counts_at_once_and_a_revoked_one_no_longer() -> None:
    store = Counted(None)
    async with Runtime(Settings(database_url="sqlite://", examples=False), store=store):
        keys = Keys(store)
        looking = asyncio.create_task(keys.active())  # a look that began before the key was there
        key, secret = await keys.create("ann", Role.ADMIN, "ann", by=LOCAL_ADMIN)
        assert (await keys.authenticate(secret)).name == "ann"
        await looking
        assert [k.id for k in await keys.active()] == [key.id]
        await keys.revoke(key.id, by=LOCAL_ADMIN)
        assert await keys.active() == []

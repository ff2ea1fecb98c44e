"""Workers: programs whose processes stand ready, looked at, scaled, restarted."""

from __future__ import annotations

from msgspec.structs import replace

from retinue.domain.principal import Principal, Role
from retinue.domain.strictjson import dumps
from retinue.engine.views import MemberView, PoolView
from retinue.orchestrator.base import LOCAL_ADMIN, Desk

__all__ = ["MemberView", "PoolView", "Pools"]


class Pools(Desk):
    """The pools of this server; those of another server are that one's."""

    async def pools(self) -> list[PoolView]:
        """List the pools."""
        return [self._judged(view) for view in self._engine.pools.views()]

    async def pool(self, name: str) -> PoolView:
        """Return one pool.

        Raises:
            NotFound: there is none.
        """
        return self._judged(self._engine.pools.view(name))

    def _judged(self, view: PoolView) -> PoolView:
        """Return a pool with those of its instances called stalled that are."""
        members = [
            replace(one, state="stalled") if one.state == "busy" and self._stalled(one) else one
            for one in view.instances
        ]
        return replace(view, instances=members)

    def _stalled(self, member: MemberView) -> bool:
        live = self._engine.instances.here(member.instance_id)
        return live is not None and self._engine.rounds.silence(live).stalled

    async def scale_pool(
        self, name: str, most: int, least: int | None = None, principal: Principal = LOCAL_ADMIN
    ) -> PoolView:
        """Have at most so many processes from now on; what is too many ends once it is idle.

        ``least`` of them run even when idle; unset, all.

        Raises:
            NotFound, Forbidden; InvalidInput: these are no bounds.
        """
        await self.require(principal, Role.OPERATOR, "worker.scale", name)
        least = most if least is None else least
        self._engine.pools.scale(name, least, most)
        await self._audit(
            principal, "worker.scale", name, detail=dumps({"least": least, "most": most})
        )
        return self._engine.pools.view(name)

    async def shut_down_pool(
        self, name: str, drain_seconds: float | None = None, principal: Principal = LOCAL_ADMIN
    ) -> PoolView:
        """Have no processes any more; what they are doing has ``drain_seconds`` (unset: as set).

        New tasks for its agents are refused until it is scaled up again.

        Raises:
            NotFound, Forbidden.
        """
        await self.require(principal, Role.OPERATOR, "worker.shutdown", name)
        self._engine.pools.scale(name, 0, 0, drain_seconds)
        await self._audit(principal, "worker.shutdown", name)
        return self._engine.pools.view(name)

    async def deploy_pool(
        self, name: str, drain_seconds: float | None = None, principal: Principal = LOCAL_ADMIN
    ) -> PoolView:
        """Replace every process by one of what the configuration file says of the worker now.

        One by one, as ``restart_pool`` does; if one of them does not become ready, or ends before
        all have been replaced, the version before takes over again.

        Raises:
            NotFound, Forbidden; Conflict: such a thing is under way; SettingsError: the file is not
                valid.
        """
        await self.require(principal, Role.OPERATOR, "worker.deploy", name)
        await self._engine.pools.deploy(name, drain_seconds)
        view = self._engine.pools.view(name)
        await self._audit(principal, "worker.deploy", name, detail=dumps({"version": view.version}))
        return view

    async def restart_pool(
        self, name: str, drain_seconds: float | None = None, principal: Principal = LOCAL_ADMIN
    ) -> PoolView:
        """Replace every process, one by one, its work done first; a failed pool begins anew.

        What has not ended after ``drain_seconds`` (unset: as configured) is ended.

        Raises:
            NotFound, Forbidden.
        """
        await self.require(principal, Role.OPERATOR, "worker.restart", name)
        self._engine.pools.renew(name, drain_seconds)
        await self._audit(principal, "worker.restart", name)
        return self._engine.pools.view(name)

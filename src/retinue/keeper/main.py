"""The keeper's loop: one thread, which waits for the socket, for children and for its timers.

Every child of the keeper is either the leader of an agent or a leftover: a process whose leader has
ended. Leaders are subreapers of their own, so nothing of a living agent ever comes here, and every
leftover may be ended. An agent is *gone* once its leader was reaped and no leftover of it exists.

When the owner is gone, agents that are *kept* go on, and all others end; the keeper then waits for
the next owner (``door``), for a day at most, and ends with the last of them.

Ordering: frames are taken before children are reaped before a few processes are spawned, so a
signal never waits for more than those. A leader's pid is signalled only while it is not reaped, and
only this loop reaps: the pid cannot have become a stranger's.
"""

from __future__ import annotations

import errno
import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from functools import partial
from typing import Any

from retinue.keeper import cgroup, door
from retinue.keeper.agent import Agent
from retinue.keeper.frames import Closed, Frame, Wire
from retinue.keeper.seal import KEEPER, sweep, take
from retinue.keeper.spawn import Spawn, become_subreaper, come_first
from retinue.keeper.strike import kill, strike
from retinue.keeper.tree import MARK, children, incarnation, mark_of, share, stat, tree, usage

LAST_SECONDS = 10.0
UNOWNED_SECONDS = 86_400.0
"""How long agents that are kept go on without an owner."""
AT_ONCE = 8
"""How many processes are started together; a signal waits for no more than these."""
MOST_TASKS = 4096
TASKS_EACH = 16
"""How many processes and threads the kernel lets one with limited processes have, at the most."""
_BY_SIGNAL = {
    128 + number
    for number in (
        *(signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE),
        *(signal.SIGILL, signal.SIGSYS, signal.SIGXCPU, signal.SIGXFSZ),
    )
}
"""How bubblewrap exits when one of these ended what it ran; no program exits so by itself."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


class Keeper:
    """What this process keeps, for the owner at the other end of the socket."""

    def __init__(self, sock: socket.socket, owner: int, scope: str) -> None:
        self._wire: Wire | None = Wire(sock)
        self._owner = owner
        self._unowned_until = 0.0
        self._scope = scope
        self._self = incarnation(os.getpid())
        self._agents: dict[str, Agent] = {}
        self._leaders: dict[int, Agent] = {}
        self._leftovers: dict[int, tuple[Agent, ...]] = {}
        self._spawns: deque[Frame] = deque()
        self._groups = cgroup.Groups()
        self._tasks = cgroup.Groups(partial(cgroup.bases, "pids"), tasks=True)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, "socket")
        self._selector.register(owner, selectors.EVENT_READ, "owner")
        self._bell, rings = socket.socketpair()
        for end in (self._bell, rings):
            end.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, "children")
        signal.set_wakeup_fd(rings.fileno(), warn_on_full_buffer=False)
        self._rings = rings
        try:  # before any agent is there that could take the name
            self._door: socket.socket | None = door.listen(door.address(scope, self._self))
            self._selector.register(self._door, selectors.EVENT_READ, "door")
        except OSError:
            self._door = None  # nobody could ever find what is kept: it is not started

    def run(self) -> None:
        """Work until the owner is gone and nothing is left that is kept; then end everything."""
        try:
            while self._wire is not None or self._agents:
                try:
                    self._turn()
                except Closed:
                    self._bereft()
        finally:
            self._end_all()

    def _turn(self) -> None:
        for key, events in self._selector.select(self._patience()):
            if key.data == "owner":
                raise Closed
            if key.data == "children":
                _drain(self._bell)
            elif key.data == "door" and self._door is not None:
                self._admit(self._door)
            elif events & selectors.EVENT_READ and self._wire is not None:
                for frame, _ in self._wire.receive():
                    self._obey(frame)
        self._reap()
        self._look_around(time.monotonic())
        self._spawn_some()
        if self._wire is not None:
            self._watch(self._wire)

    def _look_around(self, now: float) -> None:
        """Look at the agents that are due."""
        if self._wire is None and now >= self._unowned_until:
            for agent in self._agents.values():
                agent.end("unowned", now)
        due = [a for a in self._agents.values() if a.due is not None and a.due <= now]
        if any(agent.ended for agent in due):
            self._find_leftovers()
        for agent in due:
            self._look(agent, now)

    def _watch(self, wire: Wire) -> None:
        wanted = selectors.EVENT_READ | (0 if wire.flush() else selectors.EVENT_WRITE)
        if self._selector.get_key(wire.socket).events != wanted:
            self._selector.modify(wire.socket, wanted, "socket")

    def _patience(self) -> float | None:
        if self._spawns:
            return 0.0
        times = [a.due for a in self._agents.values() if a.due is not None]
        if self._wire is None and time.monotonic() < self._unowned_until:
            times.append(self._unowned_until)
        due = min(times, default=None)
        return None if due is None else max(due - time.monotonic(), 0.0)

    # -- without an owner ----------------------------------------------------------------------

    def _bereft(self) -> None:
        """End what is not kept; wait for the next owner of what is."""
        _fall_silent()
        wire, self._wire = self._wire, None
        if wire is not None:
            self._selector.unregister(wire.socket)
            self._selector.unregister(self._owner)
            wire.close()
            os.close(self._owner)
        self._spawns.clear()
        now = time.monotonic()
        self._unowned_until = now + UNOWNED_SECONDS
        for agent in self._agents.values():
            if not agent.kept:
                agent.end("killed", now)

    def _admit(self, where: socket.socket) -> None:
        """Take the next owner, and tell it what is here; tell others that there is one."""
        admitted = door.admit(where)
        if admitted is None:
            return
        sock, owner = admitted
        if self._wire is not None:
            door.turn_away(sock)
            os.close(owner)
            return
        self._owner = owner
        self._wire = Wire(sock)
        self._selector.register(sock, selectors.EVENT_READ, "socket")
        self._selector.register(self._owner, selectors.EVENT_READ, "owner")
        here = [
            {"id": a.name, "pid": a.pid, "start": a.started}
            for a in self._agents.values()
            if a.kept and not a.ended
        ]
        self._tell({"op": "kept", "agents": here})

    def _tell(self, frame: Frame, fds: tuple[int, ...] = ()) -> None:
        if self._wire is not None:
            self._wire.put(frame, fds)

    # -- what the owner wants ------------------------------------------------------------------

    def _obey(self, frame: Frame) -> None:
        agent = self._agents.get(frame.get("id", ""))
        match frame["op"]:
            case "spawn":
                self._spawns.append(frame)
            case "signal":
                count = self._signal(agent, frame["signal"], frame["tree"]) if agent else 0
                self._answer(frame, {"count": count})
            case "kill":
                if agent is not None:
                    agent.end("killed", time.monotonic())
                else:
                    self._forget_spawn(frame["id"])
            case "usage":
                self._answer(frame, self._usage(agent) if agent else {})
            case "sweep":
                count, stood = self._sweep()
                self._answer(frame, {"count": count, "keepers": stood})

    def _answer(self, frame: Frame, answer: dict[str, Any]) -> None:
        self._tell({"op": "answer", "re": frame["n"], **answer})

    def _forget_spawn(self, agent_id: str) -> None:
        """Take back a spawn that has not happened."""
        for frame in [f for f in self._spawns if f["id"] == agent_id]:
            self._spawns.remove(frame)
            self._tell({"op": "refused", "id": agent_id, "errno": 0, "why": "taken back"})

    def _spawn_some(self) -> None:
        """Start a few of the processes that are wanted."""
        on_their_way: list[tuple[Frame, Spawn]] = []
        while self._spawns and len(on_their_way) < AT_ONCE:
            frame = self._spawns.popleft()
            if frame.get("kept") and self._door is None:
                taken = "it could not be found again: its keeper's address is another's"
                self._refuse(frame, OSError(errno.EADDRINUSE, taken))
                continue
            frame["env"] = {**frame["env"], MARK: f"{self._scope}:{self._self}:{frame['id']}"}
            self._group(frame)
            try:
                on_their_way.append((frame, Spawn(frame)))
            except OSError as error:
                self._refuse(frame, error)
        for frame, spawn in on_their_way:
            try:
                pid, fds = spawn.finish()
            except OSError as error:
                self._refuse(frame, error)
            else:
                self._started(frame, pid, fds)

    def _group(self, frame: Frame) -> None:
        """Have the kernel hold what it can of a new agent's limits."""
        limits = frame.get("limits") or {}
        groups: list[str] = []
        if "cpu_percent" in limits and (group := self._groups.make(limits["cpu_percent"])):
            groups.append(group)
            frame["limits"] = {k: v for k, v in limits.items() if k != "cpu_percent"}
        if "processes" in limits:
            tasks = MOST_TASKS + TASKS_EACH * int(limits["processes"])
            if not any(cgroup.bound(g, tasks) or cgroup.one_for_all(g) for g in groups):
                groups += filter(None, [self._tasks.make(tasks)])
        frame["groups"] = groups

    def _refuse(self, frame: Frame, error: OSError) -> None:
        for group in frame.get("groups", ()):
            cgroup.drop(group)
        said = {"errno": error.errno or 0, "why": error.strerror or str(error)}
        self._tell({"op": "refused", "id": frame["id"], **said, "file": error.filename})

    def _started(self, frame: Frame, pid: int, fds: tuple[int, ...]) -> None:
        name = frame["id"]
        found = stat(pid)
        agent = Agent(name, pid, found.started if found is not None else 0, frame, time.monotonic())
        self._agents[name] = self._leaders[pid] = agent
        self._tell({"op": "started", "id": name, "pid": pid, "start": agent.started}, fds)

    def _signal(self, agent: Agent, number: int, whole: bool) -> int:
        """Signal an agent's leader, or its whole tree; return how many processes got it."""
        if agent.ended:
            return 0
        pids = [self._first(agent)]
        if whole:  # without the processes that make a sandbox: they would end, and all with them
            pids = tree([agent.pid])[agent.box_processes :] or [agent.pid]
        return sum(kill(pid, number) for pid in pids)

    @staticmethod
    def _first(agent: Agent) -> int:
        """Return the process that is the agent: in a sandbox the first one that it holds."""
        pid = agent.pid
        for _ in range(agent.box_processes):
            below = children(pid)
            if not below:
                return agent.pid  # it is being made, or has ended
            pid = below[0]
        return pid

    def _usage(self, agent: Agent) -> dict[str, Any]:
        if agent.ended:
            return {}
        found = usage([agent.pid])
        state = stat(self._first(agent))
        agent.peak = max(agent.peak, found.memory)
        return {
            "cpu": found.cpu,
            "memory": found.memory,
            "processes": max(found.processes - agent.box_processes, 1),
            "peak": agent.peak,
            "stopped": state is not None and state.state in {"T", "t"},
        }

    def _sweep(self) -> tuple[int, list[int]]:
        """End what an earlier keeper of this scope left when it was killed itself."""
        self._sweep_groups()
        return sweep(self._scope)

    def _sweep_groups(self) -> None:
        self._groups.sweep()
        self._tasks.sweep()

    # -- children ------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._leftovers.pop(pid, None)
            agent = self._leaders.pop(pid, None)
            if agent is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            if agent.boxed and code in _BY_SIGNAL:
                code = 128 - code
            frame = {
                "op": "exit",
                "id": agent.name,
                "code": code,
                "reason": agent.reason,
                "detail": agent.detail,
                "cpu": used.ru_utime + used.ru_stime,
                "peak": max(agent.peak, used.ru_maxrss * 1024),
            }
            if agent.kept:
                door.write_exit(agent.kept, frame)
            self._tell(frame)
            agent.exited(time.monotonic())

    def _look(self, agent: Agent, now: float) -> None:
        """Do what is due for an agent: measure it, end it, or see whether it is gone."""
        if not agent.ended:
            if not agent.ending:
                self._judge(agent, now)
            if agent.ending:
                multiplies = agent.reason == "limit_processes"
                strike([agent.pid], [agent.pid], again=multiplies or agent.strikes > 0)
                agent.struck(now)
            return
        left = [pid for pid, owners in self._leftovers.items() if agent in owners]
        if not left:
            del self._agents[agent.name]
            for group in agent.groups:
                cgroup.drop(group)
            self._tell({"op": "gone", "id": agent.name})
        elif agent.ending or now >= agent.patience:
            strike(left, again=agent.reason == "limit_processes" or agent.strikes > 0)
            agent.struck(now)
        else:
            agent.look_again(now)

    @staticmethod
    def _judge(agent: Agent, now: float) -> None:
        found = usage([agent.pid], files=agent.files_count, most=agent.most_counted)
        agent.judge(found, now, lambda: share([agent.pid]))

    def _find_leftovers(self) -> None:
        """Say of every child that leads no agent whose leftover it is."""
        now = set(children(os.getpid())) - self._leaders.keys()
        for pid in self._leftovers.keys() - now:
            del self._leftovers[pid]
        for pid in now - self._leftovers.keys():
            self._leftovers[pid] = self._owners(pid)

    def _owners(self, pid: int) -> tuple[Agent, ...]:
        """Return whose leftover a process is: all that it may belong to when it does not show."""
        ended = [a for a in self._agents.values() if a.ended]
        found = stat(pid)
        mark = mark_of(pid) or ""
        for agent in ended:
            if (found is not None and found.session == agent.pid) or mark.endswith(
                f":{self._self}:{agent.name}"
            ):
                return (agent,)
        return tuple(ended)

    def _end_all(self) -> None:
        """End every process below this one; nothing else is left to do."""
        if self._wire is not None:
            self._wire.close()
        until = time.monotonic() + LAST_SECONDS
        pause, again = 0.002, False
        while time.monotonic() < until:
            below = children(os.getpid())
            if not below:
                self._sweep_groups()
                return
            strike(below, self._leaders, again=again)
            time.sleep(pause)
            pause, again = min(pause * 2, 0.1), pause > 0.01  # noqa: PLR2004
            try:
                while pid := os.waitpid(-1, os.WNOHANG)[0]:
                    self._leaders.pop(pid, None)
            except ChildProcessError:
                pass


def _drain(bell: socket.socket) -> None:
    try:
        while bell.recv(4096):
            pass
    except BlockingIOError:
        pass


def _fall_silent() -> None:
    """Let go of the stderr that our owner gave us: who reads it waits for the end of the owner."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, 2, inheritable=True)
        os.close(nowhere)
    except OSError:
        pass


def main() -> None:
    """Run with ``socket-fd owner-pidfd scope`` as arguments."""
    # Handlers, not SIG_IGN: what is ignored stays ignored in the programs we start. Whoever stops
    # us means our owner, and gets us with it.
    for number in (*_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a spawn restores this one
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    become_subreaper(KEEPER)
    take(sys.argv[3])
    come_first()
    sock = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(sock.fileno(), False)
    owner = int(sys.argv[2])
    os.set_inheritable(owner, False)
    gc.freeze()  # what every fork would copy to no purpose
    Keeper(sock, owner, sys.argv[3]).run()

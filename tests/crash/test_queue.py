"""Servers killed while tasks wait: what waited waits on, in its order, its turn and its time."""

import asyncio
import json
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from torture import journals, ledger
from torture.http import ask
from torture.rig import Plan, Rig, recorder, until

TASKS = 40
KILLS_AFTER = (6, 14, 25)
DUE_SECONDS = 2.0
STEPS = (-3, 3)


class Line(Rig):
    """A rig whose server has an agent, ``line``, that does one thing after the other."""

    def configure(self) -> None:
        super().configure()
        path = self.directory / "retinue.yaml"
        settings = json.loads(path.read_text())
        line = recorder("line", str(self.directory / "effects.jsonl"), "idempotent", max_attempts=9)
        line["arguments"]["concurrency"] = 1
        settings["agents"].append(line)
        # What is submitted within a few seconds differs by its priority, not by its age.
        settings["priority_step_seconds"] = 600
        path.write_text(json.dumps(settings))

    @property
    def url(self) -> str:
        return self.doors._urls[self.servers[0].name]

    async def submit(self, marker: str, capability: str, **more: Any) -> dict[str, Any]:
        parameters = {"marker": marker, "delay_ms": more.pop("delay_ms", 20)}
        body = {"session_id": "s", "capability": capability, "parameters": parameters, **more}
        status, accepted = await ask(self.url, "POST", "/v1/executions", body)
        assert status == 202, accepted
        found: dict[str, Any] = accepted
        return found

    async def show(self, execution_id: str) -> dict[str, Any]:
        _, found = await ask(self.url, "GET", f"/v1/executions/{execution_id}")
        shown: dict[str, Any] = found
        return shown

    def done(self, capability: str) -> list[str]:
        """Return what was done, each task where it was begun first."""
        effects = journals.read_effects(self.directory / "effects.jsonl")
        return list(dict.fromkeys(e.marker for e in effects if e.capability == capability))

    async def killed(self) -> None:
        self.kill(self.servers[0])
        await self.start(self.servers[0])


@pytest.mark.requirement("003.queue")
@pytest.mark.parametrize("shared", [False, True], ids=["sqlite", "postgres"])
async def test_what_waits_survives_in_its_order(
    tmp_path: Path, request: pytest.FixtureRequest, shared: bool
) -> None:
    url: str | None = request.getfixturevalue("postgres_url") if shared else None
    random = Random(1)
    async with Line(tmp_path, Plan(seed=1, database=url)) as rig:
        block = await rig.submit("block", "line", delay_ms=600_000)
        priorities = [random.randint(*STEPS) for _ in range(TASKS)]
        accepted = [
            await rig.submit(f"t{n}", "line", priority=priority)
            for n, priority in enumerate(priorities)
        ]
        ids = [one["execution_id"] for one in accepted]
        assert {one["state"] for one in accepted} == {"queued"}
        for moved, priority in ((TASKS - 1, 9), (0, -9)):
            path = f"/v1/executions/{ids[moved]}/priority"
            assert (await ask(rig.url, "POST", path, {"priority": priority}))[0] == 200
            priorities[moved] = priority
        turns = [
            (await rig.submit(f"u{n}", "same", delay_ms=300, session_id="u", on_busy="enqueue"))
            for n in range(4)
        ]
        now = datetime.now().astimezone()
        soon = await rig.submit(
            "soon", "same", run_at=(now + timedelta(seconds=DUE_SECONDS)).isoformat()
        )
        later = await rig.submit("later", "same", run_at=(now + timedelta(hours=1)).isoformat())
        await rig.killed()
        await ask(rig.url, "POST", f"/v1/executions/{block['execution_id']}/cancel")
        for count in KILLS_AFTER:
            await until(f"{count} are done", partial(_reached, rig, count))
            await rig.killed()
        last = [*ids, *(turn["execution_id"] for turn in turns), soon["execution_id"]]
        shown = [await until("all have ended", partial(_ended, rig, i)) for i in last]
        assert {one["state"] for one in shown} == {"completed"}
        expected = sorted(range(TASKS), key=lambda n: (-priorities[n], n))
        # Where a lease has to run out first, what a killed worker held goes on behind others.
        late = {f"t{n}" for n in range(TASKS) if shared and shown[n]["attempt"] > 1}
        assert len(late) <= len(KILLS_AFTER)
        done = [m for m in rig.done("line") if m != "block" and m not in late]
        assert done == [f"t{n}" for n in expected if f"t{n}" not in late]
        for before, after in pairwise(shown[TASKS : TASKS + 4]):
            assert before["finished_at"] <= after["started_at"]
        assert shown[-1]["started_at"] >= shown[-1]["run_at"]
        assert (await rig.show(later["execution_id"]))["state"] == "scheduled"
        assert await rig.stop(rig.servers[0]) == []
        assert await ledger.verify(rig.database) is None


async def _reached(rig: Line, count: int) -> bool:
    await asyncio.sleep(0)
    return len(rig.done("line")) > count


async def _ended(rig: Line, execution_id: str) -> dict[str, Any]:
    found = await rig.show(execution_id)
    return found if found["finished_at"] is not None else {}

"""Workers over HTTP: their pools shown, scaled and restarted, and who may."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.server.conftest import Served
from tests.server.test_access import make_key

from retinue.settings import WorkerReference

PROGRAM = Path(__file__).parents[1] / "engine" / "misbehaving.py"
WORKER = WorkerReference(
    driver="stdio", name="w", command=(sys.executable, "-I", "-S", str(PROGRAM)),
    process_pool_size=2,
)  # fmt: skip


@pytest.fixture
def served(start: Callable[..., Served]) -> Served:
    return start(agents=(WORKER,))


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def until(look: Callable[[], Any], holds: Callable[[Any], object]) -> Any:
    deadline = time.monotonic() + 20
    while not holds(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def ran(client: httpx.Client) -> int:
    task = {"session_id": "s", "agent_id": "it", "parameters": {"n": 1}}
    answer = client.post("/v1/orchestrate", json=task)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["data"]["pid"])


@pytest.mark.requirement("000.scale")
def test_a_worker_is_shown_scaled_and_restarted(client: httpx.Client) -> None:
    (shown,) = client.get("/v1/workers").json()["workers"]
    assert (shown["name"], shown["state"], shown["least"], shown["most"]) == ("w", "ready", 2, 2)
    assert {i["stage"] for i in shown["instances"]} == {"ready"}
    ran(client)
    assert client.get("/v1/workers/w").json()["requests"] == 1
    latency = {one["operation"]: one for one in client.get("/v1/workers/w").json()["latency"]}
    assert (latency["startup"]["count"], latency["simple_invoke"]["count"]) == (2, 1)
    assert latency["startup"]["target_ms"] == 5000
    assert (latency["startup"]["most_ms"], latency["startup"]["breaches"]) == (10_000, 0)
    assert 0 < latency["startup"]["average_ms"] <= latency["startup"]["longest_ms"]
    assert client.get("/v1/agents/it").json()["pool"] == {"w": "ready"}
    scaled = client.post("/v1/workers/w/scale", json={"processes": 3, "min_processes": 1})
    assert (scaled.json()["least"], scaled.json()["most"]) == (1, 3)
    client.post("/v1/workers/w/scale", json={"processes": 1})
    one = until(lambda: client.get("/v1/workers/w").json(), lambda w: len(w["instances"]) == 1)
    first = ran(client)
    assert client.post("/v1/workers/w/restart", json={"drain_timeout_ms": 5000}).status_code == 200
    until(
        lambda: client.get("/v1/workers/w").json()["instances"],
        lambda found: (
            [i["state"] for i in found] == ["ready"]
            and found[0]["instance_id"] != one["instances"][0]["instance_id"]
        ),
    )
    assert ran(client) != first
    (now,) = client.get("/v1/workers/w").json()["instances"]
    assert (now["pid"], now["bad_frames"]) == (ran(client), {})
    broken = {"do": "lines", "lines": ["{\n", "[1]\n"]}
    task = {"session_id": "s", "agent_id": "it", "parameters": broken}
    assert client.post("/v1/orchestrate", json=task).status_code == 200
    (now,) = client.get("/v1/workers/w").json()["instances"]
    assert now["bad_frames"] == {"not_an_object": 1, "not_json": 1}
    processes = client.get("/v1/instances", params={"agent_id": "w"}).json()
    assert processes["total"] >= 3
    assert {i["driver"] for i in processes["instances"]} == {"stdio"}


def test_what_is_refused(client: httpx.Client) -> None:
    assert client.get("/v1/workers/other").status_code == 404
    assert client.post("/v1/workers/other/restart", json={}).status_code == 404
    for body in ({"processes": -1}, {"processes": 1, "min_processes": 2}, {}):
        assert client.post("/v1/workers/w/scale", json=body).status_code == 422
    admin = {"Authorization": f"Bearer {make_key(client, 'root', 'admin')}"}
    wanted = {"name": "eye", "role": "viewer"}
    viewer = client.post("/v1/keys", json=wanted, headers=admin).json()["secret"]
    headers = {"Authorization": f"Bearer {viewer}"}
    for word, body in (("scale", {"processes": 1}), ("restart", {})):
        answer = client.post(f"/v1/workers/w/{word}", json=body, headers=headers)
        assert answer.status_code == 403
    assert client.get("/v1/workers/w", headers=headers).json()["most"] == 2

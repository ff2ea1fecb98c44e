"""Who may register and remove agents over HTTP, and what that gives nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from retinue.testing.http_agents import HttpAgent

if TYPE_CHECKING:
    from tests.server.conftest import Served

Start = Callable[..., "Served"]


class Callers(NamedTuple):
    admin: httpx.Client
    operator: httpx.Client
    viewer: httpx.Client
    other: httpx.Client
    nobody: httpx.Client


@pytest.fixture(params=["sqlite", "postgres"])
def callers(request: pytest.FixtureRequest, start: Start) -> Iterator[Callers]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    server = start(database_url=url, egress_allow=("127.0.0.1",))

    def key(client: httpx.Client, name: str, role: str, owner: str = "local") -> str:
        body = {"name": name, "role": role, "owner": owner}
        secret: str = client.post("/v1/keys", json=body).json()["secret"]
        return secret

    with server.client() as local:
        admin = server.client(key(local, "root", "admin"))
    made = [
        server.client(key(admin, "op", "operator")),
        server.client(key(admin, "eye", "viewer")),
        server.client(key(admin, "else", "operator", "other")),
        server.client(),
    ]
    yield Callers(admin, *made)
    for client in (admin, *made):
        client.close()
    server.ask_to_stop()
    server.join()


@pytest.fixture
def agent() -> Iterator[HttpAgent]:
    with HttpAgent() as agent:
        yield agent


def register(client: httpx.Client, agent: HttpAgent, agent_id: str, word: str) -> httpx.Response:
    body = {
        "agent_id": agent_id,
        "name": agent_id,
        "endpoint": agent.endpoint,
        "capabilities": [{"name": word}],
    }
    return client.post("/v1/agents/register", json=body)


def audited(callers: Callers) -> list[tuple[str, str, str, str]]:
    rows: list[dict[str, Any]] = callers.admin.get("/v1/audit?limit=1000").json()["audit"]
    return [
        (row["actor"], row["action"], row["target"], row["outcome"])
        for row in rows
        if row["action"].startswith("agent.")
    ]


@pytest.mark.requirement("003.register-http")
def test_an_operator_registers_and_a_viewer_does_not(callers: Callers, agent: HttpAgent) -> None:
    assert register(callers.nobody, agent, "far", "good").status_code == 401
    refused = register(callers.viewer, agent, "far", "good")
    assert (refused.status_code, refused.json()["code"]) == (403, "E_FORBIDDEN")
    assert register(callers.operator, agent, "far", "good").status_code == 201
    assert callers.viewer.get("/v1/agents/far").json()["registered_by"] == "op"
    assert callers.nobody.delete("/v1/agents/far").status_code == 401
    assert callers.viewer.delete("/v1/agents/far").status_code == 403
    assert callers.operator.delete("/v1/agents/far").status_code == 204
    assert audited(callers) == [
        ("eye", "agent.register", "far", "forbidden"),
        ("op", "agent.register", "far", "ok"),
        ("eye", "agent.remove", "far", "forbidden"),
        ("op", "agent.remove", "far", "ok"),
    ]


def test_another_owners_agent_is_an_admins_to_remove(callers: Callers, agent: HttpAgent) -> None:
    assert register(callers.other, agent, "far", "good").status_code == 201
    assert callers.operator.delete("/v1/agents/far").status_code == 403
    assert callers.operator.get("/v1/agents/far").status_code == 200
    assert callers.admin.delete("/v1/agents/far").status_code == 204
    assert ("op", "agent.remove", "far", "forbidden") in audited(callers)


def test_nobody_draws_another_owners_tasks_to_an_agent_of_its_own(
    callers: Callers, agent: HttpAgent
) -> None:
    # "echo" is the server's own, "good" is the local owner's.
    assert register(callers.operator, agent, "near", "good").status_code == 201
    for word in ("echo", "good"):
        refused = register(callers.other, agent, "thief", word)
        assert (refused.status_code, refused.json()["code"]) == (403, "E_FORBIDDEN")
        assert refused.json()["details"] == {"capability": word}
    assert register(callers.operator, agent, "second", "good").status_code == 201
    assert register(callers.admin, agent, "third", "good").status_code == 201
    assert callers.other.get("/v1/agents/thief").status_code == 404
    assert ("else", "agent.register", "thief", "forbidden") in audited(callers)


def test_the_audit_says_where_an_agent_is_and_never_its_secret(
    callers: Callers, agent: HttpAgent
) -> None:
    secret = register(callers.operator, agent, "far", "good").json()["secret"]
    rows = callers.admin.get("/v1/audit?limit=1000")
    assert agent.endpoint in rows.text
    assert secret not in rows.text

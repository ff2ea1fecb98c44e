"""``retinue agent register`` and ``remove``; agents over HTTP in the file; what a restart keeps."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.cli.conftest import Place

from retinue.testing.http_agents import HttpAgent, eventually

HERE = {"RETINUE_EGRESS_ALLOW": "127.0.0.1", "RETINUE_EXAMPLES": "false"}


@pytest.fixture
def agent() -> Iterator[HttpAgent]:
    with HttpAgent() as agent:
        yield agent


def signature_holds(agent: HttpAgent, secret: str) -> bool:
    """Say whether the last task came signed with ``secret``, as the guide has it checked."""
    received = agent.executed()[-1]
    text = Path(__file__).parents[2].joinpath("docs/guide-http-agents.md").read_text()
    source = text.split("```python verify.py\n")[1].split("```")[0]
    scope: dict[str, object] = {}
    exec(compile(source, "verify.py", "exec"), scope)
    verify = scope["is_ours"]
    assert callable(verify)
    return bool(verify(secret, received.headers, received.body))


@pytest.mark.requirement("003.register-http")
def test_a_registered_agent_survives_a_kill_and_a_restart(place: Place, agent: HttpAgent) -> None:
    with place.serve(**HERE) as server:
        done = place.retinue("agent", "register", "far", agent.endpoint, "--capability", "good")
        assert done.code == 0, done
        secret = done.out.strip()
        assert "shown this once" in done.err
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with place.serve(**HERE) as server:
        task = {"session_id": "s", "capability": "good", "parameters": {"n": 1}}
        reply = server.post("/v1/orchestrate", task)
        assert (reply["success"], reply["agent_id"]) == (True, "far")
        assert signature_holds(agent, secret)
        assert not signature_holds(agent, "x" + secret)
        listed = place.retinue("agent", "--json").json["agents"]
        assert [a["agent_id"] for a in listed] == ["far"]
        assert server.stop() == 0
    kept = place.directory / ".retinue"
    for path in kept.iterdir():
        assert secret.encode() not in path.read_bytes(), path
    assert stat.S_IMODE((kept / "signing.key").stat().st_mode) == 0o600
    assert place.retinue("run", "good", "n=2", **HERE).json["parameters"] == {"n": "2"}
    assert signature_holds(agent, secret)
    done = place.retinue("agent", "remove", "far", **HERE)
    assert (done.code, done.out) == (0, "far is removed\n")
    assert place.retinue("agent", "--json", **HERE).json["total"] == 0
    assert place.retinue("agent", "remove", "far", **HERE).code == 2
    assert place.retinue("ledger", "verify", **HERE).code == 0


@pytest.mark.requirement("003.register-http")
def test_with_another_signing_key_the_agent_is_offline_and_says_why(
    place: Place, agent: HttpAgent
) -> None:
    words = ("agent", "register", "far", agent.endpoint, "--capability", "good")
    assert place.retinue(*words, **HERE).code == 0
    (place.directory / ".retinue" / "signing.key").write_text("00" * 32 + "\n")
    with place.serve(**HERE) as server:
        view = httpx.get(f"{server.url}/v1/agents/far", trust_env=False).json()
        assert view["status"] == "offline"
        assert "signing key" in view["reason"]
        task = {"session_id": "s", "capability": "good"}
        assert server.post("/v1/orchestrate", task)["code"] == "E_AGENT_UNAVAILABLE"
    assert agent.received == []
    (place.directory / ".retinue" / "signing.key").write_text("too short")
    view = place.retinue("agent", "show", "far", "--json", **HERE).json
    assert (view["status"], "holds no signing key" in view["reason"]) == ("offline", True)
    words = ("agent", "register", "near", agent.endpoint, "--capability", "plain")
    assert "holds no signing key" in place.retinue(*words, **HERE).err


@pytest.mark.requirement("003.register-http")
def test_other_processes_of_a_database_have_it_too(
    place: Place, agent: HttpAgent, postgres_url: str
) -> None:
    shared = {**HERE, "DATABASE_URL": postgres_url}
    with place.serve(**shared) as one:
        other_place = Place(place.directory / "other")
        other_place.directory.mkdir()
        key = place.directory / ".retinue" / "signing.key"
        words = ("agent", "register", "far", agent.endpoint, "--capability", "good")
        secret = place.retinue(*words, "--url", one.url, "--json").json["secret"]
        shared["RETINUE_DATA_DIR"] = str(key.parent)
        with other_place.serve(**shared) as two:
            task = {"session_id": "s", "capability": "good"}
            assert two.post("/v1/orchestrate", task)["agent_id"] == "far"
            assert signature_holds(agent, secret)
            again = two.post(
                "/v1/agents/register",
                {
                    "agent_id": "near",
                    "name": "Near",
                    "endpoint": agent.endpoint,
                    "capabilities": [{"name": "plain"}],
                },
            )
            assert again["status"] == "registered"
            taken = {**task, "capability": "plain"}
            eventually(
                lambda: one.post("/v1/orchestrate", taken).get("agent_id") == "near",
                "the first process has it",
            )
            gone = httpx.delete(f"{one.url}/v1/agents/far", trust_env=False)
            assert gone.status_code == 204
            eventually(
                lambda: two.post("/v1/orchestrate", task).get("code") == "E_AGENT_NOT_FOUND",
                "the second process has it no more",
            )


def test_agents_over_http_stand_in_the_file(place: Place, agent: HttpAgent) -> None:
    place.write(
        "retinue.yaml",
        f"""
examples: false
agents:
  - driver: http
    agent_id: near
    endpoint: {agent.endpoint}/base/
    secret: ${{NEAR_SECRET}}
    capabilities: [good, {{name: plain, parameters: {{n: integer}}}}]
    delivery: idempotent
""",
    )
    secret = "a secret of sixteen or more"
    done = place.call("run", "good", "n=1", NEAR_SECRET=secret)
    assert done.code == 0, done
    assert agent.executed()[-1].path == "/base/execute"
    assert signature_holds(agent, secret)
    assert place.call("run", "plain", "n=x", NEAR_SECRET=secret).code == 2
    assert "NEAR_SECRET" in place.call("run", "good").err
    doctor = place.call("doctor", NEAR_SECRET=secret, ORCHESTRATOR_PORT="0")
    assert f"near can do good, plain, at {agent.endpoint}/base" in doctor.out
    shown = place.call("settings", "show", "--json", NEAR_SECRET=secret)
    assert secret not in shown.out
    removed = place.call("agent", "remove", "near", NEAR_SECRET=secret)
    assert "part of this server's own code or configuration" in removed.err
    taken = ("agent", "register", "near", "https://example.org", "--capability", "x")
    assert "registered already" in place.call(*taken, NEAR_SECRET=secret).err


def test_a_whole_definition_comes_from_a_file(place: Place, agent: HttpAgent) -> None:
    wanted = [{"name": "good", "description": "All is well", "parameters": {"n": "integer"}}]
    place.write("capabilities.json", json.dumps(wanted))
    done = place.call(
        *("agent", "register", "far", agent.endpoint, "--capabilities", "capabilities.json"),
        *("--name", "Far away", "--timeout", "5", "--concurrency", "3"),
        **HERE,
    )
    assert done.code == 0, done
    view = place.call("agent", "show", "Far away", "--json", **HERE).json
    assert (view["agent_id"], view["concurrency"]) == ("far", 3)
    assert view["capabilities"][0]["parameters"]["required"] == ["n"]
    place.write("odd.json", "{")
    odd = place.call("agent", "register", "x", "http://x", "--capabilities", "odd.json", **HERE)
    assert odd.code == 2


def test_what_cannot_be_registered_is_said(place: Place) -> None:
    refused = place.call("agent", "register", "far", "http://127.0.0.1", "--capability", "x")
    assert refused.code == 2
    assert "E_EGRESS_DENIED" in refused.err
    assert "egress_allow" in refused.err
    nothing = place.call("agent", "register", "far", "http://127.0.0.1")
    assert "capabilities" in nothing.err
    assert not (place.directory / ".retinue" / "signing.key").exists()

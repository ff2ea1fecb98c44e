"""A canary in an agent's environment, in an API key and in a header is nowhere to be seen."""

import json
from pathlib import Path

import httpx
import pytest
from tests.cli.conftest import SECONDS, Place

CANARY = "canary-4f1d7c"
SPEAKS = (
    "import os, sys, time\n"
    "token = os.environ['API_TOKEN']\n"
    "sys.stderr.write('trace: ' + token[:9]); sys.stderr.flush(); time.sleep(.1)\n"
    "sys.stderr.write(token[9:] + ' refused\\n')\n"
    "print('working', flush=True)\n"
    "raise SystemExit(f'cannot log in with {token}')\n"
)


def everything_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.requirement("001.secrets")
def test_a_secret_is_nowhere(place: Place) -> None:
    agent = {
        "driver": "command",
        "agent_id": "leaky",
        "command": ["python3", "-c", SPEAKS],
        "environment": {"API_TOKEN": "${API_TOKEN}"},
    }
    common = {"examples": False, "entry_points": False, "log_level": "debug"}
    place.write("retinue.yaml", json.dumps({**common, "agents": [agent]}))
    seen: dict[str, str] = {}
    with place.serve(API_TOKEN=CANARY, RETINUE_LOG_FORMAT="json") as server:
        made = server.post("/v1/keys", {"name": "root", "role": "admin"})
        key = made["secret"]
        headers = {"Authorization": f"Bearer {key}", "X-Custom": CANARY}
        task = {"session_id": "s", "agent_id": "leaky", "parameters": {"prompt": "x"}}
        with httpx.Client(base_url=server.url, headers=headers, timeout=SECONDS) as client:
            reply = client.post("/v1/orchestrate", json=task)
            assert reply.json()["success"] is False
            assert "cannot log in with ***" in reply.text
            seen["reply"] = reply.text
            execution = f"/v1/executions/{reply.json()['execution_id']}"
            (instance,) = client.get("/v1/instances").json()["instances"]
            paths = ["/v1/instances", f"/v1/instances/{instance['instance_id']}", execution]
            paths += [f"{execution}/events", "/v1/contracts?session_id=s", "/v1/status"]
            paths += ["/v1/agents", "/v1/audit", "/v1/keys"]
            for path in paths:
                seen[path] = client.get(path).text
            log = client.get(f"/v1/instances/{instance['instance_id']}/log").json()
            assert log["stdout"] == "working\n"
            assert log["stderr"] == "trace: *** refused\ncannot log in with ***\n"
            wrong = client.get("/v1/agents", headers={"Authorization": f"Bearer {CANARY}"})
            assert wrong.status_code == 401
            seen["401"] = wrong.text
        for words in (("agent", "ps", "-a"), ("agent", "logs", "leaky"), ("agent", "list")):
            done = place.retinue(*words, RETINUE_API_KEY=key, API_TOKEN=CANARY)
            assert done.code == 0, done
            seen[" ".join(words)] = done.out + done.err
        done = place.retinue("settings", "show", API_TOKEN=CANARY)
        seen["settings"] = done.out + done.err
        assert server.stop() == 0
        seen["server"] = server.log + server.banner
    for file in everything_below(place.directory / ".retinue"):
        seen[str(file)] = file.read_bytes().decode("latin-1")
    assert len(seen) > len(paths) + 7
    for where, text in seen.items():
        assert CANARY not in text, where
        assert key not in text, where

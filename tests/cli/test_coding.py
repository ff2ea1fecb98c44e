"""Coding CLIs on the command line: a prompt is run, and doctor says what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import COMMANDS, Place

from retinue.testing.coding_agent import install

KINDS = ("claude", "codex", "gemini", "opencode")


def configured(place: Place, *kinds: str, **more: object) -> dict[str, str]:
    programs = install(place.directory / "bin", *kinds)
    agents = [{"driver": kind, "command": [programs[kind]], **more} for kind in kinds]
    place.write("retinue.yaml", json.dumps({"examples": False, "agents": agents}))
    return programs


def test_a_prompt_is_run_and_followed(place: Place) -> None:
    configured(place, "claude")
    done = place.retinue("run", "claude", '[[think hm]][[tool Bash {"command": "ls"}]][[say done]]',
                         "--follow")  # fmt: skip
    assert (done.code, done.out) == (0, "done\n"), done
    assert "· hm" in done.err
    assert '· calls Bash {"command": "ls"}' in done.err
    assert "claude 2.1.329 fake-model begins" in done.err
    done = place.retinue("run", "claude", "[[say a]][[say b]]", "--session", "mine")
    assert (done.code, done.json) == (0, "ab")
    done = place.retinue("run", "claude", "[[seen]]", "--session", "mine")
    assert json.loads(done.json)["turns_before"] == 1


def test_what_the_settings_refuse(place: Place) -> None:
    for agent, said in (
        ({"driver": "claude", "form": "once"}, "driver claude has no form once"),
        ({"driver": "gemini", "codex_sandbox": "read-only"}, "has no sandbox of its own"),
        ({"driver": "codex", "sandbox": "read-only"}, "Codex's own is codex_sandbox"),
        (
            {"driver": "codex", "sandbox": True, "codex_sandbox": "read-only"},
            "no sandbox of its own in another one",
        ),
        ({"driver": "codex", "sandbox": {"network": "some"}}, "'host', 'loopback' or 'none'"),
        ({"driver": "claude", "sandbox": {"reads": ["x"]}}, "sandbox"),
        ({"driver": "codex", "max_cost_usd": 1}, "does not say what a task costs"),
        ({"driver": "acp", "command": ["x"]}, "driver acp needs an agent_id"),
        ({"driver": "acp", "agent_id": "x"}, "driver acp needs a command"),
        ({"driver": "opencode", "max_turns": 1}, "does not say how often"),
        ({"driver": "codex", "form": "once", "max_turns": 1}, "does not say how often"),
        ({"driver": "codex", "form": "once", "approvals": "ask"}, "form once can ask nobody"),
        ({"driver": "codex", "form": "once", "deny": ["x"]}, "use form session"),
        ({"driver": "codex", "form": "once", "allow": ["x"]}, "use form session"),
        ({"driver": "codex", "form": "once", "sandbox": True}, "set approvals to allow"),
        (
            {"driver": "codex", "form": "once", "codex_sandbox": "workspace-write"},
            "runs read-only",
        ),
        ({"driver": "gemini", "form": "once", "home": "x"}, "set trust_project"),
        ({"driver": "claude", "deny": ["[R]ead"]}, "knows * only"),
        (
            {"driver": "opencode", "environment": {"OPENCODE_CONFIG_CONTENT": "{//\n}"}},
            "has to be JSON",
        ),
        ({"driver": "claud"}, "claud"),
    ):
        place.write("retinue.yaml", json.dumps({"agents": [agent]}))
        done = place.call("agent", "list")
        assert done.code != 0
        assert said in done.err, done.err


@pytest.mark.requirement("001.doctor")
def test_doctor_says_what_is_there(place: Place, tmp_path: Path) -> None:
    programs = configured(place, "claude", "codex", environment={"ANTHROPIC_API_KEY": "secret-1"})
    done = place.call("doctor", "--json", ORCHESTRATOR_PORT="0")
    found = {finding["subject"]: finding for finding in done.json["findings"]}
    claude, codex, gemini = found["claude"], found["codex"], found["gemini"]
    assert claude["state"] == "ok"
    expected = f"2.1.329 at {programs['claude']}, credential: ANTHROPIC_API_KEY"
    assert claude["text"] == expected
    assert "secret-1" not in done.out
    assert codex["state"] == "warn"
    assert "credential: none found" in codex["text"]
    assert "OPENAI_API_KEY" in codex["advice"]
    assert gemini["state"] == "ok"  # nobody needs it
    assert f"no such command on the PATH ({COMMANDS}" in gemini["text"]
    assert gemini["advice"] == "install it: npm install -g @google/gemini-cli"


def test_doctor_looks_at_the_clis_though_a_variable_is_missing(place: Place) -> None:
    programs = install(place.directory / "bin", "claude")
    given = {"ANTHROPIC_API_KEY": "${ANTHROPIC_API_KEY}", "OTHER": "${NOT_THERE}"}
    agent = {"driver": "claude", "command": [programs["claude"]], "environment": given}
    place.write("retinue.yaml", json.dumps({"examples": False, "agents": [agent]}))
    done = place.call("doctor", "--json", ORCHESTRATOR_PORT="0")
    assert done.code == 1
    failed = [one["text"] for one in done.json["findings"] if one["state"] == "fail"]
    where = "retinue.yaml: agents[0].environment"
    assert [text.partition(";")[0] for text in failed] == [
        f"{where}.ANTHROPIC_API_KEY: the environment has no ANTHROPIC_API_KEY",
        f"{where}.OTHER: the environment has no NOT_THERE",
    ]
    found = {finding["subject"]: finding for finding in done.json["findings"]}
    assert found["claude"]["state"] == "warn"
    assert "credential: none found" in found["claude"]["text"]
    refused = place.call("agent", "list")
    assert refused.code != 0
    assert "the environment has no ANTHROPIC_API_KEY" in refused.err


def test_doctor_fails_for_one_that_an_agent_needs(place: Place) -> None:
    place.write("retinue.yaml", json.dumps({"agents": [{"driver": "claude"}]}))
    done = place.call("doctor", "--json", ORCHESTRATOR_PORT="0")
    found = {finding["subject"]: finding for finding in done.json["findings"]}
    assert done.code == 1
    assert found["claude"]["state"] == "fail"
    assert "npm install -g @anthropic-ai/claude-code" in found["claude"]["advice"]


def test_doctor_doubts_a_version_that_was_not_tested(place: Place) -> None:
    environment = {"OPENAI_API_KEY": "x", "FAKE_VERSION": "codex 7.0.0"}
    configured(place, "codex", environment=environment)
    done = place.call("doctor", "--json", ORCHESTRATOR_PORT="0")
    found = {finding["subject"]: finding for finding in done.json["findings"]}
    assert found["codex"]["state"] == "warn"
    assert "codex 7.0.0 is not a version that was tested" in found["codex"]["advice"]


def test_doctor_finds_the_native_program_and_a_login(place: Place) -> None:
    """Npm's script is not what is run, and a login in the agent's HOME counts."""
    package = place.directory / "node_modules" / "@openai" / "codex"
    native = package.parent / "codex-linux-x64" / "vendor" / "some" / "bin"
    install(native, "codex")
    arm = package.parent / "codex-linux-arm64" / "vendor" / "some" / "bin"
    install(arm, "codex")
    install(package / "bin", "codex")
    home = place.directory / "home"
    (home / ".codex").mkdir(parents=True)
    (home / ".codex" / "auth.json").write_text("{}")
    command = [str(package / "bin" / "codex")]
    agent = {"driver": "codex", "command": command, "home": str(home)}
    place.write("retinue.yaml", json.dumps({"agents": [agent]}))
    done = place.call("doctor", "--json", ORCHESTRATOR_PORT="0")
    found = {finding["subject"]: finding for finding in done.json["findings"]}
    assert "/vendor/some/bin/codex" in found["codex"]["text"]
    assert ".codex/auth.json" in found["codex"]["text"]

"""What the drivers of coding CLIs read, decide and remember, without a process."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from retinue.drivers.coding.config import CodingConfig
from retinue.drivers.coding.leave import firm, gemini_rules, opencode_permission
from retinue.drivers.coding.natives import Native, Natives
from retinue.drivers.coding.place import native_of
from retinue.drivers.coding.provider import refusal
from retinue.drivers.coding.scribe import MOST_VALUE, MOST_WHOLE, fitting, text_of
from retinue.drivers.coding.talk import read
from retinue.drivers.coding.versions import doubt, version_in
from retinue.testing.coding_agent import install


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"a": "x"}\n', {"a": "x"}),
        (b'  {"a": [1, null]}\r\n', {"a": [1, None]}),
        (b'{"a": "\\u0000"}\n', {"a": "\N{REPLACEMENT CHARACTER}"}),
        (b'{"a": "\\ud800x"}\n', {"a": "?x"}),
        (b'{"a": "\\u00fc"}\n', {"a": "ü"}),
        (b'{"a": NaN}\n', {"a": "NaN"}),
        (b'{"a": "\xff"}\n', {"a": "\N{REPLACEMENT CHARACTER}"}),
        (b"plain text\n", "plain text"),
        (b"\xff\0\n", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"[1]\n", "[1]"),
        (b'{"a": \n', '{"a": '),
        (b"{" * 100_000, "{" * 100_000),
        (b"\n", ""),
    ],
)
def test_any_line_is_an_object_that_can_be_stored_or_text(line: bytes, expected: Any) -> None:
    assert read(line) == expected


def test_deny_wins_over_allow_and_both_over_the_rest() -> None:
    config = CodingConfig(
        kind="claude",
        command=("claude",),
        approvals="ask",
        allow=("Read", "mcp__*"),
        deny=("*rm*",),
    )
    verdicts = {t: config.judge(t) for t in ("Read", "mcp__a", "mcp__rm", "Bash", "read")}
    assert list(verdicts.values()) == ["allow", "allow", "deny", "ask", "ask"]


def opencode(**more: Any) -> CodingConfig:
    return CodingConfig(kind="opencode", command=("opencode",), **more)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (opencode(), {"bash": "ask", "edit": "ask"}),
        (opencode(approvals="allow"), {"bash": "allow", "edit": "allow"}),
        (opencode(approvals="allow", deny=("execute",)), {"bash": "deny", "edit": "allow"}),
        (opencode(approvals="allow", deny=("write",)), {"bash": "allow", "edit": "deny"}),
        (opencode(deny=("read",)), {"bash": "ask", "read": "deny", "list": "deny"}),
        (opencode(deny=("mcp_*",)), {"bash": "ask", "mcp_*": "deny"}),
        (opencode(form="once", approvals="deny"), {"bash": "deny", "edit": "deny"}),
        (opencode(form="once", approvals="deny", allow=("bash",)), {"bash": "allow"}),
    ],
)
def test_what_opencode_is_told_of_leave(config: CodingConfig, expected: dict[str, str]) -> None:
    found = opencode_permission(config)
    assert {name: found.get(name) for name in expected} == expected
    assert "execute" not in found  # it is no tool of its own


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("allow", {}),
        ("deny", {"*": "deny"}),
        ({"bash": "allow", "edit": "deny"}, {"edit": "deny"}),
        ({"bash": {"*": "allow", "rm *": "deny"}}, {"bash": {"*": "ask", "rm *": "deny"}}),
        ({"bash": ["odd"]}, {}),
    ],
)
def test_an_environment_may_deny_opencode_more_and_gives_it_nothing(
    given: Any, expected: dict[str, Any]
) -> None:
    content = {"permission": given, "tools": {"bash": True}, "agent": {"build": {"tools": {}}}}
    content["agent"]["build"]["permission"] = {"bash": "allow", "edit": "deny"}
    config = opencode(environment={"OPENCODE_CONFIG_CONTENT": json.dumps(content)})
    found = json.loads(firm(config)["OPENCODE_CONFIG_CONTENT"])
    assert found["permission"] == {**opencode_permission(config), **expected}
    assert list(found["permission"])[-len(expected) :] == list(expected) or not expected
    assert "tools" not in found
    assert found["agent"] == {"build": {"permission": {"edit": "deny"}}}


def gemini(**more: Any) -> CodingConfig:
    return CodingConfig(kind="gemini", command=("gemini",), **more)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (gemini(), []),
        (gemini(approvals="allow"), []),
        (gemini(form="once", approvals="deny"), []),
        (gemini(deny=("execute",)), [("deny", 999, ["run_shell_command"])]),
        (gemini(deny=("read*", "x")), [("deny", 999, ["read_file", "read_many_files", *"-x"])]),
        (
            gemini(form="once", approvals="deny", allow=("edit",)),
            [("allow", 998, ["write_file", "replace"])],
        ),
    ],
)
def test_what_gemini_is_told_of_leave(
    config: CodingConfig, expected: list[tuple[str, int, list[str]]]
) -> None:
    rules = tomllib.loads(gemini_rules(config)).get("rule", [])
    found = [(rule["decision"], rule["priority"], rule["toolName"]) for rule in rules]
    assert [(a, b, [*c]) for a, b, c in found] == [
        (a, b, [tool if tool != "-" else "read*" for tool in c]) for a, b, c in expected
    ]


def test_gemini_may_do_all_but_what_is_denied_where_nobody_is_asked() -> None:
    config = gemini(form="once", approvals="allow", deny=("execute",))
    denied, allowed = tomllib.loads(gemini_rules(config))["rule"]
    assert (denied["decision"], denied["toolName"]) == ("deny", ["run_shell_command"])
    assert (allowed["decision"], allowed["toolName"][-1]) == ("allow", "*")
    assert denied["priority"] > allowed["priority"]
    assert allowed["allowRedirection"] is True


@pytest.mark.parametrize(
    ("said", "told", "status", "later"),
    [
        ("API Error: 401 {...}", None, 401, False),
        ("API Error: 529 overloaded", 529, 529, True),
        (
            "unexpected status 429 Too Many Requests: x, url: http://127.0.0.1:8500/v1",
            None,
            429,
            True,
        ),
        ("no answer of http://127.0.0.1:500/v1", None, None, False),
        ("stream disconnected", {"responseStreamDisconnected": {"httpStatusCode": 502}}, 502, True),
        ("Selected model is at capacity", "serverOverloaded", None, True),
        ("x", {"name": "APIError", "data": {"message": "no", "statusCode": 400}}, 400, False),
        ("a word", None, None, False),
    ],
)
def test_whether_a_provider_that_refuses_will_do_later(
    said: str, told: Any, status: int | None, later: bool
) -> None:
    error = refusal(said, told)
    assert (error.details.get("status"), error.retryable) == (status, later)


def test_native_sessions_are_kept_by_owner_and_session(tmp_path: Path) -> None:
    natives = Natives(tmp_path / "sessions")
    assert natives.find("me", "s") is None
    mine = Native(owner="me", session_id="s", native_session="n-1", version="1", cost_usd=0.5)
    natives.keep(mine)
    natives.keep(Native(owner="you", session_id="s", native_session="n-2"))
    found = Natives(tmp_path / "sessions").find("me", "s")
    assert found is not None
    assert (found.native_session, found.cost_usd) == ("n-1", 0.5)
    assert found.updated_at > 0
    (file,) = [f for f in (tmp_path / "sessions").iterdir() if b"n-1" in f.read_bytes()]
    file.write_text("{half")
    assert natives.find("me", "s") is None
    natives.forget("you", "s")
    assert natives.find("you", "s") is None


def test_the_native_program_is_found_behind_npms_script(tmp_path: Path) -> None:
    modules = tmp_path / "node_modules"
    install(modules / "@openai" / "codex" / "bin", "codex")
    script = modules / ".bin" / "codex"
    script.parent.mkdir()
    script.symlink_to("../@openai/codex/bin/codex")
    assert native_of("codex", str(script)) == str(script)
    for machine in ("x64", "arm64"):
        install(modules / "@openai" / f"codex-linux-{machine}" / "vendor" / "any" / "bin", "codex")
    assert "/vendor/any/bin/codex" in native_of("codex", str(script))
    assert native_of("gemini", str(script)) == str(script)


def test_what_is_too_large_for_an_event_is_cut_and_says_so() -> None:
    assert fitting({"a": [1, "x"]}) == {"a": [1, "x"]}
    cut = fitting({"a": "x" * (MOST_VALUE + 5)})["a"]
    assert cut.endswith("… (5 characters more)")
    many = fitting({str(n): "y" * 1000 for n in range(1000)})
    assert isinstance(many, str)
    assert len(json.dumps(many)) < MOST_WHOLE


def test_a_version_that_was_not_tested_is_doubted() -> None:
    assert version_in("codex-cli 0.169.0") == "0.169.0"
    assert version_in("retinue/0.169.0 (Debian 12.0.0)") == "0.169.0"
    assert version_in("no number") is None
    assert doubt("codex", "0.169.3") is None
    assert "0.170.0 is not a version that was tested" in (doubt("codex", "0.170.0") or "")
    assert "does not say its version" in (doubt("claude", None) or "")
    assert doubt("acp", None) is None


def test_text_in_whichever_way_it_is_written() -> None:
    assert text_of("a") == "a"
    assert text_of([{"type": "text", "text": "a"}, {"content": {"text": "b"}}, 5]) == "ab"
    assert text_of(None) == ""

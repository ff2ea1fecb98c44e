"""What is particular about the CLIs, and what they need to keep to themselves.

What they may do is ``leave``'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from retinue.domain.ids import ulid
from retinue.drivers.coding.config import CodingConfig
from retinue.drivers.coding.leave import codex_trust, gemini_policy, gemini_rules
from retinue.process.ladder import Ladder


class Preset(NamedTuple):
    """How one CLI is started for ACP. ``ladder``: some ignore the end of their input."""

    arguments: Callable[[CodingConfig, Path], list[str]]
    environment: Callable[[CodingConfig], dict[str, str]]
    ladder: Ladder
    prepare: Callable[[CodingConfig, Path], None]
    finish_seconds: float = 2.0
    resume: Callable[[Path, str], None] = lambda home, native: None
    sets_model: bool = False


_MINUTE = "%Y-%m-%dT%H-%M"
_STAMP = re.compile(r"session-(\d{4}-\d\d-\d\dT\d\d-\d\d)-")
CODEX_OFF = ("plugins", "apps", "remote_plugin")
"""What Codex does without, unless the agent's command says otherwise: each uses the network."""


def codex_arguments(config: CodingConfig, work_dir: Path) -> list[str]:
    """Return the options of every Codex that is started."""
    argv = ["-c", codex_trust(config, work_dir)]
    argv += [word for name in CODEX_OFF for word in ("-c", f"features.{name}=false")]
    if config.model is not None:
        argv += ["-c", f"model={json.dumps(config.model)}"]
    return [*argv, *config.command[1:]]


def codex_environment(home: Path) -> dict[str, str]:
    """Return variables that Codex needs."""
    return {"CODEX_HOME": str(home / ".codex")}


def codex_sandbox(config: CodingConfig) -> str:
    """Return the sandbox that Codex is to make for the commands it runs.

    In ours it can make none, and then no command runs at all, without a word. Where nobody is
    asked, that it may not write is all that can be denied.
    """
    if config.form == "once" and config.approvals != "allow":
        return "read-only"
    return "danger-full-access" if config.sandbox else config.codex_sandbox or "workspace-write"


def gemini_arguments(config: CodingConfig, home: Path) -> list[str]:
    """Return Gemini's options."""
    argv = [*config.command[1:]]
    if config.model is not None:
        argv += ["-m", config.model]
    if gemini_rules(config):
        file = str(gemini_policy(config, home))
        # An organisation's rules have the second one ignored, and win over the first.
        argv += ["--policy", file, "--admin-policy", file]
    return argv


def _gemini_environment(config: CodingConfig) -> dict[str, str]:
    # Without it, it starts another node, which a signal does not reach.
    return {"GEMINI_CLI_NO_RELAUNCH": "true"}


def _gemini_prepare(config: CodingConfig, home: Path) -> None:
    """Set in its own settings what we need: no updates, no statistics, the key it is given."""
    file = home / ".gemini" / "settings.json"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    rules = gemini_rules(config)
    if rules:
        gemini_policy(config, home).write_text(rules)
    if config.home is not None:
        return
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        kept = {}
    # Whether the directory is trusted is not its settings' question: without, it refuses to run.
    security: dict[str, object] = {"folderTrust": {"enabled": False}}
    settings: dict[str, object] = {
        **kept,
        "security": security,
        "general": {
            "enableAutoUpdate": False,
            "enableAutoUpdateNotification": False,
            # It would take a session that we have gone on with for a damaged one, and delete it.
            "sessionRetention": {"enabled": False},
        },
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
    }
    if "GEMINI_API_KEY" in config.environment:
        security["auth"] = {"selectedType": "gemini-api-key"}
    if config.max_turns is not None:
        settings["model"] = {"maxSessionTurns": config.max_turns}
    file.write_text(json.dumps(settings, indent=1))


def _gemini_resume(home: Path, native: str) -> None:
    """Put a session's file out of the way of the one that is begun before that is loaded.

    Gemini names both by the session and the minute: within one minute it writes over what it is
    about to load. Older files keep their names, and their order.
    """
    for file in home.glob(f".gemini/tmp/*/chats/session-*-{native[:8]}.jsonl"):
        found = _STAMP.match(file.name)
        if found is None:
            continue
        at = datetime.strptime(found.group(1), _MINUTE).replace(tzinfo=UTC)
        if b'"type":"gemini"' not in file.read_bytes():
            file.rename(file.with_name(f"empty-{ulid()}"))  # begun, and never answered in
            continue
        if at < datetime.now(UTC) - timedelta(minutes=2):
            continue
        for back in range(3, 60):
            stamp = (at - timedelta(minutes=back)).strftime(_MINUTE)
            aside = file.with_name(f"session-{stamp}-{native[:8]}.jsonl")
            if not aside.exists():
                file.rename(aside)
                break


def _opencode_environment(config: CodingConfig) -> dict[str, str]:
    names = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "SHARE")
    return {f"OPENCODE_DISABLE_{name}": "1" for name in names}


def _nothing(config: CodingConfig, home: Path) -> None:
    """Need nothing."""


PRESETS = {
    "gemini": Preset(
        lambda config, home: ["--acp", *gemini_arguments(config, home)],
        _gemini_environment,
        Ladder(cancel=2.0),
        _gemini_prepare,
        finish_seconds=0.2,  # it does not mind the end of its input
        resume=_gemini_resume,
    ),
    "opencode": Preset(
        lambda config, home: [*config.command[1:], "acp"],
        _opencode_environment,
        Ladder(cancel=3.0, stdin=2.0),
        _nothing,
    ),
    "acp": Preset(
        lambda config, home: list(config.command[1:]),
        lambda config: {},
        Ladder(cancel=3.0, stdin=1.0),
        _nothing,
        sets_model=True,
    ),
}

"""The coding CLIs, for a runner's catalogue: run once, prompt by stdin, JSON lines on stdout.

::

    async with LocalProcessRunner(catalogue=CODING_CLIS) as runner:
        handle = await runner.spawn(AgentConfig("reviewer", "claude", "Review the last commit"))

A server's agents are spoken with instead: ``driver: claude`` and its like ask for leave, go on with
a session, and can be called off.
"""

from __future__ import annotations

from collections.abc import Mapping

from retinue.process.config import Backend

CODING_CLIS: Mapping[str, Backend] = {
    "claude": Backend(
        command=("claude", "-p", "--output-format", "stream-json", "--verbose"),
        prompt="stdin",
        system_prompt="--append-system-prompt",
        environment={
            "DISABLE_AUTOUPDATER": "1",
            # Else a background task keeps the process after its result.
            "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        },
        install="install it: npm install -g @anthropic-ai/claude-code",
    ),
    "codex": Backend(
        command=("codex", "exec", "--json", "--skip-git-repo-check", "-"),
        prompt="stdin",
        install="install it: npm install -g @openai/codex",
    ),
    "gemini": Backend(
        command=("gemini", "-o", "stream-json"),
        prompt="stdin",
        environment={"GEMINI_CLI_NO_RELAUNCH": "true"},
        install="install it: npm install -g @google/gemini-cli",
    ),
    "opencode": Backend(
        command=("opencode", "run", "--format", "json"),
        prompt="stdin",
        environment={"OPENCODE_DISABLE_AUTOUPDATE": "1"},
        install="install it: npm install -g opencode-ai",
    ),
}
"""By name, as ``AgentConfig.model_backend`` names them."""

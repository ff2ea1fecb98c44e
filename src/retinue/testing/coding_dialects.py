"""Which dialect the fake coding CLI speaks: that of its name and its options.

What each writes is what the real program was seen to write, less the fields that nobody reads.
"""

from __future__ import annotations

from retinue.testing.coding_acp import Acp
from retinue.testing.coding_agent import Memory, word_after
from retinue.testing.coding_claude import Claude
from retinue.testing.coding_codex import Codex
from retinue.testing.coding_once import CodexExec, GeminiOnce, OpencodeRun, once


def serve(name: str, words: list[str]) -> None:
    """Be one of the CLIs."""
    if name == "claude":
        Claude(words).serve()
    elif name == "codex" and "app-server" in words:
        Codex().serve()
    elif name == "codex":
        once(CodexExec(), Memory("codex"), word_after(words, "resume"))
    elif name == "gemini" and "-o" in words:
        once(GeminiOnce(), Memory("gemini"), word_after(words, "-r"))
    elif name == "opencode" and "run" in words:
        once(OpencodeRun(), Memory("opencode"), word_after(words, "-s"))
    else:
        Acp(name).serve()

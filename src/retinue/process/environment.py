"""What an agent process inherits of its starter's environment: little, and nothing secret."""

from __future__ import annotations

from collections.abc import Mapping

INHERITED = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "SHELL",
    "USER",
    "LOGNAME",
    "HOME",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
INHERITED_PREFIXES = ("LC_",)


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that agents may see: where things are, and how to speak.

    Everything else (API keys, tokens, our own settings) reaches an agent only when it is declared.
    """
    return {
        name: value
        for name, value in environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }

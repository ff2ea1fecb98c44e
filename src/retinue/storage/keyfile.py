"""The file that holds this installation's signing key, beside the store and never in it."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from retinue.errors import SettingsError

FILE = "signing.key"
_BYTES = 32


def signing_key(path: Path) -> bytes:
    """Return the key in ``path``; the first one who asks makes it.

    Raises:
        SettingsError: it cannot be read or made, or holds no key.
    """
    try:
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the signing key {path} cannot be read or made: {error}") from None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < _BYTES:
        raise SettingsError(f"{path} holds no signing key: {2 * _BYTES} hexadecimal digits")
    return key


def _make(path: Path) -> None:
    """Write a new key so that whoever sees the file sees all of it, and only the first one wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        draft.unlink()

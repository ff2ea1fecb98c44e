"""Where the real CLIs cannot be had: what is the machine's fault, and what is ours."""

import os
from pathlib import Path

import pytest
from tests.live import programs


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have them fetched to, and npm sought in, directories of this test's own."""
    monkeypatch.setattr(programs, "HERE", tmp_path / "clis")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    return tmp_path / "bin"


def npm(place: Path, script: str) -> None:
    """Put a program of that name in the way of the real one."""
    (place / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (place / "npm").chmod(0o755)


def status() -> object:
    with pytest.raises(SystemExit) as left:
        programs.fetch("codex")
    return left.value.code


def test_without_npm_that_is_said(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(place))
    assert status() == os.EX_UNAVAILABLE
    assert "npm is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "code",
    [
        *("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ERR_SOCKET_TIMEOUT", "E503", "E401"),
        *("UNABLE_TO_VERIFY_LEAF_SIGNATURE", "SELF_SIGNED_CERT_IN_CHAIN"),
    ],
)
def test_a_registry_out_of_reach_is_no_changes_fault(
    place: Path, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    npm(place, f"echo 'npm error code {code}' >&2; echo npm error network no >&2; exit 1")
    assert status() == os.EX_UNAVAILABLE
    assert f"npm cannot install @openai/codex@0.169.0:\nnpm error code {code}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("code", ["ETARGET", "E404", "EINTEGRITY", "ENOSPC"])
def test_a_version_that_is_not_there_is(place: Path, code: str) -> None:
    npm(place, f"echo 'npm error code {code}' >&2; exit 1")
    assert status() == 1


def test_a_package_without_its_program_is(place: Path) -> None:
    npm(place, "exit 0")
    assert status() == 1


def test_what_is_there_is_not_fetched_again(place: Path) -> None:
    package = programs.PACKAGES["codex"]
    made = f"node_modules/{package.program}"
    npm(place, f'test ! -e "{made}" && mkdir -p "$(dirname {made})" && touch {made}')
    programs.fetch("codex")
    programs.fetch("codex")
    assert programs.program("codex").exists()

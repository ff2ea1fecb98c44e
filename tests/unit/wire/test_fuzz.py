"""``make fuzz`` runs, and would say so if something were wrong."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.__main__ import round_of, seeds

from retinue.wire import strict
from retinue.wire.envelope import new_id


def test_the_fuzzer_finds_nothing_in_a_second() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--seconds", "1", "--seed", "1"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed 1\n")


def test_the_fuzzer_would_find_a_key_that_gets_through_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [*seeds(), b'{"type":"control","payload":{"a":1,"a":2}}\n']
    assert round_of(lines, random.Random(1)) is None
    monkeypatch.setattr(strict, "_encode", lambda value: b":" * 4)
    assert round_of(lines[-1:], random.Random(1)) is not None


def test_ids_are_never_given_twice() -> None:
    assert len({new_id() for _ in range(10_000)}) == 10_000

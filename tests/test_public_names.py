"""The front door stays small and cheap."""

import subprocess
import sys

import retinue

MOST_NAMES = 15
HEAVY = ("asyncpg", "fastapi", "pydantic")


def test_public_names_are_few_and_sorted() -> None:
    assert len(retinue.__all__) <= MOST_NAMES
    assert list(retinue.__all__) == sorted(retinue.__all__)


def test_every_public_name_is_there() -> None:
    for name in retinue.__all__:
        assert getattr(retinue, name) is not None, name


def test_importing_retinue_imports_nothing_heavy() -> None:
    program = f"import sys, retinue; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []

"""Workers as their parents have them: real processes, with agents of the test's own."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from retinue.cli.check.peer import Peer, Plan

Serve = Callable[..., Peer]
Program = Callable[[str], list[str]]

HEAD = """\
import asyncio, os, subprocess, sys, threading, time
from typing import Any
from retinue import Agent, AgentCapability, Context, Options, capability, current
from retinue.sdk import Reference, get_human_input, serve
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Return the command line of a worker with this body."""

    def write(body: str) -> list[str]:
        path = tmp_path / "worker.py"
        path.write_text(HEAD + textwrap.dedent(body))
        return [sys.executable, str(path)]

    return write


@pytest.fixture
def worker(program: Program) -> Serve:
    """A worker with a given body, to be entered."""
    return lambda body: Peer(Plan(program(body), start_seconds=30, seconds=30))

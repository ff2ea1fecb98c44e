"""Fixtures for every test: a real PostgreSQL, and a guard against processes left behind."""

import itertools
import os
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.testing.servers import PostgresServer

CHILDREN_MAY_TAKE = 3.0

_database_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A private PostgreSQL, started by the first test that asks for it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of a database that is empty and this test's own."""
    name = f"test_{next(_database_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory that does not lie in /tmp, as people's files do not."""
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".retinue-test-") as made:
        yield Path(made)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Have reports sent between processes of the test run; what is no text may be in a log."""
    return _sendable((yield))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_sendable(key): _sendable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_sendable, value))
    return value


_left_by_others: list[str] = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear of what another process of the test run has left behind."""
    _left_by_others.extend(getattr(node, "workeroutput", {}).get("left_behind", []))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves child processes behind; every fixture has ended by now."""
    deadline = time.monotonic() + CHILDREN_MAY_TAKE
    while (children := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_behind"] = children
        return
    children += _left_by_others
    if not children:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.section("processes left behind", red=True)
        for child in children:
            reporter.write_line(child)
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _children() -> list[str]:
    """Describe each child of this process, zombies included."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything; state and parent follow the last one.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):
            continue  # it ended while we looked
        if int(parent) == os.getpid():
            found.append(f"{entry.name} {state} {command or '(no command line)'}")
    return found

"""The requirements and the tests name each other.

Every line of ``requirements.toml`` has a test that carries
``@pytest.mark.requirement("its id")``, or stands under ``[deferred]`` with the reason. The marks
are read from the source of the tests, so that the answer is the same whatever is selected to run.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent


class Requirements(NamedTuple):
    """What requirements.toml says: each behaviour by id, and why some have no test yet."""

    behaviours: dict[str, str]
    deferred: dict[str, str]


def test_every_requirement_has_a_test_or_a_reason() -> None:
    requirements = read_requirements()
    shown = {identifier for identifier, _ in marks()}
    missing = requirements.behaviours.keys() - shown - requirements.deferred.keys()
    assert not missing, f"neither a test nor a deferral: {sorted(missing)}"


def test_no_test_names_an_unknown_requirement() -> None:
    known = read_requirements().behaviours
    unknown = [f"{where}: {identifier}" for identifier, where in marks() if identifier not in known]
    assert not unknown, f"not in requirements.toml: {unknown}"


def test_no_deferred_requirement_has_a_test() -> None:
    deferred = read_requirements().deferred
    shown = [f"{where}: {identifier}" for identifier, where in marks() if identifier in deferred]
    assert not shown, f"deferred, yet shown by a test: {shown}"


def test_every_deferral_is_of_a_known_requirement_and_gives_a_reason() -> None:
    requirements = read_requirements()
    assert not requirements.deferred.keys() - requirements.behaviours.keys()
    assert [name for name, reason in requirements.deferred.items() if not reason.strip()] == []


def read_requirements() -> Requirements:
    tables = tomllib.loads((TESTS / "requirements.toml").read_text())
    deferred = tables.pop("deferred")
    behaviours: dict[str, str] = {}
    for table in tables.values():
        assert not behaviours.keys() & table.keys(), "an id stands in two tables"
        behaviours.update(table)
    return Requirements(behaviours, deferred)


def marks() -> Iterator[tuple[str, str]]:
    """Yield each requirement id that a mark names, with the place of the mark."""
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in {
                "pytest.mark.requirement",
                "mark.requirement",
            }:
                continue
            where = f"{path.relative_to(TESTS)}:{node.lineno}"
            assert node.args, f"{where}: a requirement mark without an id"
            assert not node.keywords, f"{where}: a requirement mark takes ids only"
            for argument in node.args:
                assert isinstance(argument, ast.Constant), f"{where}: the id must be a literal"
                assert isinstance(argument.value, str), f"{where}: the id must be a string"
                yield argument.value, where

"""The programs of ``examples/``, run as a person runs them, with the network cut off."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from retinue import Runtime
from retinue.domain.contract import ContractType
from retinue.interfaces import ContractFilter, ContractView, Page

EXAMPLES = Path(__file__).parents[2] / "examples"
SVG = "{http://www.w3.org/2000/svg}"
CUT_OFF = """
import sys

def refuse(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        raise OSError(f"the network is cut off: {event} {arguments}")

sys.addaudithook(refuse)
"""


def program(directory: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    (directory / "sitecustomize.py").write_text(CUT_OFF)
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        cwd=directory,
        env={"PATH": os.defpath, "PYTHONPATH": str(directory), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_network_is_really_cut_off(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CUT_OFF)
    done = subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 1))"],
        env={"PATH": os.defpath, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the network is cut off" in done.stderr


# -- pictures ----------------------------------------------------------------------------------


@pytest.mark.requirement("003.examples")
def test_a_picture_is_drawn_from_words(tmp_path: Path) -> None:
    words = ("A serene landscape", "--style", "realistic", "--out")
    done = program(tmp_path, "text_to_image.py", *words, "one.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "one.svg: 480x320, mountains, water, trees\n"
    picture = (tmp_path / "one.svg").read_text()
    root = ElementTree.fromstring(picture)
    assert root.findtext(f"{SVG}title") == "A serene landscape (realistic)"
    assert len(root.findall(f"{SVG}polygon")) >= 6
    assert len(root.findall(f"{SVG}ellipse")) == 1
    program(tmp_path, "text_to_image.py", *words, "two.svg")
    assert (tmp_path / "two.svg").read_text() == picture


@pytest.mark.requirement("003.examples")
def test_prompt_and_style_change_the_picture(tmp_path: Path) -> None:
    pictures = set()
    for prompt, style in (
        ("a <lake> & a moon", "night"),
        ("a tree", "sketch"),
        ("a tree", "night"),
    ):
        done = program(tmp_path, "text_to_image.py", prompt, "--style", style)
        assert done.returncode == 0, done.stderr
        pictures.add((tmp_path / "image.svg").read_text())
        ElementTree.parse(tmp_path / "image.svg")
    assert len(pictures) == 3
    refused = program(tmp_path, "text_to_image.py", "a tree", "--style", "cubist")
    assert refused.returncode != 0
    assert "cubist" in refused.stderr


# -- code --------------------------------------------------------------------------------------


@pytest.mark.requirement("003.examples")
def test_code_is_looked_through(tmp_path: Path) -> None:
    done = program(tmp_path, "code_pipeline.py")
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "shop.py: 22 lines, 1 classes, 3 functions",
        "  line 6: high: PASSWORD is written into the source",
        "  line 14: high: unpickling runs code from the data",
        "  line 17: high: eval runs whatever it is given",
        "  line 22: high: subprocess.call goes through a shell",
        "- `load(self, raw)` Read the takings of yesterday.",
        "## print_receipt(printer: str, text: str) -> int",
        "memory: 3 tasks (3 completed) by agent_code_001, agent_docs_001, agent_security_001:"
        " analyze_code, security_scan, generate_docs",
    ):
        assert line in done.stdout.splitlines()


@pytest.mark.requirement("003.examples")
def test_code_of_ones_own_is_looked_through(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import os\n\n\ndef go() -> None:\n    os.system('ls')\n")
    done = program(tmp_path, "code_pipeline.py", "mine.py")
    assert done.returncode == 0, done.stderr
    assert "  line 5: medium: os.system goes through a shell" in done.stdout.splitlines()


@pytest.mark.requirement("003.examples", "003.pipeline")
def test_code_that_cannot_be_parsed_stops_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ndef broken(:\n")
    done = program(tmp_path, "code_pipeline.py", "broken.py")
    assert done.returncode == 1
    assert done.stderr == "stopped: broken.py:2: invalid syntax\n"
    assert done.stdout == "memory: 1 task (1 failed) by agent_code_001: analyze_code\n"


@pytest.mark.requirement("003.pipeline")
async def test_a_pipeline_leaves_six_contracts_and_a_memory_of_all_three() -> None:
    example = loaded("code_pipeline")
    async with Runtime() as orchestrator:
        for agent in (
            example.CodeAnalysisAgent(),
            example.SecurityScanAgent(),
            example.DocumentationAgent(),
        ):
            orchestrator.register_agent(agent)
        replies = await example.pipeline(orchestrator, "shop.py", example.SAMPLE)
        assert [reply["success"] for reply in replies] == [True] * 3
        where = ContractFilter(session_id=example.SESSION)
        contracts = (await orchestrator.contracts(where, Page())).items
        answer = await orchestrator.compress_session(example.SESSION, "before the release")
        verdict = await orchestrator.verify()
    assert [_told(view) for view in contracts] == [
        ("REQUEST", "agent_code_001", "analyze_code"),
        ("RESPONSE", "agent_code_001", None),
        ("REQUEST", "agent_security_001", "security_scan"),
        ("RESPONSE", "agent_security_001", None),
        ("REQUEST", "agent_docs_001", "generate_docs"),
        ("RESPONSE", "agent_docs_001", None),
    ]
    assert [view.contract.n for view in contracts] == [1, 2, 3, 4, 5, 6]
    assert verdict.ok
    assert answer["compressed"] is True
    block = answer["memory_block"]
    assert list(block["capabilities"].values()) == [1, 1, 1]
    assert [step["capability"] for step in block["exchanges"]] == list(example.STEPS)
    assert block["agents"] == ["agent_code_001", "agent_docs_001", "agent_security_001"]
    assert (block["outcomes"], block["intent"]) == ({"completed": 3}, "before the release")
    text = json.dumps(block)
    for found in ("most_complex", "unpickling runs code", "takings of yesterday"):
        assert found in text


@pytest.mark.requirement("003.pipeline")
async def test_a_step_that_fails_is_the_last_and_is_remembered() -> None:
    example = loaded("code_pipeline")

    class Failing(example.SecurityScanAgent):  # type: ignore[name-defined, misc]
        async def execute(self, task: dict[str, object]) -> dict[str, object]:
            return {"success": False, "error": "the scanner is out of order"}

    async with Runtime() as orchestrator:
        for agent in (example.CodeAnalysisAgent(), Failing(), example.DocumentationAgent()):
            orchestrator.register_agent(agent)
        replies = await example.pipeline(orchestrator, "shop.py", example.SAMPLE)
        where = ContractFilter(session_id=example.SESSION)
        contracts = (await orchestrator.contracts(where, Page())).items
        block = (await orchestrator.compress_session(example.SESSION))["memory_block"]
    assert [reply["success"] for reply in replies] == [True, False]
    assert [view.contract.capability for view in contracts] == [
        "analyze_code",
        None,
        "security_scan",
        None,
    ]
    assert block["outcomes"] == {"completed": 1, "failed": 1}
    assert block["exchanges"][-1]["status"] == "failed"
    assert block["exchanges"][-1]["answered"]["message"] == "the scanner is out of order"


def _told(view: ContractView) -> tuple[str, str | None, str | None]:
    """Return a contract's type, its agent and its capability."""
    c = view.contract
    agent = c.to_agent if c.type is ContractType.REQUEST else c.from_agent
    return c.type.value, agent, c.capability


# -- data --------------------------------------------------------------------------------------


@pytest.mark.requirement("003.examples")
def test_data_becomes_a_chart(tmp_path: Path) -> None:
    done = program(tmp_path, "data_workflow.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "7 rows kept; dropped: 1 repeated, 1 no group, 2 no number",
        "  Cairo: mean 30.167 of 3",
        "  Oslo: mean 4.75 of 2",
        "  Rome: mean 20 of 2",
        "chart: chart.svg",
    ]
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()
    heights = [float(bar.attrib["height"]) for bar in root.iter(f"{SVG}rect")]
    cairo, oslo, rome = heights
    assert oslo / cairo == pytest.approx(4.75 / 30.167, rel=0.01)
    assert rome / cairo == pytest.approx(20 / 30.167, rel=0.01)
    assert "Mean temperature by city" in [text.text for text in root.iter(f"{SVG}text")]


@pytest.mark.requirement("003.examples")
def test_data_of_ones_own_and_a_step_that_fails(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("kind,size\na,-1\nb,3\na,nan\n")
    columns = ("--group", "kind", "--value", "size")
    done = program(tmp_path, "data_workflow.py", "mine.csv", *columns, "--out", "mine.svg")
    assert done.returncode == 0, done.stderr
    assert "  a: mean -1 of 1" in done.stdout.splitlines()
    ElementTree.parse(tmp_path / "mine.svg")
    refused = program(tmp_path, "data_workflow.py", "mine.csv", "--group", "colour")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "clean_data: no column colour, temperature\n"
    (tmp_path / "empty.csv").write_text("city,temperature\n")
    refused = program(tmp_path, "data_workflow.py", "empty.csv")
    assert refused.stderr == "analyze: there are no rows to analyze\n"

"""A worker on the JVM: the command line of specification 000, shown by a ``java`` that records."""

import os
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.process.rig import marked

from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.settings import WorkerReference

PROGRAM = Path(__file__).with_name("misbehaving.py")
JAVA = """#!{python}
import os, sys
with open({record!r}, "wb") as file:
    file.write(b"\\0".join(map(os.fsencode, sys.argv)))
os.execv({python!r}, [{python!r}, "-I", "-S", "-u", {program!r}])
"""


@pytest.mark.requirement("000.jvm-preset")
async def test_java_is_started_with_the_flat_command_line_and_no_shell(tmp_path: Path) -> None:
    record, bin_, work = tmp_path / "record", tmp_path / "bin", tmp_path / "work"
    bin_.mkdir()
    work.mkdir()
    java = bin_ / "java"
    java.write_text(JAVA.format(python=sys.executable, record=str(record), program=str(PROGRAM)))
    java.chmod(0o755)
    classpath = "agent-o-rama.jar:lib/*:$(touch shell); `touch shell`"
    worker = WorkerReference(
        driver="stdio",
        name="w",
        module_class="com.rpl.agent.react.ReActModule",
        classpath=classpath,
        extra_jvm_opts=("-Xmx8g", "-Dname=two words $HOME"),
        environment={"PATH": f"{bin_}{os.pathsep}{os.defpath}"},
        work_dir=work,
        process_pool_size=1,
    )
    settings = Settings(data_dir=tmp_path, examples=False, entry_points=False, agents=(worker,))
    system = Runtime(settings)
    async with system as orchestrator:
        reply = await orchestrator.perform(Task(session_id="s", agent_id="it", parameters={}))
        assert reply.error is None, reply.error
    assert marked(system.keeper.scope) == []
    name, *argv = record.read_bytes().decode().split("\0")
    assert os.path.basename(name) == "java"
    assert argv == [
        *("-Xss6m", "-Xms2g", "-Xmx4g", "-XX:+UseG1GC", "-Djava.awt.headless=true"),
        *("-Xmx8g", "-Dname=two words $HOME"),
        *("-cp", classpath),
        *("clojure.main", "-m", "aor.subprocess.server"),
        *("--module", "com.rpl.agent.react.ReActModule"),
    ]
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "it needs a command, or else module_class and classpath"),
        ({"command": ["x"], "module_class": "M", "classpath": "c"}, "it needs a command, or else"),
        ({"module_class": "M"}, "module_class and classpath need each other"),
        ({"command": ["x"], "classpath": "c"}, "module_class and classpath need each other"),
        ({"command": ["x"], "extra_jvm_opts": ["-v"]}, "extra_jvm_opts are for module_class"),
    ],
)
def test_a_command_or_a_module(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        WorkerReference.model_validate({"driver": "stdio", "name": "w", **given})
